use std::borrow::Cow;
use std::fmt;

/// Why a connection ended: the operator's vocabulary, logged once for each connection.
///
/// One reason inside, two renderings outside: ExProto handlers get the text of [`CloseReason::exproto`],
/// guests an enum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer ended its side of the stream.
    PeerClosed,
    /// The socket failed; the text is the error's kind in the words of errno, for example `econnreset`.
    SocketError(&'static str),
    /// The peer did not take what was sent to it within the write timeout.
    WriteTimedOut,
    /// The peer sent no byte within the idle timeout, the silence timeout or the flow timeout.
    IdleTimedOut,
    /// The peer did not authenticate within the login timeout.
    LoginTimedOut,
    /// What the peer sent is no frame, as the listener's framing has them; the text says what was expected and found.
    FramingBroken(String),
    /// The keepalive interval ran out.
    KeepaliveExpired,
    /// The handler called Close.
    HandlerAsked,
    /// The handler failed; the text names the event, then what happened.
    HandlerFailed {
        /// The event that was not handled, for example `on_received_bytes`.
        event: &'static str,
        /// What happened, in one phrase.
        error: String,
    },
    /// Another connection authenticated with the same client id.
    Replaced,
    /// The operator ended it.
    Kicked,
    /// The validity of the authentication ended.
    Expired,
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
            Self::FramingBroken(_) => "framing_broken",
            Self::KeepaliveExpired => "keepalive_expired",
            Self::HandlerAsked => "handler_asked",
            Self::HandlerFailed { .. } => "handler_failed",
            Self::Replaced => "replaced",
            Self::Kicked => "kicked",
            Self::Expired => "expired",
            Self::Draining => "draining",
        }
    }

    /// `OnSocketClosed.reason` as EMQX 5.1 and later write it; handlers log it and some compare it.
    ///
    /// `secure` tells a TLS or DTLS connection, whose peer closes it in other words.
    pub fn exproto(&self, secure: bool) -> Cow<'static, str> {
        match self {
            Self::PeerClosed if secure => "{shutdown,ssl_closed}".into(),
            Self::PeerClosed => "{shutdown,tcp_closed}".into(),
            Self::SocketError(errno) => format!("{{shutdown,{errno}}}").into(),
            Self::WriteTimedOut => "{shutdown,send_timeout}".into(),
            Self::IdleTimedOut | Self::LoginTimedOut => "{shutdown,idle_timeout}".into(),
            Self::FramingBroken(error) => format!("{{shutdown,{{frame_error,{error:?}}}}}").into(),
            Self::KeepaliveExpired => "{shutdown,keepalive_timeout}".into(),
            Self::HandlerAsked | Self::Draining => "{shutdown,normal}".into(),
            Self::HandlerFailed { event, error } => format!("{{shutdown,{{error,{{{event},{error:?}}}}}}}").into(),
            Self::Replaced => "{shutdown,discarded}".into(),
            Self::Kicked => "{shutdown,kicked}".into(),
            Self::Expired => "{shutdown,expired}".into(),
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
            | Self::KeepaliveExpired
            | Self::HandlerAsked
            | Self::Replaced
            | Self::Kicked
            | Self::Expired
            | Self::Draining => f.write_str(self.name()),
        }
    }
}
