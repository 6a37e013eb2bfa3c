//! Host functions: the WIT imports of a guest, mapped to operations of its connection's adapter.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::store::GuestState;
use crate::adapter::Backend;
use crate::conn::{Command, ConnId, Password, Refused, Timer};
use crate::wit::bindings::polygate::handler::adapter;
use crate::wit::types;
use bytes::Bytes;

/// Maximum result of one `random` call, in bytes.
const RANDOM_BYTES_MAX: u32 = 1024;

impl types::Host for GuestState {}

impl GuestState {
    /// The backend of the connection of the current call. Any other id is stale or invented by the guest:
    /// [`Refused::Gone`].
    fn backend(&mut self, conn: types::Conn) -> Result<&mut Backend, Refused> {
        self.backend.as_mut().filter(|backend| backend.conn() == ConnId::from_u64(conn)).ok_or(Refused::Gone)
    }

    async fn apply(&mut self, conn: types::Conn, command: Command) -> Result<(), types::ErrorCode> {
        let operation = command.name();
        let result = match self.backend(conn) {
            Ok(backend) => backend.apply(command).await,
            Err(refused) => Err(refused),
        };
        self.answer(conn, operation, result)
    }

    /// Converts a refusal to its code; the details, which the code cannot carry, are logged.
    fn answer(
        &self,
        conn: types::Conn,
        operation: &'static str,
        result: Result<(), Refused>,
    ) -> Result<(), types::ErrorCode> {
        result.map_err(|refused| {
            tracing::debug!(
                conn = %ConnId::from_u64(conn),
                handler = %self.config.options.name,
                operation,
                "refused: {refused}"
            );
            types::ErrorCode::from(&refused)
        })
    }
}

impl adapter::Host for GuestState {
    fn send(&mut self, conn: types::Conn, bytes: Vec<u8>) -> Result<(), types::ErrorCode> {
        // A send to another connection is refused and not charged to the budget.
        let result = match self.backend(conn).map(|_| ()) {
            Ok(()) => self.budget_used.send(bytes.len(), &self.config.options.budget),
            Err(refused) => Err(refused),
        };
        let result = result.and_then(|()| self.backend(conn)?.send(Bytes::from(bytes)));
        self.answer(conn, "send", result)
    }

    fn close(&mut self, conn: types::Conn) -> Result<(), types::ErrorCode> {
        let result = self.backend(conn).and_then(Backend::close);
        self.answer(conn, "close", result)
    }

    async fn authenticate(
        &mut self,
        conn: types::Conn,
        client: types::ClientInfo,
        password: Option<String>,
    ) -> Result<(), types::ErrorCode> {
        let password = password.map(Password::new);
        self.apply(conn, Command::Authenticate { client: client.into(), password }).await
    }

    fn start_timer(
        &mut self,
        conn: types::Conn,
        timer: types::Timer,
        interval_ms: u32,
    ) -> Result<(), types::ErrorCode> {
        let interval = Duration::from_millis(interval_ms.into());
        let result = self.backend(conn).and_then(|backend| backend.start_timer(Timer::from(timer), interval));
        self.answer(conn, "start_timer", result)
    }

    fn stop_timer(&mut self, conn: types::Conn, timer: types::Timer) -> Result<(), types::ErrorCode> {
        let result = self.backend(conn).and_then(|backend| backend.stop_timer(Timer::from(timer)));
        self.answer(conn, "stop_timer", result)
    }

    async fn publish(
        &mut self,
        conn: types::Conn,
        topic: String,
        qos: types::Qos,
        payload: Vec<u8>,
    ) -> Result<(), types::ErrorCode> {
        if let Err(refused) = self.budget_used.publish(&self.config.options.budget) {
            return self.answer(conn, "publish", Err(refused));
        }
        self.apply(conn, Command::Publish { topic, qos: qos.into(), payload: Bytes::from(payload) }).await
    }

    async fn subscribe(&mut self, conn: types::Conn, filter: String, qos: types::Qos) -> Result<(), types::ErrorCode> {
        self.apply(conn, Command::Subscribe { filter, qos: qos.into() }).await
    }

    async fn unsubscribe(&mut self, conn: types::Conn, filter: String) -> Result<(), types::ErrorCode> {
        self.apply(conn, Command::Unsubscribe { filter }).await
    }

    async fn raw_publish(&mut self, topic: String, qos: types::Qos, payload: Vec<u8>) -> Result<(), types::ErrorCode> {
        if let Err(refused) = self.budget_used.publish(&self.config.options.budget) {
            return self.answer(0, "raw_publish", Err(refused));
        }
        let command = Command::RawPublish { topic, qos: qos.into(), payload: Bytes::from(payload) };
        let (conn, result) = match &mut self.backend {
            Some(backend) => (backend.conn().to_u64(), backend.apply(command).await),
            None => (0, Err(Refused::Gone)),
        };
        self.answer(conn, "raw_publish", result)
    }

    fn setting(&mut self, name: String) -> Option<String> {
        self.config.options.settings.get(&name).cloned()
    }

    fn now_ms(&mut self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
    }

    fn random(&mut self, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len.min(RANDOM_BYTES_MAX) as usize];
        if let Err(error) = getrandom::fill(&mut bytes) {
            // No guest can mistake a result that is too short for random bytes.
            tracing::error!(%error, "the system's random generator failed");
            return Vec::new();
        }
        bytes
    }

    fn log(&mut self, level: types::Level, text: String) {
        let is_within_budget = self.budget_used.log(&self.config.options.budget);
        let mut log = self.log.lock();
        if is_within_budget {
            log.line(level, &text);
        } else {
            log.suppress();
        }
    }
}
