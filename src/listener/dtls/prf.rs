//! Key derivation of TLS 1.2: the pseudorandom function `P_hash` (RFC 5246 section 5).

use hmac::{KeyInit, Mac};

/// The MAC of the concatenated parts. The key schedule of `mac` is computed once, by its creator.
pub(super) fn mac<M: Mac + Clone>(mac: &M, parts: &[&[u8]]) -> hmac::digest::Output<M> {
    let mut mac = mac.clone();
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes()
}

/// Fills `out` with `P_hash(secret, seed)`, where the seed is the concatenated parts, the label among them.
pub(super) fn expand<M: Mac + KeyInit + Clone>(secret: &[u8], seed: &[&[u8]], out: &mut [u8]) {
    // HMAC takes a key of any length.
    let Ok(keyed) = <M as KeyInit>::new_from_slice(secret) else { return };
    let mut a = mac(&keyed, seed);
    for chunk in out.chunks_mut(a.len()) {
        let block = mac(&keyed, &[&[&a[..]], seed].concat());
        chunk.copy_from_slice(&block[..chunk.len()]);
        a = mac(&keyed, &[&a[..]]);
    }
}

#[cfg(test)]
mod tests {
    use hmac::Hmac;
    use sha2::Sha256;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// The published P_SHA256 vector of the IETF TLS working group's list.
    #[test]
    fn output_is_that_of_the_published_vector() {
        let secret = hex("9bbe436ba940f017b17652849a71db35");
        let seed = hex("a0ba9f936cda311827a6f796ffd5198c");
        let mut out = [0; 100];
        expand::<Hmac<Sha256>>(&secret, &[b"test label", &seed], &mut out);
        let expected = "e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a\
                        6b301791e90d35c9c9a46b4e14baf9af0fa022f7077def17abfd3797c0564bab\
                        4fbc91666e9def9b97fce34f796789baa48082d122ee42c5a72e5a5110fff701\
                        87347b66";
        assert_eq!(out[..], hex(expected));
    }
}
