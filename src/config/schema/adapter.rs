//! `[adapter]`.

use std::net::{Ipv4Addr, SocketAddr};

use crate::config::schema::{Section, Shape};
use crate::config::value::{Address, DefaultTo, Key};

pub(in crate::config) static SECTION: Section = Section {
    key: "adapter",
    title: "[adapter]",
    about: "The `ConnectionAdapter` service, which gRPC handlers call. It is there when a handler is of the kind \
            `grpc`, or when this table is.",
    shape: Shape::Once,
    entries: &[&BIND, &tls::SECTION],
};

pub(in crate::config) static BIND: Key<Address, DefaultTo<SocketAddr>> = Key {
    name: "bind",
    form: Address,
    presence: DefaultTo(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 9100))),
    about: "where it listens; port 0 lets the system choose",
};

pub(in crate::config) mod tls {
    use crate::config::schema::{Section, Shape};
    use crate::config::value::{FilePath, Key, Optional, Required};

    pub(in crate::config) static SECTION: Section = Section {
        key: "tls",
        title: "[adapter.tls]",
        about: "Makes the adapter's port speak TLS. All files are PEM.",
        shape: Shape::Once,
        entries: &[&CERT_FILE, &KEY_FILE, &CLIENT_CA_FILE],
    };

    pub(in crate::config) static CERT_FILE: Key<FilePath, Required> = Key {
        name: "cert_file",
        form: FilePath,
        presence: Required,
        about: "certificate of the adapter, with its chain",
    };

    pub(in crate::config) static KEY_FILE: Key<FilePath, Required> =
        Key { name: "key_file", form: FilePath, presence: Required, about: "private key of the certificate" };

    pub(in crate::config) static CLIENT_CA_FILE: Key<FilePath, Optional> = Key {
        name: "client_ca_file",
        form: FilePath,
        presence: Optional("no certificate is asked for"),
        about: "authorities that must have signed the certificate of whoever calls",
    };
}
