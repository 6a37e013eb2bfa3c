//! What is known of a handler's versions. Pure: the disk is [`Store`](super::store::Store)'s.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Versions that are kept besides those that are in use.
pub(super) const KEPT_MAX: usize = 10;

/// The form of the index that this program writes.
const FORMAT: u32 = 1;

/// Where a version came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The configuration names it.
    Configuration,
    /// Somebody gave it to the admin port.
    Upload,
}

/// What a version is, without its options: those are the configuration's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Artifact {
    /// A component.
    Wasm {
        /// Its digest, in hexadecimal digits.
        sha256: String,
    },
    /// gRPC servers.
    Grpc {
        /// Where they are.
        urls: Vec<String>,
    },
}

impl Artifact {
    /// The digest of a component.
    pub(super) fn digest(&self) -> Option<&str> {
        match self {
            Self::Wasm { sha256 } => Some(sha256),
            Self::Grpc { .. } => None,
        }
    }
}

impl fmt::Display for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wasm { sha256 } => write!(f, "wasm {}", sha256.get(..12).unwrap_or(sha256)),
            Self::Grpc { urls } => write!(f, "grpc {}", urls.join(", ")),
        }
    }
}

/// One version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Its number, from 1; never used twice.
    pub number: u32,
    /// Where it came from.
    pub origin: Origin,
    /// Who brought it.
    pub by: String,
    /// When, in seconds since 1970.
    pub at_s: u64,
    /// What it is.
    #[serde(flatten)]
    pub what: Artifact,
}

/// The versions of one handler, over restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    format: u32,
    /// The next version's number.
    pub(super) next: u32,
    /// Which is active.
    pub(super) active: u32,
    /// Which was, before it.
    pub(super) previous: Option<u32>,
    /// What the configuration named when it was last looked at. As long as it names the same, the active version is
    /// what the operator has made active since.
    pub(super) configured: Artifact,
    /// Oldest first.
    pub(super) versions: Vec<Record>,
}

impl Index {
    /// A handler with its first version.
    pub(super) fn new(first: Record) -> Self {
        Self {
            format: FORMAT,
            next: first.number.saturating_add(1),
            active: first.number,
            previous: None,
            configured: first.what.clone(),
            versions: vec![first],
        }
    }

    /// Reads what [`Index::write`] gave.
    ///
    /// # Errors
    ///
    /// What is wrong with the text, for the log.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let index: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if index.format != FORMAT {
            return Err(format!("its format is {}; expected {FORMAT}", index.format));
        }
        let numbers: BTreeSet<u32> = index.versions.iter().map(|record| record.number).collect();
        if numbers.len() != index.versions.len() || numbers.last().is_none_or(|last| *last >= index.next) {
            return Err("the numbers of its versions are not each its own and below the next".to_owned());
        }
        if !numbers.contains(&index.active) || index.previous.is_some_and(|number| !numbers.contains(&number)) {
            return Err("it has no record of its active or previous version".to_owned());
        }
        let digests = index.digests().into_iter().chain(index.configured.digest());
        // A digest is a part of a file's name.
        for digest in digests {
            if digest.len() != 64 || !digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
                return Err("a digest is not of 64 hexadecimal digits".to_owned());
            }
        }
        Ok(index)
    }

    /// As text.
    ///
    /// # Errors
    ///
    /// There is no such index.
    pub(super) fn write(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    /// One version.
    pub(super) fn record(&self, number: u32) -> Option<&Record> {
        self.versions.iter().find(|record| record.number == number)
    }

    /// The components that its versions are made of.
    pub(super) fn digests(&self) -> BTreeSet<&str> {
        self.versions.iter().filter_map(|record| record.what.digest()).collect()
    }

    /// A version becomes known.
    pub(super) fn add(&mut self, record: Record) {
        self.next = self.next.max(record.number.saturating_add(1));
        self.versions.push(record);
    }

    /// A version becomes active.
    pub(super) fn activate(&mut self, number: u32) {
        if self.active != number {
            self.previous = Some(std::mem::replace(&mut self.active, number));
        }
    }

    /// Forgets the oldest that are too many; those in use stay.
    pub(super) fn prune(&mut self, in_use: &BTreeSet<u32>) {
        let stays = |index: &Self, number: u32| {
            in_use.contains(&number) || number == index.active || Some(number) == index.previous
        };
        let spare: Vec<u32> =
            self.versions.iter().map(|record| record.number).filter(|number| !stays(self, *number)).collect();
        let forgotten: BTreeSet<u32> = spare.iter().rev().skip(KEPT_MAX).copied().collect();
        self.versions.retain(|record| !forgotten.contains(&record.number));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(number: u32, digest: u8) -> Record {
        let what = Artifact::Wasm { sha256: format!("{digest:02x}").repeat(32) };
        Record { number, origin: Origin::Upload, by: "admin 127.0.0.1:1".to_owned(), at_s: 1, what }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(u8),
        Activate(prop::sample::Index),
        Prune(Vec<prop::sample::Index>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => any::<u8>().prop_map(Step::Add),
            2 => any::<prop::sample::Index>().prop_map(Step::Activate),
            1 => prop::collection::vec(any::<prop::sample::Index>(), 0..3).prop_map(Step::Prune),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        /// Whatever happens, numbers are never used twice, the active version and the one before it are known, what is in
        /// use stays, and what is written is read again.
        #[test]
        fn what_is_written_is_read(steps in steps()) {
            let mut index = Index::new(record(1, 0));
            for step in steps {
                let numbers: Vec<u32> = index.versions.iter().map(|record| record.number).collect();
                match step {
                    Step::Add(digest) => index.add(record(index.next, digest)),
                    Step::Activate(which) => index.activate(*which.get(&numbers)),
                    Step::Prune(used) => {
                        let in_use: BTreeSet<u32> = used.iter().map(|which| *which.get(&numbers)).collect();
                        index.prune(&in_use);
                        prop_assert!(in_use.iter().all(|number| index.record(*number).is_some()));
                        prop_assert!(index.versions.len() <= KEPT_MAX + 2 + in_use.len());
                    }
                }
                prop_assert_eq!(Index::read(&index.write().unwrap()), Ok(index.clone()));
            }
        }

        /// Whatever is found on the disk, nothing panics.
        #[test]
        fn damage_is_found(at in any::<prop::sample::Index>(), byte: u8) {
            let mut bytes = Index::new(record(1, 7)).write().unwrap().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(index) = Index::read(&String::from_utf8_lossy(&bytes)) {
                prop_assert!(index.record(index.active).is_some());
            }
        }
    }

    /// What is not an index is told in words; a digest that leads out of the directory is no digest.
    #[test]
    fn damage_in_words() {
        let index = Index::new(record(3, 7));
        let text = index.write().unwrap();
        let told = |text: String| Index::read(&text).unwrap_err();
        assert_eq!(told(text.replace("\"format\": 1", "\"format\": 2")), "its format is 2; expected 1");
        assert_eq!(
            told(text.replace("\"active\": 3", "\"active\": 2")),
            "it has no record of its active or previous version"
        );
        assert!(told(text.replace("\"next\": 4", "\"next\": 3")).starts_with("the numbers"));
        assert_eq!(told(text.replace("0707", "../.")), "a digest is not of 64 hexadecimal digits");
        assert!(told(text[..text.len() / 2].to_owned()).starts_with("EOF"));
    }
}
