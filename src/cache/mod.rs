//! The KV cache: which pages exist and who holds them ([`pages`], integers only), and where the keys and
//! values lie ([`storage`], tensors only). Neither knows the other: a page number is all they share.

pub mod pages;
pub mod storage;
