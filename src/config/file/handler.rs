//! `[handlers.NAME]`, of each kind.

use std::time::Duration;

use crate::config::file::{Section, Shape};
use crate::config::form::{Choice, Key, Otherwise, Required, Span};
use crate::dispatch::OnFailure;

/// The kinds of handler there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Kind {
    Wasm,
    Grpc,
}

pub(in crate::config) static SECTION: Section =
    Section { key: "handlers", title: "[handlers.NAME]", about: "", shape: Shape::Named, entries: &[] };

pub(in crate::config) static KIND: Key<Choice<Kind>, Required> = Key {
    name: "kind",
    form: Choice(&[("wasm", Kind::Wasm), ("grpc", Kind::Grpc)]),
    presence: Required,
    about: "what the handler is",
};

pub(in crate::config) static ON_FAILURE: Key<Choice<OnFailure>, Otherwise<OnFailure>> = Key {
    name: "on_failure",
    form: Choice(&[("fallback", OnFailure::Fallback), ("close", OnFailure::Close)]),
    presence: Otherwise(|| OnFailure::Fallback),
    about: "`fallback`: hold and retry, a fresh start, then the next handler of the listener; `close`: end the connection at the first failure, as EMQX does",
};

pub(in crate::config) static HOLD_TIMEOUT: Key<Span, Otherwise<Duration>> = Key {
    name: "hold_timeout",
    form: Span(Duration::from_millis(1)..=Duration::from_secs(3600)),
    presence: Otherwise(|| Duration::from_secs(30)),
    about: "how long an event is held and tried again while the handler cannot be reached",
};

pub(in crate::config) mod wasm {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use crate::config::file::{Section, Shape};
    use crate::config::form::{FilePath, IsolationForm, Key, Otherwise, Required, Size, Span, Texts};
    use crate::handler::wasm::Isolation;

    pub(in crate::config) static SECTION: Section = Section {
        key: "handlers",
        title: "[handlers.NAME] of kind \"wasm\"",
        about: "A guest: a WebAssembly component that runs in the gateway.",
        shape: Shape::Named,
        entries: &[
            &super::KIND,
            &COMPONENT,
            &ISOLATION,
            &MEMORY_MAX,
            &EVENT_TIMEOUT,
            &SETTINGS,
            &super::ON_FAILURE,
            &super::HOLD_TIMEOUT,
        ],
    };

    pub(in crate::config) static COMPONENT: Key<FilePath, Required> = Key {
        name: "component",
        form: FilePath,
        presence: Required,
        about: "a component, or a core module with component metadata",
    };

    pub(in crate::config) static ISOLATION: Key<IsolationForm, Otherwise<Isolation>> = Key {
        name: "isolation",
        form: IsolationForm,
        presence: Otherwise(|| Isolation::Connection),
        about: "`\"connection\"`: every connection has an instance of its own; `{ shared = N }`: N instances serve all of them",
    };

    pub(in crate::config) static MEMORY_MAX: Key<Size, Otherwise<usize>> = Key {
        name: "memory_max",
        // From one page to all that 32-bit WebAssembly can address.
        form: Size(65_536..=1 << 32),
        presence: Otherwise(|| 16 << 20),
        about: "linear memory of one instance",
    };

    pub(in crate::config) static EVENT_TIMEOUT: Key<Span, Otherwise<Duration>> = Key {
        name: "event_timeout",
        // A guest's time is counted in steps of 10 ms.
        form: Span(Duration::from_millis(10)..=Duration::from_secs(60)),
        presence: Otherwise(|| Duration::from_secs(1)),
        about: "CPU time of one event",
    };

    pub(in crate::config) static SETTINGS: Key<Texts, Otherwise<BTreeMap<String, String>>> = Key {
        name: "settings",
        form: Texts,
        presence: Otherwise(BTreeMap::new),
        about: "what the guest reads with `setting`; no place for secrets",
    };
}

pub(in crate::config) mod grpc {
    use std::time::Duration;

    use crate::config::file::{Section, Shape};
    use crate::config::form::{Choice, Count, Key, List, Optional, Otherwise, Span, Text};
    use crate::handler::grpc::Service;

    pub(in crate::config) static SECTION: Section = Section {
        key: "handlers",
        title: "[handlers.NAME] of kind \"grpc\"",
        about: "A gRPC server that speaks ExProto.",
        shape: Shape::Named,
        entries: &[
            &super::KIND,
            &URL,
            &URLS,
            &SERVICE,
            &CALL_TIMEOUT,
            &CHANNELS,
            &super::ON_FAILURE,
            &super::HOLD_TIMEOUT,
            &tls::SECTION,
        ],
    };

    const ADDRESS: Text = Text { expected: "a url such as \"http://127.0.0.1:9001\"", bytes: 1..=2048 };

    pub(in crate::config) static URL: Key<Text, Optional> = Key {
        name: "url",
        form: ADDRESS,
        presence: Optional("this or `urls`"),
        about: "where the server is: `http://` or `https://`, a host name or IP address, a port",
    };

    pub(in crate::config) static URLS: Key<List<Text>, Optional> = Key {
        name: "urls",
        form: List { of: ADDRESS, one: "url" },
        presence: Optional("this or `url`"),
        about: "several servers, over which devices are spread",
    };

    pub(in crate::config) static SERVICE: Key<Choice<Service>, Otherwise<Service>> = Key {
        name: "service",
        form: Choice(&[
            ("auto", Service::Auto),
            ("ConnectionUnaryHandler", Service::Unary),
            ("ConnectionHandler", Service::Streaming),
        ]),
        presence: Otherwise(|| Service::Auto),
        about: "which of ExProto's services the servers have; `auto` finds it out",
    };

    pub(in crate::config) static CALL_TIMEOUT: Key<Span, Otherwise<Duration>> = Key {
        name: "call_timeout",
        form: Span(Duration::from_millis(1)..=Duration::from_secs(600)),
        presence: Otherwise(|| Duration::from_secs(10)),
        about: "how long the answer to one event may take",
    };

    pub(in crate::config) static CHANNELS: Key<Count, Otherwise<u32>> = Key {
        name: "channels",
        form: Count(1..=64),
        presence: Otherwise(|| 2),
        about: "HTTP/2 connections for each url, of at most 150 calls at a time",
    };

    pub(in crate::config) mod tls {
        use crate::config::file::{Section, Shape};
        use crate::config::form::{FilePath, Key, Optional, Text};

        pub(in crate::config) static SECTION: Section = Section {
            key: "tls",
            title: "[handlers.NAME.tls]",
            about: "Certificates for `https://` urls. All files are PEM.",
            shape: Shape::Once,
            entries: &[&CA_FILE, &CERT_FILE, &KEY_FILE, &SERVER_NAME],
        };

        pub(in crate::config) static CA_FILE: Key<FilePath, Optional> = Key {
            name: "ca_file",
            form: FilePath,
            presence: Optional("the system's authorities"),
            about: "authorities that may have signed the server's certificate",
        };

        pub(in crate::config) static CERT_FILE: Key<FilePath, Optional> = Key {
            name: "cert_file",
            form: FilePath,
            presence: Optional("none"),
            about: "the gateway's own certificate with its chain, for a server that asks for one",
        };

        pub(in crate::config) static KEY_FILE: Key<FilePath, Optional> = Key {
            name: "key_file",
            form: FilePath,
            presence: Optional("none; needed with `cert_file`"),
            about: "private key of that certificate",
        };

        pub(in crate::config) static SERVER_NAME: Key<Text, Optional> = Key {
            name: "server_name",
            form: Text { expected: "a host name", bytes: 1..=253 },
            presence: Optional("the url's host"),
            about: "the name that the server's certificate must have",
        };
    }
}
