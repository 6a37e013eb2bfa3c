//! What the integration tests, benchmarks and fuzz targets of this repository use of the program. Not an API: it changes with them.

pub mod adapter {
    pub use crate::adapter::Services;
}
pub mod admin {
    pub use crate::admin::Token;
}
pub mod auth {
    pub use crate::auth::{Action, Auth, Effect, Options, Rule, User};
}
pub mod byte_budget {
    pub use crate::byte_budget::ByteBudget;
}
pub mod cli {
    pub use crate::cli::definition;
    pub mod replay {
        pub use crate::cli::replay::{Args, Error, run_to};
    }
}
pub mod config {
    pub use crate::config::{Advice, Config, ExternalFiles, Faults, Handler, Listener, Program, Warning};
    pub mod schema {
        pub use crate::config::schema::reference;
    }
}
pub mod conn {
    pub use crate::conn::{ClientInfo, CloseReason, ConnIds, Message, PeerAddr, QoS};
    pub mod registry {
        pub use crate::conn::registry::{
            DroppedMessages, Mail, MailReceiver, Mailbox, MessageBounds, MessageQuota, Registry,
        };
    }
}
pub mod connection {
    pub use crate::connection::{Common, Connections, Rates};
}
pub mod conversation {
    pub use crate::conversation::{Action, Conversation, FILE_BYTES_MAX, Payload};
    pub mod bless {
        pub use crate::conversation::bless::bless;
    }
    pub mod play {
        pub use crate::conversation::play::{
            BrokerUrl, GatewayAddr, MqttObserver, Options, Outcome, PlayError, Played, mqtt_observer, play, record,
        };
    }
    pub mod run {
        pub use crate::conversation::run::Replies;
    }
}
pub mod dispatch {
    pub use crate::dispatch::{Chain, ConnectionMigrator, OldConnections, Plan, Version, Versions};
}
pub mod drain {
    pub use crate::drain::Drain;
}
pub mod exproto {
    pub use crate::exproto::{proto, service};
}
pub mod framing {
    pub use crate::framing::{
        Broken, Delimited, Deliver, Escapes, Fixed, Flagged, Framer, Framing, LengthPrefixed, Lines, Order, Silence,
        Width,
    };
}
pub mod gateway {
    pub use crate::gateway::{Gateway, ReloadError, Reloaded, StartError};
}
pub mod handler {
    pub use crate::handler::Handler;
    pub mod grpc {
        pub use crate::handler::grpc::{Handler, Service};
    }
    pub mod wasm {
        pub use crate::handler::wasm::{Runtime, component};
    }
}
pub mod listener {
    pub use crate::listener::Listener;
    pub mod dtls {
        use bytes::Bytes;

        /// The cookie of a datagram that begins with a ClientHello, and the length of its record.
        pub fn hello(datagram: &[u8]) -> Option<(&[u8], usize)> {
            crate::listener::dtls::hello::read(datagram).map(|hello| (hello.cookie, hello.record_len))
        }

        /// The lengths of the records of a datagram.
        pub fn records(datagram: &Bytes) -> Vec<usize> {
            crate::listener::dtls::record_layer::records(datagram).map(|record| record.len).collect()
        }
    }
    pub mod psk {
        /// The number of keys in a file of pre-shared keys, or the error.
        pub fn parse(text: &str) -> Result<usize, String> {
            crate::listener::psk::Psks::parse(text).map(|psks| psks.len()).map_err(|error| error.to_string())
        }
    }
    pub mod access {
        pub use crate::listener::access::{Access, Effect};
    }
    pub mod flow {
        pub use crate::listener::flow::{Bounds, FlowId, Full, Key, Queue, QueueFull, Table, split};
    }
    pub mod per_address {
        pub use crate::listener::per_address::Limits;
    }
    pub mod proxy {
        pub use crate::listener::proxy::{BYTES_MAX, Scan, scan};
    }
}
pub mod mqtt {
    pub use crate::mqtt::{Packet, Reason, Version};
    pub mod decode {
        pub use crate::mqtt::decode::Decoder;
    }
    pub mod packet {
        pub use crate::mqtt::packet::{Ack, ConnAck, Publish, UnsubAck};
    }
}
pub mod percent {
    pub use crate::percent::Percent;
}
pub mod pubsub {
    pub use crate::pubsub::{Error, PubSub, Session};
    pub mod embedded {
        pub use crate::pubsub::embedded::{Broker, Durability, Options};
    }
}
pub mod rate {
    pub use crate::rate::Rate;
}
pub mod rollout {
    pub use crate::rollout::{
        Candidate, ChangeResult, Error, FAILURES_MIN, Initiator, RolloutManager, Swap, VersionState,
    };
}
pub mod serve {
    pub use crate::serve::{ListenerShutdown, serve};
}
pub mod tap {
    pub use crate::tap::Taps;
}
pub mod telemetry {
    pub use crate::telemetry::{LogFormat, Telemetry, start_log};
}
pub mod topic {
    /// Whether a text is a topic name.
    pub fn is_name(text: &str) -> bool {
        crate::topic::check_name(text).is_ok()
    }

    /// The topic filter that a text has behind an optional `$share/GROUP/`.
    pub fn filter(text: &str) -> Option<&str> {
        crate::topic::parse_filter(text).ok().map(|filter| filter.filter)
    }

    pub fn matches(filter: &str, name: &str) -> bool {
        crate::topic::matches(filter, name)
    }

    pub fn covers(general: &str, specific: &str) -> bool {
        crate::topic::covers(general, specific)
    }

    pub fn overlaps(one: &str, other: &str) -> bool {
        crate::topic::overlaps(one, other)
    }
}
