//! Password hashes: argon2id in PHC form only.

use argon2::{Algorithm, Argon2, Params, PasswordVerifier, Version, password_hash::phc};

use super::HASH_MEMORY_KIB_MAX;

/// Maximum number of passes of a hash.
const PASSES_MAX: u32 = 64;

/// Maximum number of lanes of a hash.
const LANES_MAX: u32 = 16;

/// A parsed hash within the cost limits.
pub(super) struct PasswordHash {
    hash: phc::PasswordHash,
    verifier: Argon2<'static>,
}

/// Invalid password hash. Never shows the text.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashFault {
    #[error("a PHC string is expected, as in \"$argon2id$v=19$m=19456,t=2,p=1$salt$hash\"")]
    NotPhc,
    /// Another algorithm.
    #[error("argon2id is expected, and it is {found}")]
    Algorithm { found: String },
    #[error("version 19 of argon2id is expected, and it is {found}")]
    Version { found: u32 },
    /// Without salt or without hash.
    #[error("its salt or its hash is missing")]
    Incomplete,
    /// Invalid parameters.
    #[error("its parameters are not those of argon2id")]
    Params,
    /// Too costly.
    #[error("its parameter {name} is {value}, and at most {value_max} is allowed")]
    Costly {
        /// `m` (KiB), `t` or `p`.
        name: char,
        value: u32,
        value_max: u32,
    },
}

impl PasswordHash {
    /// Parses a hash.
    pub(super) fn parse(text: &str) -> Result<Self, HashFault> {
        let hash = phc::PasswordHash::new(text).map_err(|_| HashFault::NotPhc)?;
        if hash.algorithm.as_str() != Algorithm::Argon2id.as_str() {
            return Err(HashFault::Algorithm { found: hash.algorithm.as_str().to_owned() });
        }
        // Without a version the string means 16, which has a known weakness.
        let version = hash.version.unwrap_or(u32::from(Version::V0x10));
        if version != u32::from(Version::V0x13) {
            return Err(HashFault::Version { found: version });
        }
        if hash.salt.is_none() || hash.hash.is_none() {
            return Err(HashFault::Incomplete);
        }
        let params = Params::try_from(&hash).map_err(|_| HashFault::Params)?;
        for (name, value, value_max) in [
            ('m', params.m_cost(), HASH_MEMORY_KIB_MAX),
            ('t', params.t_cost(), PASSES_MAX),
            ('p', params.p_cost(), LANES_MAX),
        ] {
            if value > value_max {
                return Err(HashFault::Costly { name, value, value_max });
            }
        }
        Ok(Self { hash, verifier: Argon2::new(Algorithm::Argon2id, Version::V0x13, params) })
    }

    /// The hash in PHC form.
    pub(super) fn text(&self) -> String {
        self.hash.to_string()
    }

    /// Whether this is the hash of `password`. Slow, and uses the memory of the hash's parameters.
    pub(super) fn verify(&self, password: &[u8]) -> bool {
        self.verifier.verify_password(password, &self.hash).is_ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use argon2::CustomizedPasswordHasher;

    /// A hash with minimal cost.
    pub(crate) fn hash(password: &str) -> String {
        let params = Params::new(8, 1, 1, None).unwrap();
        let salt = b"salt salt salt s";
        let hash: phc::PasswordHash =
            Argon2::default().hash_password_customized(password.as_bytes(), salt, None, Some(19), params).unwrap();
        hash.to_string()
    }

    #[test]
    fn a_hash_verifies_its_password_only() {
        let hash = PasswordHash::parse(&hash("secret")).unwrap();
        assert!(hash.verify(b"secret"));
        assert!(!hash.verify(b"secret "));
        assert!(!hash.verify(b""));
    }

    #[test]
    fn other_hashes_are_rejected() {
        let good = hash("secret");
        let fault = |text: &str| PasswordHash::parse(text).err();
        assert_eq!(fault(&good), None);
        assert_eq!(fault(""), Some(HashFault::NotPhc));
        assert_eq!(fault("secret"), Some(HashFault::NotPhc));
        assert_eq!(
            fault(&good.replace("argon2id", "argon2d")),
            Some(HashFault::Algorithm { found: "argon2d".to_owned() })
        );
        assert_eq!(fault(&good.replace("$v=19", "")), Some(HashFault::Version { found: 16 }));
        assert_eq!(fault(good.rsplit_once('$').unwrap().0), Some(HashFault::Incomplete));
        assert_eq!(
            fault(&good.replace("m=8", "m=262145")),
            Some(HashFault::Costly { name: 'm', value: 262_145, value_max: 262_144 })
        );
        assert_eq!(
            fault(&good.replace("t=1", "t=65")),
            Some(HashFault::Costly { name: 't', value: 65, value_max: 64 })
        );
        assert_eq!(fault(&good.replace("m=8", "m=1")), Some(HashFault::Params));
    }
}
