//! A cursor over a body: takes fields off its front, big-endian, and never looks past the end.

use crate::malformed::Malformed;

/// What is left of a body.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `length` bytes. `field` names them in the error.
    pub(crate) fn take(&mut self, field: &'static str, length: usize) -> Result<&'a [u8], Malformed> {
        let short = Malformed::Short { field, needed: length, found: self.0.len() };
        let (head, tail) = self.0.split_at_checked(length).ok_or(short)?;
        self.0 = tail;
        Ok(head)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Malformed> {
        let short = Malformed::Short { field, needed: N, found: self.0.len() };
        let (head, tail) = self.0.split_first_chunk().ok_or(short)?;
        self.0 = tail;
        Ok(*head)
    }

    /// BYTE.
    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, Malformed> {
        self.array(field).map(|[byte]| byte)
    }

    /// WORD.
    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, Malformed> {
        self.array(field).map(u16::from_be_bytes)
    }

    /// DWORD.
    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, Malformed> {
        self.array(field).map(u32::from_be_bytes)
    }

    /// A BYTE that says how many bytes follow, and these.
    pub(crate) fn counted(&mut self, field: &'static str) -> Result<&'a [u8], Malformed> {
        let length = self.u8(field)?;
        self.take(field, length.into())
    }

    /// Fails if anything is left.
    pub(crate) fn finish(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed::Leftover(self.0.len())) }
    }
}
