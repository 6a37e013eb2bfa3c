//! Tests of a handler without a gateway: a [`Device`] on a [`Scripted`] adapter.
//!
//! The adapter writes down what a handler asks, and answers by the gateway's rules: publishing needs a successful
//! `authenticate`, a second one is refused, nothing goes after `close`. It refuses on request, and its clock stands still
//! until the test moves it.
//!
//! ```
//! use polygate_guest::scripted::{Device, Scripted, splits};
//! # use polygate_guest::{Adapter, ConnInfo, Handler, Message, Result};
//! # struct Shout;
//! # impl Handler for Shout {
//! #     fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> { Ok(Self) }
//! #     fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) -> Result {
//! #         Ok(adapter.send(&bytes.to_ascii_uppercase())?)
//! #     }
//! #     fn on_received_messages(&mut self, adapter: &mut dyn Adapter, messages: &[Message]) -> Result {
//! #         for message in messages { adapter.send(&message.payload)?; }
//! #         Ok(())
//! #     }
//! # }
//!
//! let mut device = Device::<Shout>::connect();
//! device.says(b"hello ");
//! device.is_told("shout/down", b"there");
//! assert_eq!(device.adapter.sent(), b"HELLO there");
//!
//! // Cut anywhere, the same bytes have the same effect.
//! let outcome = splits::<Shout>(Scripted::new, b"hello");
//! assert_eq!(outcome.sent(), b"HELLO");
//! ```

mod device;

use std::collections::BTreeMap;

pub use device::{Device, Outcome, splits};

use crate::{Adapter, ClientInfo, ErrorCode, Level, Qos, Timer};

/// One call that a handler made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the arguments of the operation of that name")]
pub enum Call {
    Send(Vec<u8>),
    Close,
    Authenticate { proto_ver: String, client_id: String, username: Option<String>, password: Option<String> },
    StartTimer { timer: Timer, interval_ms: u32 },
    StopTimer(Timer),
    Publish { topic: String, qos: Qos, payload: Vec<u8> },
    Subscribe { filter: String, qos: Qos },
    Unsubscribe(String),
    RawPublish { topic: String, qos: Qos, payload: Vec<u8> },
    Log(Level, String),
}

/// What the gateway would have done, as a list; made and read by a test.
#[derive(Debug, Default)]
pub struct Scripted {
    /// Every call so far, in order.
    pub calls: Vec<Call>,
    /// What `setting` finds.
    pub settings: BTreeMap<String, String>,
    /// What `now_ms` says.
    pub now_ms: u64,
    /// What `authenticate` answers from now on; none accepts.
    pub refuse_authenticate: Option<ErrorCode>,
    /// What `publish` and `raw_publish` answer from now on; none accepts.
    pub refuse_publish: Option<ErrorCode>,
    /// What `subscribe` and `unsubscribe` answer from now on; none accepts.
    pub refuse_subscribe: Option<ErrorCode>,
    /// What `start_timer` and `stop_timer` answer from now on; none accepts.
    pub refuse_timer: Option<ErrorCode>,
    /// What `send` answers from now on; none accepts.
    pub refuse_send: Option<ErrorCode>,
    authenticated: bool,
    closed: bool,
    drawn: u8,
}

impl Scripted {
    /// Accepts everything, has no settings, and its clock says 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one more setting.
    #[must_use]
    pub fn with_setting(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.to_owned(), value.to_owned());
        self
    }

    /// All bytes for the peer, joined.
    #[must_use]
    pub fn sent(&self) -> Vec<u8> {
        self.sends().concat()
    }

    /// The bytes of each `send`.
    #[must_use]
    pub fn sends(&self) -> Vec<Vec<u8>> {
        let send = |call: &Call| if let Call::Send(bytes) = call { Some(bytes.clone()) } else { None };
        self.calls.iter().filter_map(send).collect()
    }

    /// Topic and payload of every `publish`.
    #[must_use]
    pub fn published(&self) -> Vec<(String, Vec<u8>)> {
        let publish = |call: &Call| {
            if let Call::Publish { topic, payload, .. } = call { Some((topic.clone(), payload.clone())) } else { None }
        };
        self.calls.iter().filter_map(publish).collect()
    }

    /// Every line of the log, whatever its level.
    #[must_use]
    pub fn logged(&self) -> Vec<String> {
        let log = |call: &Call| if let Call::Log(_, text) = call { Some(text.clone()) } else { None };
        self.calls.iter().filter_map(log).collect()
    }

    /// Whether the handler has closed the connection.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Takes the calls so far, so that a test can look at what comes next.
    pub fn take_calls(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.calls)
    }

    fn open(&self) -> Result<(), ErrorCode> {
        if self.closed { Err(ErrorCode::ConnGone) } else { Ok(()) }
    }

    fn known(&self, refusal: Option<ErrorCode>) -> Result<(), ErrorCode> {
        self.open()?;
        if !self.authenticated {
            return Err(ErrorCode::NotAuthenticated);
        }
        refusal.map_or(Ok(()), Err)
    }
}

impl Adapter for Scripted {
    fn send(&mut self, bytes: &[u8]) -> Result<(), ErrorCode> {
        self.open()?;
        self.calls.push(Call::Send(bytes.to_vec()));
        self.refuse_send.map_or(Ok(()), Err)
    }

    fn close(&mut self) -> Result<(), ErrorCode> {
        self.open()?;
        self.closed = true;
        self.calls.push(Call::Close);
        Ok(())
    }

    fn authenticate(&mut self, client: ClientInfo<'_>, password: Option<&str>) -> Result<(), ErrorCode> {
        self.open()?;
        self.calls.push(Call::Authenticate {
            proto_ver: client.proto_ver.to_owned(),
            client_id: client.client_id.to_owned(),
            username: client.username.map(str::to_owned),
            password: password.map(str::to_owned),
        });
        if self.authenticated {
            return Err(ErrorCode::PermissionDenied);
        }
        if let Some(refusal) = self.refuse_authenticate {
            return Err(refusal);
        }
        self.authenticated = true;
        Ok(())
    }

    fn start_timer(&mut self, timer: Timer, interval_ms: u32) -> Result<(), ErrorCode> {
        self.open()?;
        self.calls.push(Call::StartTimer { timer, interval_ms });
        if interval_ms == 0 {
            return Err(ErrorCode::BadParams);
        }
        self.refuse_timer.map_or(Ok(()), Err)
    }

    fn stop_timer(&mut self, timer: Timer) -> Result<(), ErrorCode> {
        self.open()?;
        self.calls.push(Call::StopTimer(timer));
        self.refuse_timer.map_or(Ok(()), Err)
    }

    fn publish(&mut self, topic: &str, qos: Qos, payload: &[u8]) -> Result<(), ErrorCode> {
        self.calls.push(Call::Publish { topic: topic.to_owned(), qos, payload: payload.to_vec() });
        self.known(self.refuse_publish)
    }

    fn subscribe(&mut self, filter: &str, qos: Qos) -> Result<(), ErrorCode> {
        self.calls.push(Call::Subscribe { filter: filter.to_owned(), qos });
        self.known(self.refuse_subscribe)
    }

    fn unsubscribe(&mut self, filter: &str) -> Result<(), ErrorCode> {
        self.calls.push(Call::Unsubscribe(filter.to_owned()));
        self.known(self.refuse_subscribe)
    }

    fn raw_publish(&mut self, topic: &str, qos: Qos, payload: &[u8]) -> Result<(), ErrorCode> {
        self.calls.push(Call::RawPublish { topic: topic.to_owned(), qos, payload: payload.to_vec() });
        self.refuse_publish.map_or(Ok(()), Err)
    }

    fn setting(&mut self, name: &str) -> Option<String> {
        self.settings.get(name).cloned()
    }

    fn now_ms(&mut self) -> u64 {
        self.now_ms
    }

    /// Not random at all: the bytes count up from call to call, so that a test knows them.
    fn random(&mut self, len: u32) -> Vec<u8> {
        (0..len.min(1024))
            .map(|_| {
                self.drawn = self.drawn.wrapping_add(1);
                self.drawn
            })
            .collect()
    }

    fn log(&mut self, level: Level, text: &str) {
        self.calls.push(Call::Log(level, text.to_owned()));
    }
}
