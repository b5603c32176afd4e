//! The KV cache: which groups of state a model has ([`layout`]), which pages exist and who holds them
//! ([`pages`], [`holding`]) and what lies in them ([`prefix`]), all integers only; where the numbers are
//! ([`storage`], tensors only); pages on disk ([`prefix_file`]). Page and slot numbers are all that the two
//! sides share.

pub mod holding;
pub mod layout;
pub mod pages;
pub mod prefix;
pub mod prefix_file;
pub mod storage;
