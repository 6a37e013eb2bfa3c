//! Index of a handler's versions. Pure: [`Store`](super::store::Store) reads and writes it.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Maximum number of kept versions, besides those in use.
pub(super) const KEPT_MAX: usize = 10;

/// Format number of the index.
const FORMAT: u32 = 1;

/// Origin of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Configuration file.
    Configuration,
    /// Upload to the admin API.
    Upload,
}

/// Artifact of a version, without options: those are the configuration's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Artifact {
    Wasm {
        /// Digest of the component, hexadecimal.
        sha256: String,
    },
    Grpc {
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

/// Record of one version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// From 1; never reused.
    pub number: u32,
    pub origin: Origin,
    /// Initiator.
    pub by: String,
    /// Creation time, in seconds since 1970.
    pub at_s: u64,
    #[serde(flatten)]
    pub what: Artifact,
}

/// Versions of one handler, persistent over restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    format: u32,
    /// Number of the next version.
    pub(super) next: u32,
    /// The active version.
    pub(super) active: u32,
    /// The version that was active before it.
    pub(super) previous: Option<u32>,
    /// Artifact that the configuration named at the last start or reload. While it names the same, the version that the
    /// operator has activated since stays active.
    pub(super) configured: Artifact,
    /// Oldest first.
    pub(super) versions: Vec<Record>,
}

impl Index {
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

    /// Parses the text of [`Index::write`].
    ///
    /// # Errors
    ///
    /// A description of the fault, for the log.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let index: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if index.format != FORMAT {
            return Err(format!("expected format {FORMAT}, found {}", index.format));
        }
        let numbers: BTreeSet<u32> = index.versions.iter().map(|record| record.number).collect();
        if numbers.len() != index.versions.len() || numbers.last().is_none_or(|last| *last >= index.next) {
            return Err("version numbers are not unique or not below the next number".to_owned());
        }
        if !numbers.contains(&index.active) || index.previous.is_some_and(|number| !numbers.contains(&number)) {
            return Err("no record of the active or previous version".to_owned());
        }
        let digests = index.digests().into_iter().chain(index.configured.digest());
        // A digest becomes part of a file name.
        for digest in digests {
            if digest.len() != 64 || !digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
                return Err("expected a digest of 64 hexadecimal digits".to_owned());
            }
        }
        Ok(index)
    }

    ///
    /// # Errors
    ///
    /// Never for an index of this program.
    pub(super) fn write(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    pub(super) fn record(&self, number: u32) -> Option<&Record> {
        self.versions.iter().find(|record| record.number == number)
    }

    /// Digests of all components in use.
    pub(super) fn digests(&self) -> BTreeSet<&str> {
        self.versions.iter().filter_map(|record| record.what.digest()).collect()
    }

    pub(super) fn add(&mut self, record: Record) {
        self.next = self.next.max(record.number.saturating_add(1));
        self.versions.push(record);
    }

    pub(super) fn activate(&mut self, number: u32) {
        if self.active != number {
            self.previous = Some(std::mem::replace(&mut self.active, number));
        }
    }

    /// Removes the oldest versions above [`KEPT_MAX`]; those in use stay.
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
        /// For any sequence of changes, numbers are never reused, the active and the previous version have a record,
        /// versions in use stay, and the index round-trips.
        #[test]
        fn the_index_round_trips(steps in steps()) {
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

        /// No content of the file causes a panic.
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

    /// Damage is described in words; a digest that leads out of the directory is rejected.
    #[test]
    fn damage_in_words() {
        let index = Index::new(record(3, 7));
        let text = index.write().unwrap();
        let error = |text: String| Index::read(&text).unwrap_err();
        assert_eq!(error(text.replace("\"format\": 1", "\"format\": 2")), "expected format 1, found 2");
        assert_eq!(
            error(text.replace("\"active\": 3", "\"active\": 2")),
            "no record of the active or previous version"
        );
        assert!(error(text.replace("\"next\": 4", "\"next\": 3")).starts_with("version numbers"));
        assert_eq!(error(text.replace("0707", "../.")), "expected a digest of 64 hexadecimal digits");
        assert!(error(text[..text.len() / 2].to_owned()).starts_with("EOF"));
    }
}
