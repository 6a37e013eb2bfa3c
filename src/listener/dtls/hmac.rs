//! HMAC (RFC 2104) and the TLS 1.2 PRF on it (RFC 5246 section 5).

use sha2::Digest;
use sha2::digest::Output;

/// An HMAC with its key already absorbed.
#[derive(Clone)]
pub(super) struct Hmac<D> {
    inner: D,
    outer: D,
}

impl<D: Digest + Clone> Hmac<D> {
    /// With a key of at most `BLOCK` bytes, the block size of the digest.
    pub(super) fn new<const BLOCK: usize>(key: &[u8]) -> Self {
        debug_assert!(key.len() <= BLOCK, "a longer key would have to be digested first");
        let padded = |pad: u8| {
            let mut block = [pad; BLOCK];
            for (byte, key) in block.iter_mut().zip(key) {
                *byte ^= key;
            }
            D::new_with_prefix(block)
        };
        Self { inner: padded(0x36), outer: padded(0x5c) }
    }

    /// The MAC of the concatenated parts.
    pub(super) fn code(&self, parts: &[&[u8]]) -> Output<D> {
        let mut inner = self.inner.clone();
        for part in parts {
            inner.update(part);
        }
        self.outer.clone().chain_update(inner.finalize()).finalize()
    }

    /// Fills `out` with `P_hash` of the label and the seeds.
    pub(super) fn expand(&self, seed: &[&[u8]], out: &mut [u8]) {
        let mut link = self.code(seed);
        for place in out.chunks_mut(link.len()) {
            let block = self.code(&[&[&link[..]], seed].concat());
            place.copy_from_slice(&block[..place.len()]);
            link = self.code(&[&link[..]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Sha256, Sha384};

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// The second test case of RFC 4231.
    #[test]
    fn codes_are_those_of_the_standard() {
        let data = b"what do ya want for nothing?";
        let code = Hmac::<Sha256>::new::<64>(b"Jefe").code(&[&data[..8], &data[8..]]);
        assert_eq!(code[..], hex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"));
        let code = Hmac::<Sha384>::new::<128>(b"Jefe").code(&[data]);
        let expected =
            "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649";
        assert_eq!(code[..], hex(expected));
    }
}
