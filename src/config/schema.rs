//! What the user may write, key for key: its form, its range, its default and its meaning.
//!
//! Everything else reads from here: the checks which keys there are and what they default to, the
//! suggestions which words are known, the reference its tables. A key that is not here is refused.

use std::fmt;

use super::value::{Key, Presence, ValueType};

pub(super) mod adapter;
pub(super) mod admin;
pub(super) mod auth;
pub(super) mod broker;
pub(super) mod framing;
pub(super) mod gateway;
pub(super) mod handler;
pub(super) mod listener;

/// A table and the keys it may have.
pub(super) struct Section {
    /// The key under which the table is found.
    pub(super) key: &'static str,
    /// The table as errors and the reference name it.
    pub(super) title: &'static str,
    pub(super) about: &'static str,
    pub(super) shape: Shape,
    pub(super) entries: &'static [&'static dyn Entry],
}

impl fmt::Debug for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title)
    }
}

impl Section {
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.entries.iter().map(|entry| entry.name())
    }
}

/// How often a table may stand in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Once,
    /// An array of tables.
    Rows,
    /// A table of tables, whose keys are names that the user gives.
    Named,
}

/// A key as the reference shows it.
pub(super) trait Entry: Sync {
    fn name(&self) -> &'static str;

    /// Its columns: form, default, range, meaning.
    fn columns(&self) -> [String; 4];
}

impl<F: ValueType, P: Presence<F>> Entry for Key<F, P> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn columns(&self) -> [String; 4] {
        [self.form.name(), self.presence.describe(&self.form), self.form.range(), self.about.to_owned()]
    }
}

impl Entry for Section {
    fn name(&self) -> &'static str {
        self.key
    }

    fn columns(&self) -> [String; 4] {
        let form = match self.shape {
            Shape::Once => "table",
            Shape::Rows => "array of tables",
            Shape::Named => "table of tables",
        };
        [form.to_owned(), "absent".to_owned(), String::new(), format!("see `{}`", self.title)]
    }
}

/// The file itself.
pub(super) static ROOT: Section = Section {
    key: "",
    title: "the file",
    about: "",
    shape: Shape::Once,
    entries: &[
        &gateway::SECTION,
        &adapter::SECTION,
        &admin::SECTION,
        &broker::SECTION,
        &auth::SECTION,
        &handler::SECTION,
        &listener::SECTION,
    ],
};

/// All sections with keys of their own, in the order of the reference.
static SECTIONS: [&Section; 28] = [
    &gateway::SECTION,
    &adapter::SECTION,
    &adapter::tls::SECTION,
    &admin::SECTION,
    &broker::SECTION,
    &broker::listener::SECTION,
    &broker::mqtt::SECTION,
    &broker::mqtt::TLS,
    &auth::SECTION,
    &auth::user::SECTION,
    &auth::rule::SECTION,
    &handler::wasm::SECTION,
    &handler::grpc::SECTION,
    &handler::grpc::tls::SECTION,
    &listener::ONE,
    &listener::tls::SECTION,
    &listener::tls::certificate::SECTION,
    &listener::proxy::SECTION,
    &framing::SECTION,
    &framing::length::SECTION,
    &framing::delimiter::SECTION,
    &framing::fixed::SECTION,
    &framing::line::SECTION,
    &framing::escape::SECTION,
    &framing::gap::SECTION,
    &secret::SECTION,
    &isolation::SECTION,
    &swap::SECTION,
];

/// Where a secret is, when it is not in the file.
pub(super) mod secret {
    use super::{Section, Shape};
    use crate::config::value::{FilePath, Key, Optional, Text};

    pub(in crate::config) static SECTION: Section = Section {
        key: "",
        title: "Secrets",
        about: "Instead of a string, a secret may be a table with one of these keys. Secrets appear in no log and no \
                error.",
        shape: Shape::Once,
        entries: &[&ENV, &FILE],
    };

    pub(in crate::config) static ENV: Key<Text, Optional> = Key {
        name: "env",
        form: Text { expected: "the name of an environment variable", bytes: 1..=255 },
        presence: Optional("this or `file`"),
        about: "the environment variable that has it",
    };

    pub(in crate::config) static FILE: Key<FilePath, Optional> = Key {
        name: "file",
        form: FilePath,
        presence: Optional("this or `env`"),
        about: "the file that has it; a line break at its end does not count",
    };
}

/// How many instances a guest's connections share.
pub(super) mod isolation {
    use super::{Section, Shape};
    use crate::config::value::{Count, Key, Required};

    pub(in crate::config) static SECTION: Section = Section {
        key: "",
        title: "Isolation of guests",
        about: "Instead of `\"connection\"`, the isolation of a guest may be a table with this key. Each connection stays \
                with one of the instances; one event at a time is in an instance, so one that waits for `authenticate` \
                keeps the other connections of its instance waiting. A trap costs the connections of that instance \
                their state: each is introduced to a fresh instance, with `on-socket-created`, before its next event.",
        shape: Shape::Once,
        entries: &[&SHARED],
    };

    pub(in crate::config) static SHARED: Key<Count, Required> = Key {
        name: "shared",
        form: Count(1..=1024),
        presence: Required,
        about: "instances that serve all connections of the handler",
    };
}

/// The part of a canary.
pub(super) mod swap {
    use super::{Section, Shape};
    use crate::config::value::{Key, Percentage, Required};

    pub(in crate::config) static SECTION: Section = Section {
        key: "",
        title: "Canaries",
        about: "Instead of a word, the `swap` of a handler may be a table with this key: a new version is tried on a part \
                of the new connections until it is promoted or abandoned; see [hot swap](hot-swap.md).",
        shape: Shape::Once,
        entries: &[&CANARY],
    };

    pub(in crate::config) static CANARY: Key<Percentage, Required> =
        Key { name: "canary", form: Percentage, presence: Required, about: "the part of all new connections" };
}

/// All keys, as the tables of the reference in Markdown.
pub fn reference() -> String {
    let mut page = String::new();
    for section in SECTIONS {
        let heading = match section.title.starts_with('[') {
            true => format!("`{}`", section.title),
            false => section.title.to_owned(),
        };
        page += &format!(
            "## {heading}\n\n{}\n\n| key | form | default | range | meaning |\n| --- | --- | --- | --- | --- |\n",
            section.about
        );
        for entry in section.entries {
            let columns = entry.columns().map(|column| column.replace('|', "\\|"));
            page += &format!("| `{}` | {} |\n", entry.name(), columns.join(" | "));
        }
        page.push('\n');
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two keys of one name in one table would hide each other.
    #[test]
    fn names_are_unique() {
        for section in SECTIONS {
            let mut names: Vec<_> = section.names().collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), section.entries.len(), "{}", section.title);
        }
    }

    /// The sample shows every key there is, commented out where its default is good.
    #[test]
    fn the_sample_shows_every_key() {
        let sample = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/polygate.toml")).unwrap();
        for section in SECTIONS {
            for entry in section.entries {
                let name = entry.name();
                let shown = [format!("{name} = "), format!(".{name}]"), format!("[{name}"), format!("{name}.")];
                assert!(shown.iter().any(|shown| sample.contains(shown)), "{} of {}", name, section.title);
            }
        }
    }
}
