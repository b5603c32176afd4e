//! The KV cache: which pages exist and who holds them ([`pages`]) and what lies in them ([`prefix`]), both integers
//! only; where the keys and values are ([`storage`], tensors only); pages on disk ([`prefix_file`]). A page
//! number is all that the first two and the third share.

pub mod pages;
pub mod prefix;
pub mod prefix_file;
pub mod storage;
