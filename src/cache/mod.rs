//! The KV cache: which pages exist and who holds them ([`pages`]), what lies in them ([`prefix`]), both integers
//! only; and where the keys and values are ([`storage`], tensors only). A page number is all they share.

pub mod pages;
pub mod prefix;
pub mod storage;
