//! What a guest may call: the WIT imports, turned into operations of its connection's adapter.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::guest::GuestState;
use crate::adapter::Adapter;
use crate::conn::{Command, ConnId, Refused, Timer};
use crate::wit::bindings::polygate::handler::adapter;
use crate::wit::types;
use bytes::Bytes;
use secrecy::SecretString;

/// What `random` gives at most in one call, in bytes.
const RANDOM_BYTES_MAX: u32 = 1024;

impl types::Host for GuestState {}

impl GuestState {
    /// The adapter, if the guest asks for its own connection. An instance serves one connection, so any other
    /// id is one that it kept or made up.
    fn adapter_of(&mut self, conn: types::Conn) -> Result<&mut Adapter, Refused> {
        if ConnId::from_u64(conn) == self.adapter.conn() { Ok(&mut self.adapter) } else { Err(Refused::Gone) }
    }

    async fn apply(&mut self, conn: types::Conn, command: Command) -> Result<(), types::ErrorCode> {
        let operation = command.name();
        let result = match self.adapter_of(conn) {
            Ok(adapter) => adapter.apply(command).await,
            Err(refused) => Err(refused),
        };
        self.answer(operation, result)
    }

    /// Turns a refusal into its code; the words, which the code cannot carry, go to the log.
    fn answer(&self, operation: &'static str, result: Result<(), Refused>) -> Result<(), types::ErrorCode> {
        result.map_err(|refused| {
            tracing::debug!(
                conn = %self.adapter.conn(),
                handler = %self.shared.options.name,
                operation,
                "refused: {refused}"
            );
            types::ErrorCode::from(&refused)
        })
    }
}

impl adapter::Host for GuestState {
    fn send(&mut self, conn: types::Conn, bytes: Vec<u8>) -> Result<(), types::ErrorCode> {
        let result = self.adapter_of(conn).and_then(|adapter| adapter.send(Bytes::from(bytes)));
        self.answer("send", result)
    }

    fn close(&mut self, conn: types::Conn) -> Result<(), types::ErrorCode> {
        let result = self.adapter_of(conn).and_then(Adapter::close);
        self.answer("close", result)
    }

    async fn authenticate(
        &mut self,
        conn: types::Conn,
        client: types::ClientInfo,
        password: Option<String>,
    ) -> Result<(), types::ErrorCode> {
        let password = password.map(SecretString::from);
        self.apply(conn, Command::Authenticate { client: client.into(), password }).await
    }

    fn start_timer(
        &mut self,
        conn: types::Conn,
        timer: types::Timer,
        interval_ms: u32,
    ) -> Result<(), types::ErrorCode> {
        let interval = Duration::from_millis(interval_ms.into());
        let result = self.adapter_of(conn).and_then(|adapter| adapter.start_timer(Timer::from(timer), interval));
        self.answer("start_timer", result)
    }

    fn stop_timer(&mut self, conn: types::Conn, timer: types::Timer) -> Result<(), types::ErrorCode> {
        let result = self.adapter_of(conn).and_then(|adapter| adapter.stop_timer(Timer::from(timer)));
        self.answer("stop_timer", result)
    }

    async fn publish(
        &mut self,
        conn: types::Conn,
        topic: String,
        qos: types::Qos,
        payload: Vec<u8>,
    ) -> Result<(), types::ErrorCode> {
        self.apply(conn, Command::Publish { topic, qos: qos.into(), payload: Bytes::from(payload) }).await
    }

    async fn subscribe(&mut self, conn: types::Conn, filter: String, qos: types::Qos) -> Result<(), types::ErrorCode> {
        self.apply(conn, Command::Subscribe { filter, qos: qos.into() }).await
    }

    async fn unsubscribe(&mut self, conn: types::Conn, filter: String) -> Result<(), types::ErrorCode> {
        self.apply(conn, Command::Unsubscribe { filter }).await
    }

    async fn raw_publish(&mut self, topic: String, qos: types::Qos, payload: Vec<u8>) -> Result<(), types::ErrorCode> {
        let result = self.adapter.raw_publish(&topic, qos.into(), Bytes::from(payload)).await;
        self.answer("raw_publish", result)
    }

    fn setting(&mut self, name: String) -> Option<String> {
        self.shared.options.settings.get(&name).cloned()
    }

    fn now_ms(&mut self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
    }

    fn random(&mut self, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len.min(RANDOM_BYTES_MAX) as usize];
        if let Err(error) = getrandom::fill(&mut bytes) {
            // Fewer bytes than asked for is an answer that no guest can mistake for randomness.
            tracing::error!(%error, "the system's random generator failed");
            return Vec::new();
        }
        bytes
    }

    fn log(&mut self, level: types::Level, text: String) {
        self.log.lock().line(level, &text);
    }
}
