//! Close reasons of a connection: names in logs and metrics, and the texts of ExProto.

use std::borrow::Cow;
use std::fmt;

/// Reason for the close of a connection; logged once per connection.
///
/// ExProto handlers get the text of [`CloseReason::exproto`], guests an enum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer ended its side of the stream.
    PeerClosed,
    /// The socket failed; the text is the errno name, for example `econnreset`.
    SocketError(&'static str),
    /// The peer accepted no bytes within the write timeout.
    WriteTimedOut,
    /// The peer sent no byte within the idle timeout, the silence timeout or the flow timeout.
    IdleTimedOut,
    /// The peer did not authenticate within the login timeout.
    LoginTimedOut,
    /// The peer of plain UDP did not prove in time that it receives at its address, or another unverified one got its place.
    Unverified,
    /// The stream does not match the listener's framing; the text gives expected and received bytes.
    FramingBroken(String),
    /// Keepalive expired.
    KeepaliveExpired,
    /// The handler called Close.
    HandlerAsked,
    /// The handler failed.
    HandlerFailed {
        /// The event that was not handled, for example `on_received_bytes`.
        event: &'static str,
        /// The failure, as one phrase.
        error: String,
    },
    /// Another connection authenticated with the same client id.
    Replaced,
    /// Closed by the operator.
    Kicked,
    /// The authentication has expired.
    Expired,
    /// The broker did not acknowledge a message in time, on a listener that confirms before it sends.
    Unconfirmed,
    /// The gateway is stopping.
    Draining,
}

impl CloseReason {
    /// The reason's name in logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::PeerClosed => "peer_closed",
            Self::SocketError(_) => "socket_error",
            Self::WriteTimedOut => "write_timed_out",
            Self::IdleTimedOut => "idle_timed_out",
            Self::LoginTimedOut => "login_timed_out",
            Self::Unverified => "unverified",
            Self::FramingBroken(_) => "framing_broken",
            Self::KeepaliveExpired => "keepalive_expired",
            Self::HandlerAsked => "handler_asked",
            Self::HandlerFailed { .. } => "handler_failed",
            Self::Replaced => "replaced",
            Self::Kicked => "kicked",
            Self::Expired => "expired",
            Self::Unconfirmed => "unconfirmed",
            Self::Draining => "draining",
        }
    }

    /// `OnSocketClosed.reason` as EMQX 5.1 and later write it; handlers log it and some compare it.
    ///
    /// `secure`: a TLS or DTLS connection, for which EMQX writes `ssl_closed`.
    pub fn exproto(&self, secure: bool) -> Cow<'static, str> {
        match self {
            Self::PeerClosed if secure => "{shutdown,ssl_closed}".into(),
            Self::PeerClosed => "{shutdown,tcp_closed}".into(),
            Self::SocketError(errno) => format!("{{shutdown,{errno}}}").into(),
            Self::WriteTimedOut => "{shutdown,send_timeout}".into(),
            Self::IdleTimedOut | Self::LoginTimedOut | Self::Unverified => "{shutdown,idle_timeout}".into(),
            Self::FramingBroken(error) => format!("{{shutdown,{{frame_error,{error:?}}}}}").into(),
            Self::KeepaliveExpired => "{shutdown,keepalive_timeout}".into(),
            Self::HandlerAsked | Self::Draining => "{shutdown,normal}".into(),
            Self::HandlerFailed { event, error } => format!("{{shutdown,{{error,{{{event},{error:?}}}}}}}").into(),
            Self::Replaced => "{shutdown,discarded}".into(),
            Self::Kicked => "{shutdown,kicked}".into(),
            Self::Expired => "{shutdown,expired}".into(),
            Self::Unconfirmed => "{shutdown,{error,unconfirmed}}".into(),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SocketError(errno) => write!(f, "socket_error ({errno})"),
            Self::FramingBroken(error) => write!(f, "framing_broken ({error})"),
            Self::HandlerFailed { event, error } => write!(f, "handler_failed ({event}: {error})"),
            Self::PeerClosed
            | Self::WriteTimedOut
            | Self::IdleTimedOut
            | Self::LoginTimedOut
            | Self::Unverified
            | Self::KeepaliveExpired
            | Self::HandlerAsked
            | Self::Replaced
            | Self::Kicked
            | Self::Expired
            | Self::Unconfirmed
            | Self::Draining => f.write_str(self.name()),
        }
    }
}
