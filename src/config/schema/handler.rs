//! `[handlers.NAME]`, of each kind.

use std::time::Duration;

use crate::config::schema::{Section, Shape};
use crate::config::value::{Choice, DefaultTo, Key, Percentage, Required, Span, SwapForm};
use crate::dispatch::OnFailure;
use crate::percent::Percent;
use crate::rollout::Swap;

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

pub(in crate::config) static ON_FAILURE: Key<Choice<OnFailure>, DefaultTo<OnFailure>> = Key {
    name: "on_failure",
    form: Choice(&[("fallback", OnFailure::Fallback), ("close", OnFailure::Close)]),
    presence: DefaultTo(|| OnFailure::Fallback),
    about: "`fallback`: hold and retry, a fresh start, then the next handler of the listener; `close`: end the connection at the first failure, as EMQX does",
};

pub(in crate::config) static HOLD_TIMEOUT: Key<Span, DefaultTo<Duration>> = Key {
    name: "hold_timeout",
    form: Span(Duration::from_millis(1)..=Duration::from_secs(3600)),
    presence: DefaultTo(|| Duration::from_secs(30)),
    about: "how long an event is held and tried again while the handler cannot be reached",
};

pub(in crate::config) static SWAP: Key<SwapForm, DefaultTo<Swap>> = Key {
    name: "swap",
    form: SwapForm,
    presence: DefaultTo(|| Swap::Live),
    about: "how a new version takes over: `\"live\"`: connections move to it between two events; `\"new-connections\"`: it gets the new ones; `{ canary = \"5%\" }`: it is tried on a part of the new ones; `\"shadow\"`: it is tried on the same events without effect",
};

pub(in crate::config) static ROLLBACK_THRESHOLD: Key<Percentage, DefaultTo<Percent>> = Key {
    name: "rollback_threshold",
    form: Percentage,
    presence: DefaultTo(|| Percent::new(500)),
    about: "failed events of a new version, of all its events, over which the last version comes back by itself; it takes five failures at least; 100% for never",
};

pub(in crate::config) static ROLLBACK_WINDOW: Key<Span, DefaultTo<Duration>> = Key {
    name: "rollback_window",
    form: Span(Duration::from_millis(100)..=Duration::from_secs(24 * 3600)),
    presence: DefaultTo(|| Duration::from_secs(60)),
    about: "how long a new version is watched for that; one that is tried is watched until it is promoted or abandoned",
};

pub(in crate::config) mod wasm {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use crate::config::schema::{Section, Shape};
    use crate::config::value::{
        Count, DefaultTo, FilePath, IsolationForm, Key, Optional, Paths, Required, Size, Span, Texts,
    };
    use crate::handler::wasm::{self, Bounds, EventBudget, Isolation};

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
            &EVENT_PUBLISHES_MAX,
            &EVENT_SENT_MAX,
            &EVENT_LOG_LINES_MAX,
            &SETTINGS,
            &super::ON_FAILURE,
            &super::HOLD_TIMEOUT,
            &super::SWAP,
            &super::ROLLBACK_THRESHOLD,
            &super::ROLLBACK_WINDOW,
            &COMPILE_TIMEOUT,
            &COMPILE_MEMORY_MAX,
            &CONVERSATIONS,
        ],
    };

    pub(in crate::config) static COMPONENT: Key<FilePath, Required> = Key {
        name: "component",
        form: FilePath,
        presence: Required,
        about: "a component, or a core module with component metadata or with exports named after `wit/handler.wit`",
    };

    pub(in crate::config) static ISOLATION: Key<IsolationForm, DefaultTo<Isolation>> = Key {
        name: "isolation",
        form: IsolationForm,
        presence: DefaultTo(|| Isolation::Connection),
        about: "`\"connection\"`: every connection has an instance of its own; `{ shared = N }`: N instances serve all of them",
    };

    pub(in crate::config) static MEMORY_MAX: Key<Size, DefaultTo<usize>> = Key {
        name: "memory_max",
        // From one page to all that 32-bit WebAssembly can address.
        form: Size(65_536..=1 << 32),
        presence: DefaultTo(|| wasm::MEMORY_BYTES_DEFAULT),
        about: "linear memory of one instance",
    };

    pub(in crate::config) static EVENT_TIMEOUT: Key<Span, DefaultTo<Duration>> = Key {
        name: "event_timeout",
        // A guest's time is counted in steps of 10 ms.
        form: Span(Duration::from_millis(10)..=Duration::from_secs(60)),
        presence: DefaultTo(|| wasm::EVENT_TIMEOUT_DEFAULT),
        about: "CPU time of one event",
    };

    pub(in crate::config) static EVENT_PUBLISHES_MAX: Key<Count, DefaultTo<u32>> = Key {
        name: "event_publishes_max",
        form: Count(1..=1_000_000),
        presence: DefaultTo(|| EventBudget::default().publishes_max),
        about: "messages that one event may publish; the rest are refused as overloaded",
    };

    pub(in crate::config) static EVENT_SENT_MAX: Key<Size, DefaultTo<usize>> = Key {
        name: "event_sent_max",
        form: Size(1024..=1 << 30),
        presence: DefaultTo(|| EventBudget::default().sent_bytes_max),
        about: "bytes that one event may send to its device; the rest are refused as overloaded",
    };

    pub(in crate::config) static EVENT_LOG_LINES_MAX: Key<Count, DefaultTo<u32>> = Key {
        name: "event_log_lines_max",
        form: Count(1..=10_000),
        presence: DefaultTo(|| EventBudget::default().log_lines_max),
        about: "lines that one event may log; the rest are left out and counted",
    };

    pub(in crate::config) static SETTINGS: Key<Texts, DefaultTo<BTreeMap<String, String>>> = Key {
        name: "settings",
        form: Texts,
        presence: DefaultTo(BTreeMap::new),
        about: "what the guest reads with `setting`; no place for secrets",
    };

    pub(in crate::config) static COMPILE_TIMEOUT: Key<Span, DefaultTo<Duration>> = Key {
        name: "compile_timeout",
        form: Span(Duration::from_secs(1)..=Duration::from_secs(3600)),
        presence: DefaultTo(|| Bounds::default().timeout),
        about: "how long a version of the guest may take to compile",
    };

    pub(in crate::config) static COMPILE_MEMORY_MAX: Key<Size, DefaultTo<usize>> = Key {
        name: "compile_memory_max",
        form: Size((64 << 20)..=(1 << 40)),
        presence: DefaultTo(|| Bounds::default().memory_bytes_max as usize),
        about: "memory of the process that compiles it",
    };

    pub(in crate::config) static CONVERSATIONS: Key<Paths, Optional> = Key {
        name: "conversations",
        form: Paths,
        presence: Optional("none"),
        about: "recorded conversations, files or folders, that a new version must do as recorded, however the device's bytes are cut, before it is made active",
    };
}

pub(in crate::config) mod grpc {
    use std::time::Duration;

    use crate::config::schema::{Section, Shape};
    use crate::config::value::{Choice, Count, DefaultTo, Key, List, Optional, Span, Text};
    use crate::handler::grpc::{self, Service, Streams};

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
            &STREAMS,
            &CHANNELS_MAX,
            &MESSAGES_PER_CALL,
            &super::ON_FAILURE,
            &super::HOLD_TIMEOUT,
            &super::SWAP,
            &super::ROLLBACK_THRESHOLD,
            &super::ROLLBACK_WINDOW,
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

    pub(in crate::config) static SERVICE: Key<Choice<Service>, DefaultTo<Service>> = Key {
        name: "service",
        form: Choice(&[
            ("auto", Service::Auto),
            ("ConnectionUnaryHandler", Service::Unary),
            ("ConnectionHandler", Service::Streaming),
        ]),
        presence: DefaultTo(|| Service::Auto),
        about: "which of ExProto's services the servers have; `auto` finds it out",
    };

    pub(in crate::config) static CALL_TIMEOUT: Key<Span, DefaultTo<Duration>> = Key {
        name: "call_timeout",
        form: Span(Duration::from_millis(1)..=Duration::from_secs(600)),
        presence: DefaultTo(|| grpc::CALL_TIMEOUT_DEFAULT),
        about: "how long the answer to one event may take",
    };

    pub(in crate::config) static CHANNELS: Key<Count, DefaultTo<u32>> = Key {
        name: "channels",
        form: Count(1..=64),
        presence: DefaultTo(|| grpc::CHANNELS_DEFAULT as u32),
        about: "HTTP/2 connections for each url, of at most 150 calls at a time",
    };

    pub(in crate::config) static STREAMS: Key<Choice<Streams>, Optional> = Key {
        name: "streams",
        form: Choice(&[("per-connection", Streams::PerConnection), ("per-event", Streams::PerEvent)]),
        presence: Optional("detected: `\"per-connection\"` for servers that stream"),
        about: "streams of `ConnectionHandler`: one for each callback of a device, as EMQX has them, or one for each event, which acknowledges it",
    };

    pub(in crate::config) static CHANNELS_MAX: Key<Count, DefaultTo<u32>> = Key {
        name: "channels_max",
        form: Count(1..=10_000),
        presence: DefaultTo(|| grpc::CHANNELS_MAX_DEFAULT as u32),
        about: "limit of HTTP/2 connections for each url, where the open streams of devices need more than `channels`",
    };

    pub(in crate::config) static MESSAGES_PER_CALL: Key<Count, DefaultTo<u32>> = Key {
        name: "messages_per_call",
        form: Count(1..=1_000),
        presence: DefaultTo(|| grpc::MESSAGES_PER_CALL_DEFAULT as u32),
        about: "messages in one `OnReceivedMessages`; more than 1 is for handlers that iterate over `messages`",
    };

    pub(in crate::config) mod tls {
        use crate::config::schema::{Section, Shape};
        use crate::config::value::{FilePath, Key, Optional, Text};

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
