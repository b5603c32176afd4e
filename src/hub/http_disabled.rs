//! What stands in for `http.rs` where the crate is built without the feature `hub`: no network at all.

use super::env::Env;
use super::progress::Progress;
use crate::error::{Error, Result};

#[derive(Debug)]
#[allow(dead_code)] // Matched by the callers, made by nobody.
pub(super) enum Fault {
    Cancelled,
    Transient(String),
    Permanent(String),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Method {
    Head,
    Get,
}

/// No value of it exists, so nothing behind it needs a body.
pub(super) enum Http {}

pub(super) struct Head {
    pub(super) status: u16,
}

pub(super) struct Reply {
    pub(super) head: Head,
    never: Http,
}

impl Head {
    pub(super) fn header(&self, _name: &str) -> Option<&str> {
        None
    }

    pub(super) fn own_header(&self, _name: &str) -> Option<&str> {
        None
    }
}

impl Http {
    pub(super) fn new(_env: &Env) -> Result<Http> {
        Err(Error::hub(
            "this build of tallow has no downloads (the crate's feature `hub` is off); fetch the model with \
             `hf download`, or give the path of a folder or file",
        ))
    }

    pub(super) fn has_token(&self) -> bool {
        match *self {}
    }

    pub(super) fn send(&self, _: Method, _: &str, _: Option<u64>, _: &dyn Progress) -> Result<Reply, Fault> {
        match *self {}
    }
}

impl Reply {
    pub(super) fn next(&mut self, _: &dyn Progress) -> Result<Option<Vec<u8>>, Fault> {
        match self.never {}
    }
}
