//! `[admin]`.

use std::net::{Ipv4Addr, SocketAddr};

use crate::config::schema::{Section, Shape};
use crate::config::value::{Address, DefaultTo, Key, Optional, Secret};

pub(in crate::config) static SECTION: Section = Section {
    key: "admin",
    title: "[admin]",
    about: "HTTP for the operator: `/live`, `/ready`, `/metrics`. Without this table there is no such port.",
    shape: Shape::Once,
    entries: &[&BIND, &TOKEN],
};

pub(in crate::config) static BIND: Key<Address, DefaultTo<SocketAddr>> = Key {
    name: "bind",
    form: Address,
    presence: DefaultTo(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 9180))),
    about: "where it listens; port 0 lets the system choose",
};

pub(in crate::config) static TOKEN: Key<Secret, Optional> = Key {
    name: "token",
    form: Secret,
    presence: Optional("none; required when `bind` is not a loopback address"),
    about: "what callers present as `Authorization: Bearer ..`, 16 to 1024 visible ASCII characters; `/live` and \
            `/ready` need none",
};
