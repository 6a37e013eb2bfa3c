//! `[gateway]`.

use std::time::Duration;

use crate::config::schema::{Section, Shape};
use crate::config::value::{Count, DefaultTo, FilePath, Key, Optional, Span, Text};

pub(in crate::config) static SECTION: Section = Section {
    key: "gateway",
    title: "[gateway]",
    about: "The process as a whole.",
    shape: Shape::Once,
    entries: &[&NODE, &DATA_DIR, &DRAIN_TIMEOUT, &CONNECTIONS_MAX],
};

pub(in crate::config) static NODE: Key<Text, Optional> = Key {
    name: "node",
    form: Text { expected: "a name such as \"gw-1\"", bytes: 1..=255 },
    presence: Optional("the host name"),
    about: "the name of this gateway, in `Message.node`",
};

pub(in crate::config) static DATA_DIR: Key<FilePath, DefaultTo<String>> = Key {
    name: "data_dir",
    form: FilePath,
    presence: DefaultTo(|| "polygate-data".to_owned()),
    about: "directory of what the gateway keeps, such as compiled components; made when it is absent; nobody else may \
            write to it",
};

pub(in crate::config) static DRAIN_TIMEOUT: Key<Span, DefaultTo<Duration>> = Key {
    name: "drain_timeout",
    form: Span(Duration::ZERO..=Duration::from_secs(3600)),
    presence: DefaultTo(|| Duration::from_secs(30)),
    about: "how long connections may take to end when the gateway stops",
};

pub(in crate::config) static CONNECTIONS_MAX: Key<Count, Optional> = Key {
    name: "connections_max",
    form: Count(1..=100_000_000),
    presence: Optional("what the limit on descriptors leaves"),
    about: "connections of all listeners for tcp and tls at a time, each of which takes a descriptor; more peers wait in the \
            backlog",
};
