use super::{Call, Scripted};
use crate::connection::Connection;
use crate::{CloseReason, ConnInfo, Handler, Message, Migrate, Qos, Timer};

/// The device's end of a connection whose handler is an `H`.
#[derive(Debug)]
pub struct Device<H> {
    /// What the handler has asked for so far, and what it is answered.
    pub adapter: Scripted,
    /// None once it has hung up.
    connection: Option<Connection<H>>,
    messages: u64,
}

impl<H: Handler> Device<H> {
    /// Connects over TCP to a gateway that accepts everything.
    #[must_use]
    pub fn connect() -> Self {
        Self::on(Scripted::new())
    }

    /// Connects over TCP to a gateway that behaves like this adapter.
    #[must_use]
    pub fn on(adapter: Scripted) -> Self {
        Self::come(adapter, &ConnInfo::default())
    }

    /// Connects in its own way.
    #[must_use]
    pub fn come(mut adapter: Scripted, info: &ConnInfo) -> Self {
        let connection = Connection::open(&mut adapter, info);
        Self { adapter, connection: Some(connection), messages: 0 }
    }

    /// Sends bytes, which arrive in one piece.
    pub fn says(&mut self, bytes: &[u8]) {
        if let Some(connection) = &mut self.connection {
            connection.received_bytes(&mut self.adapter, bytes);
        }
    }

    /// Sends bytes, which arrive cut at `places`: offsets in `bytes` from the smallest to the greatest. Those that lie behind the
    /// end, or before an earlier one, cut off nothing.
    pub fn says_cut(&mut self, bytes: &[u8], places: &[usize]) {
        let mut from = 0;
        for to in places.iter().copied().chain([bytes.len()]) {
            let to = to.clamp(from, bytes.len());
            self.says(bytes.get(from..to).unwrap_or_default());
            from = to;
        }
    }

    /// Sends bytes, and gives what comes back for them.
    pub fn asks(&mut self, bytes: &[u8]) -> Vec<u8> {
        let before = self.adapter.sent().len();
        self.says(bytes);
        self.adapter.sent().split_off(before)
    }

    /// Somebody publishes a message that one of the device's subscriptions fits, with QoS 1.
    pub fn is_told(&mut self, topic: &str, payload: &[u8]) {
        self.messages += 1;
        self.is_sent(&[Message {
            node: "test".to_owned(),
            id: self.messages.to_string(),
            topic: topic.to_owned(),
            payload: payload.to_vec(),
            qos: Qos::AtLeastOnce,
            sender: "somebody".to_owned(),
            timestamp_ms: self.adapter.now_ms,
        }]);
    }

    /// Messages arrive together.
    pub fn is_sent(&mut self, messages: &[Message]) {
        if let Some(connection) = &mut self.connection {
            connection.received_messages(&mut self.adapter, messages);
        }
    }

    /// Is silent until its keepalive runs out.
    pub fn is_silent(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.timer_timeout(&mut self.adapter, Timer::Keepalive);
        }
    }

    /// Closes its socket. What it does after that reaches nobody.
    pub fn hangs_up(&mut self) {
        self.ends(&CloseReason::Peer);
    }

    /// The connection ends for that reason.
    pub fn ends(&mut self, reason: &CloseReason) {
        if let Some(connection) = self.connection.take() {
            connection.closed(&mut self.adapter, reason);
        }
    }

    /// The handler as it is; none when it could not begin, or has ended.
    #[must_use]
    pub fn handler(&self) -> Option<&H> {
        self.connection.as_ref()?.handler()
    }
}

impl<H: Migrate> Device<H> {
    /// The gateway moves the connection to another version of the handler, which is an `N`; the adapter stays.
    ///
    /// # Errors
    ///
    /// Why the other version refuses, beside the device, which has stayed with the first.
    pub fn swapped<N: Migrate>(mut self) -> Result<Device<N>, (Self, String)> {
        let Some(connection) = &self.connection else { return Err((self, "the device has hung up".to_owned())) };
        match Connection::restore(&mut self.adapter, &ConnInfo::default(), connection.snapshot()) {
            Ok(connection) => {
                Ok(Device { adapter: self.adapter, connection: Some(connection), messages: self.messages })
            }
            Err(refusal) => Err((self, refusal)),
        }
    }
}

/// What a device and a broker can see of a connection: not the log, and not how the bytes to the device were cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome(Vec<Call>);

impl Outcome {
    /// All that was asked for, in its order, without the log.
    #[must_use]
    pub fn calls(&self) -> &[Call] {
        &self.0
    }

    /// All bytes to the device.
    #[must_use]
    pub fn sent(&self) -> Vec<u8> {
        let send = |call: &Call| if let Call::Send(bytes) = call { bytes.clone() } else { Vec::new() };
        self.0.iter().flat_map(send).collect()
    }

    fn of(calls: Vec<Call>) -> Self {
        let mut seen: Vec<Call> = Vec::with_capacity(calls.len());
        for call in calls {
            match (seen.last_mut(), call) {
                (_, Call::Log(..)) => {}
                (Some(Call::Send(before)), Call::Send(bytes)) => before.extend(bytes),
                (_, call) => seen.push(call),
            }
        }
        Self(seen)
    }
}

/// Has a stream arrive in one piece, cut in two at every place, and byte by byte, each time on a connection of its own which
/// then hangs up; gives what came of it.
///
/// # Panics
///
/// When a cut makes a difference: the handler takes pieces for frames.
#[allow(clippy::panic, reason = "it is an assertion")]
pub fn splits<H: Handler>(adapter: impl Fn() -> Scripted, stream: &[u8]) -> Outcome {
    let outcome = |places: &[usize]| {
        let mut device = Device::<H>::on(adapter());
        device.says_cut(stream, places);
        device.hangs_up();
        Outcome::of(device.adapter.calls)
    };
    let whole = outcome(&[]);
    let every: Vec<usize> = (1..stream.len()).collect();
    for places in every.iter().map(core::slice::from_ref).chain([every.as_slice()]) {
        let cut = outcome(places);
        if cut != whole {
            let places =
                if let [place] = places { format!("before byte {place}") } else { "before every byte".to_owned() };
            panic!("cut {places}, the stream had another effect\n  in one piece {whole:?}\n  cut          {cut:?}");
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use crate::{Adapter, Error, ErrorCode, Level, Result};

    use super::*;

    /// An error ends the connection, and the log says what led to it; a connection that is ending is no news.
    #[test]
    fn errors_end_the_connection() {
        let mut device = Device::<Picky>::connect();
        device.says(b"fine");
        assert!(!device.adapter.is_closed());
        device.says(b"no text \xff");
        assert!(device.adapter.is_closed());
        let words = "expected text: invalid utf-8 sequence of 1 bytes from index 8";
        assert_eq!(device.adapter.calls.last_chunk(), Some(&[Call::Log(Level::Warn, words.into()), Call::Close]));
        device.says(b"still there");
        assert_eq!(device.adapter.calls.last(), Some(&Call::Log(Level::Debug, ErrorCode::ConnGone.to_string())));
    }

    /// A handler that cannot begin ends its connection, and hears of nothing more.
    #[test]
    fn cannot_begin() {
        let mut device = Device::<Picky>::on(Scripted::new().with_setting("mode", "grumpy"));
        assert!(device.adapter.is_closed() && device.handler().is_none());
        device.says(b"hello");
        device.is_silent();
        device.hangs_up();
        assert_eq!(device.adapter.calls, [Call::Log(Level::Warn, "not today".into()), Call::Close]);
    }

    /// What is wrong at the very end is logged.
    #[test]
    fn errors_at_the_end() {
        let mut device = Device::<Picky>::connect();
        device.ends(&CloseReason::Kicked);
        assert_eq!(device.adapter.logged(), ["expected a farewell"]);
    }

    /// A handler that takes pieces for frames is found out.
    #[test]
    #[should_panic(expected = "cut before byte 2, the stream had another effect")]
    fn pieces_are_no_frames() {
        splits::<Picky>(Scripted::new, "né".as_bytes());
    }

    /// The same bytes in other pieces: nothing that a device could see.
    #[test]
    fn the_same_in_pieces() {
        assert_eq!(splits::<Picky>(Scripted::new, b"abc").calls(), [Call::Send(b"abc".to_vec())]);
        let mut device = Device::<Picky>::connect();
        device.says_cut(b"abcd", &[1, 3, 2, 9]);
        assert_eq!(device.adapter.sends(), [b"a".to_vec(), b"bc".to_vec(), vec![], b"d".to_vec(), vec![]]);
    }

    /// Sends back text, and nothing else.
    #[derive(Debug)]
    struct Picky;

    #[derive(Debug)]
    struct NotText(core::str::Utf8Error);

    impl core::fmt::Display for NotText {
        fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            out.write_str("expected text")
        }
    }

    impl core::error::Error for NotText {
        fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    impl Handler for Picky {
        fn on_socket_created(adapter: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> {
            if adapter.setting("mode").is_some() { Err(Error::new("not today")) } else { Ok(Self) }
        }

        fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) -> Result {
            let text = core::str::from_utf8(bytes).map_err(NotText)?;
            Ok(adapter.send(text.as_bytes())?)
        }

        fn on_socket_closed(self, _: &mut dyn Adapter, reason: &CloseReason) -> Result {
            if *reason == CloseReason::Kicked { Err(Error::new("expected a farewell")) } else { Ok(()) }
        }
    }
}
