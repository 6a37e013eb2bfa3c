//! Recorded conversations: the traffic between a device, its handler and the broker, as a text file.
//!
//! Owns the text format (extension `.conversation`) and its uses: [`read`](Conversation::read),
//! [`parse`](Conversation::parse), print (its [`Display`](std::fmt::Display)), compare with a run ([`run`]),
//! replay against a gateway ([`play`]) and record the responses again ([`bless`]). Reading, printing, comparing and
//! blessing are pure: no socket, no clock. A file has at most [`FILE_BYTES_MAX`] and [`LINES_MAX`].
//!
//! # Grammar
//!
//! ```text
//! file      = { line } ;                                (* UTF-8; lines end with LF or CRLF *)
//! line      = blank | comment | transport | step ;
//! comment   = "#" any text ;                            (* a line of its own *)
//! transport = "transport" ( "tcp" | "tls" | "udp" | "dtls" ) ;   (* at most once, before the first step; tcp if absent *)
//! step      = [ "@" seconds "s" ] action ;              (* time since the connection's start; never decreases *)
//! action    = ">" bytes                                 (* the device sends *)
//!           | "<" pattern                               (* the device receives *)
//!           | "publish" text [ qos ] payload            (* the handler publishes *)
//!           | "deliver" text [ qos ] payload            (* a message arrives for the device's subscription *)
//!           | "timer" "keepalive"                       (* the timer expires *)
//!           | "close" ( "peer" | "handler" | "keepalive" | "idle" | "gateway" ) ;   (* last *)
//! qos       = "qos=" ( "0" | "1" | "2" ) ;              (* 0 if absent *)
//! payload   = "json" JSON value | bytes ;
//! bytes     = { hex digit, hex digit | text } ;         (* spaces between them are optional *)
//! pattern   = { hex digit, hex digit | "??" | text } ;  (* "??" is any one byte *)
//! text      = '"' { character | "\r" | "\n" | "\t" | "\0" | "\\" | '\"' | "\x" hex digit hex digit } '"' ;
//! ```
//!
//! A line that begins with a space or a tab continues the line before it. In the JSON of a `publish` line the string
//! `"*"` stands for any value. `docs/conversations.md` is the users' guide.

use std::time::Duration;

use bytes::Bytes;

use crate::conn::{QoS, SocketKind, Timer};

pub(crate) mod bless;
mod cursor;
mod fault;
mod folder;
mod parse;
mod pattern;
pub(crate) mod play;
mod print;
pub(crate) mod run;

pub(crate) use fault::{Faults, ReadError};
pub(crate) use folder::{FolderError, files, read_all};
pub use pattern::Payload;
pub(crate) use pattern::{Difference, Pattern};

/// Maximum file length in bytes. A line of text costs some eight times its length in memory.
pub const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Maximum number of lines: some hundred bytes of memory each, also for empty ones.
pub(crate) const LINES_MAX: usize = 250_000;

/// Maximum time stamp: a year. Keeps arithmetic on instants far from overflow.
pub(crate) const OFFSET_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// One recorded conversation: the life of one connection.
///
/// Equality compares the content; names and line numbers do not matter.
#[derive(Clone, Debug)]
pub struct Conversation {
    name: String,
    items: Vec<Item>,
}

impl Conversation {
    /// A conversation of these items, which get the line numbers of the printed form; `name` is used in
    /// messages, usually the path of the file.
    ///
    /// Nothing is checked: the caller avoids what [`Conversation::parse`] would refuse, for example a step after
    /// `close`.
    pub fn new(name: impl Into<String>, mut items: Vec<Item>) -> Self {
        let mut next = 1_u32;
        for item in &mut items {
            item.line = next;
            let breaks = item.content.to_string().matches('\n').count();
            next = next.saturating_add(u32::try_from(breaks).unwrap_or(u32::MAX)).saturating_add(1);
        }
        Self { name: name.into(), items }
    }

    /// The name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All items, in order, with the comments and blank lines.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The steps, in order, each with its line.
    pub fn steps(&self) -> impl Iterator<Item = (u32, &Step)> {
        self.items.iter().filter_map(|item| match &item.content {
            Line::Step(step) => Some((item.line, step)),
            Line::Blank | Line::Comment(_) | Line::Transport(_) => None,
        })
    }

    /// The transport of the recording; TCP by default.
    pub fn transport(&self) -> SocketKind {
        let said = self.items.iter().find_map(|item| match item.content {
            Line::Transport(kind) => Some(kind),
            Line::Blank | Line::Comment(_) | Line::Step(_) => None,
        });
        said.unwrap_or(SocketKind::Tcp)
    }
}

impl PartialEq for Conversation {
    fn eq(&self, other: &Self) -> bool {
        self.items == other.items
    }
}

/// One line of the file, with its continuations.
///
/// Equality compares the content; line numbers do not matter.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its first line in the file, from 1; 0 for an item without a conversation.
    pub line: u32,
    pub content: Line,
}

impl Item {
    /// An item without a conversation.
    pub fn new(content: Line) -> Self {
        Self { line: 0, content }
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.content == other.content
    }
}

/// The content of a line.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// An empty line.
    Blank,
    /// The text after the `#`, without trailing white space.
    Comment(String),
    /// The transport of the recording.
    Transport(SocketKind),
    /// A step.
    Step(Step),
}

/// A step on the connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Time since the connection's start, in whole microseconds up to [`OFFSET_MAX`]; `None` if it was not recorded.
    pub at: Option<Duration>,
    /// The action.
    pub action: Action,
}

impl Step {
    /// A step without a recorded time.
    pub fn new(action: Action) -> Self {
        Self { at: None, action }
    }
}

/// The action of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// `>`: the device sends these bytes, at least one; a datagram when the transport has datagrams.
    FromPeer(Bytes),
    /// `<`: the device receives these bytes, at least one, split in any way.
    ToPeer(Pattern),
    /// `publish`: the handler publishes.
    Publish(Message),
    /// `deliver`: a message arrives for one of the device's subscriptions.
    Deliver(Message),
    /// `timer`: a timer of the handler expires.
    Timer(Timer),
    /// `close`: the connection ends.
    Close(ClosedBy),
}

impl Action {
    /// Whether it comes from outside the handler: a player performs stimuli, and waits for the other actions.
    pub fn is_stimulus(&self) -> bool {
        match self {
            Self::FromPeer(_) | Self::Deliver(_) | Self::Timer(_) | Self::Close(ClosedBy::Peer) => true,
            Self::ToPeer(_) | Self::Publish(_) | Self::Close(_) => false,
        }
    }

    /// The first word of its line.
    pub fn word(&self) -> &'static str {
        match self {
            Self::FromPeer(_) => ">",
            Self::ToPeer(_) => "<",
            Self::Publish(_) => "publish",
            Self::Deliver(_) => "deliver",
            Self::Timer(_) => "timer",
            Self::Close(_) => "close",
        }
    }
}

/// A message in a conversation: topic as the handler sees it, without any mountpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Topic name; any text, the broker decides about it.
    pub topic: String,
    /// Quality of service.
    pub qos: QoS,
    /// Payload.
    pub payload: Payload,
}

/// The closing side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedBy {
    /// The device.
    Peer,
    /// The handler asked for it.
    Handler,
    /// The keepalive timer expired.
    Keepalive,
    /// The device sent nothing within the idle timeout.
    Idle,
    /// The gateway's side, for any reason: the three above, a failed handler, an operator, a newer connection.
    Gateway,
}

impl ClosedBy {
    /// Every closer.
    pub const ALL: [Self; 5] = [Self::Peer, Self::Handler, Self::Keepalive, Self::Idle, Self::Gateway];

    /// The word in the file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Handler => "handler",
            Self::Keepalive => "keepalive",
            Self::Idle => "idle",
            Self::Gateway => "gateway",
        }
    }
}
