//! CONNECT and its answer.

use std::time::{Duration, Instant};

use crate::auth::{Credentials, Origin};
use crate::conn::{Denied, Password, PeerAddr, Refused};
use crate::mqtt::packet::{ConnAck, Connect};
use crate::mqtt::{Packet, Reason, Version};
use crate::mqtt_stream::PacketStream;
use crate::pubsub::embedded::clients::{Attach, Attached};
use crate::topic;

use super::Context;
use super::connection::End;

/// The longest client id, in bytes.
const CLIENT_ID_BYTES_MAX: usize = 1024;

/// What a CONNECT has agreed on.
pub(super) struct Session {
    pub(super) attached: Attached,
    pub(super) version: Version,
    pub(super) username: Box<str>,
    pub(super) keepalive: Option<Duration>,
    pub(super) expiry: ExpiryTerms,
    /// The peer's.
    pub(super) topic_alias_max: u16,
    /// The peer's.
    pub(super) packet_bytes_max: usize,
}

/// What was agreed on about the session's expiry.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpiryTerms {
    /// Whether the client has no user name, so that its session may not last long.
    pub(super) anonymous: bool,
    /// Whether the client has asked for a session that ends with its connection.
    pub(super) asked_zero: bool,
}

/// Reads CONNECT, decides, and appends the CONNACK of a success to what is to be written.
///
/// # Errors
///
/// Why the client is refused; see [`refuse`].
pub(super) async fn connect(context: &Context, wire: &mut PacketStream, peer: PeerAddr) -> Result<Session, End> {
    let Packet::Connect(mut connect) = wire.packet().await? else {
        return Err(End::Refused(Reason::PROTOCOL_ERROR, "the first packet is not a CONNECT"));
    };
    let settings = &context.settings;
    let version = connect.version;
    if connect.authentication_method.is_some() {
        let what = "CONNECT has an authentication method, and there is none";
        return Err(End::Refused(Reason::BAD_AUTHENTICATION_METHOD, what));
    }
    if connect.client_id.len() > CLIENT_ID_BYTES_MAX {
        return Err(End::Refused(Reason::CLIENT_ID_INVALID, "the client id has more than 1024 bytes"));
    }
    let mut assigned = None;
    if connect.client_id.is_empty() {
        // MQTT 3.1.1 section 3.1.3.1.
        if version == Version::V311 && !connect.clean_start {
            return Err(End::Refused(Reason::CLIENT_ID_INVALID, "a session that is kept needs a client id"));
        }
        let random = getrandom::u64()
            .map_err(|_| End::Refused(Reason::SERVER_UNAVAILABLE, "the system's random generator failed"))?;
        connect.client_id = format!("auto-{random:016x}").into();
        assigned = (version == Version::V5).then(|| connect.client_id.clone());
    }
    let username: Box<str> = connect.username.take().unwrap_or_default();
    authenticate(context, &connect, &username, peer).await?;
    check_will(context, &connect, &username)?;

    let asked_s = match (version, connect.clean_start) {
        (Version::V5, _) => connect.session_expiry_s.unwrap_or(0),
        (Version::V311, true) => 0,
        (Version::V311, false) => u32::MAX,
    };
    let terms = ExpiryTerms { anonymous: username.is_empty(), asked_zero: asked_s == 0 };
    let expiry = settings.expiry(asked_s, terms.anonymous);
    let attached = attach(
        context,
        Attach {
            client_id: &connect.client_id,
            username: &username,
            clean_start: connect.clean_start,
            receive_max: connect.receive_max.unwrap_or(u16::MAX),
            expiry,
            will: connect.will.take(),
        },
    )
    .map_err(|reason| End::Refused(reason, "too many sessions"))?;

    let keepalive_s = match connect.keepalive_s {
        asked if version == Version::V311 => asked,
        0 => 0,
        asked => asked.max(settings.keepalive_min_s),
    };
    let expiry_s = u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX);
    let connack = ConnAck {
        session_present: attached.session_present,
        session_expiry_s: (expiry_s != asked_s).then_some(expiry_s),
        receive_max: Some(settings.inflight_max),
        packet_bytes_max: Some(settings.packet_bytes_max),
        assigned_client_id: assigned,
        topic_alias_max: settings.topic_alias_max(version),
        keepalive_s: (keepalive_s != connect.keepalive_s).then_some(keepalive_s),
        response_information: connect
            .request_response_information
            .then(|| settings.response_information.as_ref().map(|text| text.replace("${clientid}", &connect.client_id)))
            .flatten()
            .map(Into::into),
        ..ConnAck::new(Reason::SUCCESS)
    };
    wire.send(version, &Packet::ConnAck(Box::new(connack)));
    Ok(Session {
        attached,
        version,
        username,
        keepalive: (keepalive_s > 0).then(|| Duration::from_secs(keepalive_s.into())),
        expiry: terms,
        topic_alias_max: connect.topic_alias_max.min(settings.topic_alias_max(version)),
        packet_bytes_max: connect.packet_bytes_max.map_or(usize::MAX, |bytes| bytes as usize),
    })
}

/// Takes the session, and does what that has left to do, in one step for the journal.
fn attach(context: &Context, attach: Attach<'_>) -> Result<Attached, Reason> {
    let _change = context.router.begin_change();
    let (attached, aftermath) = context.router.clients().attach(attach, Instant::now());
    context.router.settle(aftermath);
    attached
}

async fn authenticate(context: &Context, connect: &Connect, username: &str, peer: PeerAddr) -> Result<(), End> {
    let password = connect.password.as_ref().map(|password| Password::new(password.as_ref()));
    let credentials = Credentials {
        client_id: &connect.client_id,
        username,
        password: password.as_ref(),
        origin: Origin::Mqtt,
        address: Some(peer.host()),
    };
    let Err(refused) = context.auth.authenticate(credentials).await else { return Ok(()) };
    tracing::debug!(client_id = ?connect.client_id, ?username, %peer, %refused, "MQTT client refused");
    Err(match refused {
        Refused::Denied(Denied::Credentials) => {
            End::Refused(Reason::BAD_USER_NAME_OR_PASSWORD, "wrong user name or password")
        }
        Refused::Denied(Denied::ClientId { .. }) => {
            End::Refused(Reason::NOT_AUTHORIZED, "the user may not have this client id")
        }
        Refused::Full { .. } => End::Refused(Reason::SERVER_BUSY, "too many passwords are to be verified"),
        Refused::Denied(_)
        | Refused::Gone
        | Refused::Missing { .. }
        | Refused::Malformed { .. }
        | Refused::NotAuthenticated { .. }
        | Refused::AlreadyAuthenticated { .. }
        | Refused::Broker(_) => End::Refused(Reason::NOT_AUTHORIZED, "a user name is required"),
    })
}

/// A will is a message too, and it is asked about while its client can be refused.
fn check_will(context: &Context, connect: &Connect, username: &str) -> Result<(), End> {
    let Some(will) = &connect.will else { return Ok(()) };
    let refused = if topic::check_name(&will.topic).is_err() {
        End::Refused(Reason::TOPIC_NAME_INVALID, "the topic of the will is malformed")
    } else if !context.auth.allows_publish(&connect.client_id, username, &will.topic) {
        End::Refused(Reason::NOT_AUTHORIZED, "a rule denies the will")
    } else {
        return Ok(());
    };
    context.router.counters().publishes_denied.inc();
    Err(refused)
}

/// Answers a CONNECT that is refused, in the form of its version, as far as that is known.
pub(super) fn refuse(context: &Context, wire: &mut PacketStream, peer: PeerAddr, end: &End) {
    let (reason, why) = match end {
        End::Refused(reason, why) => (*reason, *why),
        End::Closed(_) => (Reason::UNSPECIFIED, "closed before CONNECT"),
        End::Disconnect(_) => (Reason::PROTOCOL_ERROR, "DISCONNECT before CONNECT"),
    };
    context.router.counters().connects_refused.count(label(reason));
    tracing::debug!(%peer, %reason, why, "MQTT client refused");
    if let (End::Refused(..), Some(version)) = (end, wire.decoder.version()) {
        // MQTT 3.1.1 section 3.2.2.3: what none of its codes fits is answered by closing.
        let is_answered = version == Version::V5
            || !matches!(reason, Reason::MALFORMED_PACKET | Reason::PROTOCOL_ERROR | Reason::PACKET_TOO_LARGE);
        if is_answered {
            wire.send(version, &Packet::ConnAck(Box::new(ConnAck::new(reason))));
        }
    }
}

/// A reason as metrics name it.
pub(super) fn label(reason: Reason) -> &'static str {
    match reason {
        Reason::MALFORMED_PACKET => "malformed_packet",
        Reason::PROTOCOL_ERROR => "protocol_error",
        Reason::UNSUPPORTED_PROTOCOL_VERSION => "unsupported_version",
        Reason::CLIENT_ID_INVALID => "client_id_invalid",
        Reason::BAD_USER_NAME_OR_PASSWORD => "bad_credentials",
        Reason::NOT_AUTHORIZED => "not_authorized",
        Reason::BAD_AUTHENTICATION_METHOD => "bad_authentication_method",
        Reason::SERVER_SHUTTING_DOWN => "shutting_down",
        Reason::KEEP_ALIVE_TIMEOUT => "keepalive_timeout",
        Reason::SESSION_TAKEN_OVER => "taken_over",
        Reason::TOPIC_NAME_INVALID => "topic_name_invalid",
        Reason::RECEIVE_MAXIMUM_EXCEEDED => "receive_maximum_exceeded",
        Reason::TOPIC_ALIAS_INVALID => "topic_alias_invalid",
        Reason::PACKET_TOO_LARGE => "packet_too_large",
        Reason::QUOTA_EXCEEDED => "quota_exceeded",
        Reason::ADMINISTRATIVE_ACTION => "administrative_action",
        _ => "other",
    }
}
