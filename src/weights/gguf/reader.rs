//! A cursor over the bytes of a GGUF header: every read is checked, and says where and what it was.

use crate::error::{Error, Result};

/// The longest key or tensor name, in bytes; the format says 65535 for keys.
const MAX_NAME: u64 = 65_535;

pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    /// The next `count` bytes, which are `what`.
    pub fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8]> {
        let part = usize::try_from(count)
            .ok()
            .and_then(|count| self.at.checked_add(count))
            .and_then(|end| self.bytes.get(self.at..end));
        match part {
            Some(part) => {
                self.at += part.len();
                Ok(part)
            }
            None => Err(self.error(format!("{what} needs {count} bytes and {} are left", self.left()))),
        }
    }

    /// An error at the place of the next read.
    #[cold]
    pub fn error(&self, message: String) -> Error {
        Error::model_file(format!("the GGUF header is damaged or cut short at byte {}: {message}", self.at))
    }

    pub fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let bytes = self.take(N as u64, what)?;
        bytes.try_into().map_err(|_| self.error(format!("{what} is too short")))
    }

    pub fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of things that take at least `least` bytes each: refused when so many cannot follow, so that
    /// a caller may reserve memory for them.
    pub fn count(&mut self, least: usize, what: &str) -> Result<usize> {
        let count = self.u64(what)?;
        let most = self.left() / least.max(1);
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(self.error(format!("{what} is {count}, and at most {most} fit into what is left"))),
        }
    }

    /// A string's bytes: a length of eight bytes, then the text.
    pub fn string(&mut self, what: &str) -> Result<&'a [u8]> {
        let len = self.u64(what)?;
        self.take(len, what)
    }

    /// A key or a tensor's name: UTF-8, not endless.
    pub fn name(&mut self, what: &str) -> Result<&'a str> {
        let len = self.u64(what)?;
        if len > MAX_NAME {
            return Err(self.error(format!("{what} would have {len} bytes; the limit is {MAX_NAME}")));
        }
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|_| self.error(format!("{what} is not UTF-8")))
    }
}
