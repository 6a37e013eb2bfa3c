//! Simulated connection of a guest: delivers events and collects the effects of its commands.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::adapter::{Backend, DryRunAdapter};
use crate::conn::{CloseReason, Command, ConnId, ConnInfo, Event, ListenAddr, PeerAddr, SocketKind};
use crate::conversation::bless::Effect;
use crate::conversation::run::Published;
use crate::conversation::{ClosedBy, FILE_BYTES_MAX};
use crate::handler::wasm::{Guest, Handler};
use crate::topic::matches;

use super::{Cost, FailureKind};

/// Maximum bytes of a guest's output in one play. A conversation cannot expect more than its file has.
pub(super) const KEPT_BYTES_MAX: usize = 4 * FILE_BYTES_MAX as usize;

/// Fixed cost of one effect, beside its bytes.
const ANSWER_BYTES: usize = 64;

/// Address of the simulated device.
const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 50_000);

/// Address of the simulated listener.
const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7993);

/// Simulated connection.
pub(super) struct Device {
    guest: Guest,
    info: Arc<ConnInfo>,
    /// The guest's adapter; the engine owns it during a call.
    dry_run: Option<Box<DryRunAdapter>>,
    keepalive: bool,
    filters: BTreeSet<String>,
    ended: bool,
    kept_bytes: usize,
    times: Vec<Duration>,
    fuel: Vec<u64>,
}

impl Device {
    pub(super) fn new(guest: &Handler, kind: SocketKind, conn: ConnId) -> Self {
        let info = Arc::new(ConnInfo { kind, peer: PeerAddr(PEER), local: ListenAddr(LOCAL), certificate: None });
        Self {
            guest: guest.attach(conn, &info),
            info,
            dry_run: Some(Box::new(DryRunAdapter::strict(conn))),
            keepalive: false,
            filters: BTreeSet::new(),
            ended: false,
            kept_bytes: 0,
            times: Vec::new(),
            fuel: Vec::new(),
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether the keepalive timer runs.
    pub(super) fn has_keepalive(&self) -> bool {
        self.keepalive
    }

    /// Whether a subscription of the guest matches this topic.
    pub(super) fn is_subscribed(&self, topic: &str) -> bool {
        self.filters.iter().any(|filter| matches(plain(filter), topic))
    }

    /// Subscriptions of the guest.
    pub(super) fn filters(&self) -> Vec<String> {
        self.filters.iter().cloned().collect()
    }

    /// Resources used so far.
    pub(super) fn cost(&self) -> Cost {
        Cost {
            event_times: self.times.clone(),
            event_fuel: self.fuel.clone(),
            memory_bytes: self.guest.usage().memory_bytes,
        }
    }

    /// Opens the connection; returns the guest's effects.
    pub(super) async fn open(&mut self) -> Result<Vec<Effect>, FailureKind> {
        let created = Event::SocketCreated(Arc::clone(&self.info));
        self.deliver(0, &created).await
    }

    /// Delivers an event; returns the guest's effects. If the guest calls Close, `SocketClosed` follows.
    pub(super) async fn deliver(&mut self, line: u32, event: &Event) -> Result<Vec<Effect>, FailureKind> {
        let mut effects = self.call(line, event).await?;
        if effects.contains(&Effect::Closed(ClosedBy::Handler)) {
            effects.extend(self.end(line, CloseReason::HandlerAsked).await?);
        }
        Ok(effects)
    }

    /// Closes the connection, for a reason that is not the guest's; returns its effects.
    pub(super) async fn end(&mut self, line: u32, reason: CloseReason) -> Result<Vec<Effect>, FailureKind> {
        self.ended = true;
        if let Some(dry_run) = &mut self.dry_run {
            dry_run.end();
        }
        self.call(line, &Event::SocketClosed(reason)).await
    }

    async fn call(&mut self, line: u32, event: &Event) -> Result<Vec<Effect>, FailureKind> {
        // Restored after each call, below.
        let Some(dry_run) = self.dry_run.take() else { return Ok(Vec::new()) };
        let fuel_before = self.guest.usage().fuel;
        let started = Instant::now();
        let (backend, result) = self.guest.call(Backend::DryRun(dry_run), event).await;
        self.times.push(started.elapsed());
        if let (Some(before), Some(after)) = (fuel_before, self.guest.usage().fuel) {
            self.fuel.push(after.saturating_sub(before));
        }
        let Backend::DryRun(mut dry_run) = backend else { return Ok(Vec::new()) };
        let (commands, left_out) = dry_run.take();
        self.dry_run = Some(dry_run);
        result.map_err(|error| FailureKind::Guest {
            line,
            event: event.name(),
            bytes: bytes(event),
            error: error.to_string(),
            backtrace: self.guest.backtrace(),
        })?;
        let effects: Vec<Effect> = commands.into_iter().filter_map(|operation| self.effect(operation)).collect();
        if left_out > 0 || self.kept_bytes > KEPT_BYTES_MAX {
            return Err(FailureKind::TooMuch { line });
        }
        Ok(effects)
    }

    /// Converts a command to its effect on device or broker; other commands change the simulated state.
    fn effect(&mut self, operation: Command) -> Option<Effect> {
        self.kept_bytes += ANSWER_BYTES;
        match operation {
            Command::Send(bytes) => {
                self.kept_bytes += bytes.len();
                Some(Effect::Sent(bytes))
            }
            Command::Close => Some(Effect::Closed(ClosedBy::Handler)),
            Command::Publish { topic, qos, payload } | Command::RawPublish { topic, qos, payload } => {
                self.kept_bytes += topic.len() + payload.len();
                Some(Effect::Published(Published { topic, qos, payload }))
            }
            Command::StartTimer { .. } => {
                self.keepalive = true;
                None
            }
            Command::StopTimer(_) => {
                self.keepalive = false;
                None
            }
            Command::Subscribe { filter, .. } => {
                self.filters.insert(filter);
                None
            }
            Command::Unsubscribe { filter } => {
                self.filters.remove(&filter);
                None
            }
            Command::Authenticate { .. } => None,
        }
    }
}

/// A filter without the group of a shared subscription, `$share/group/`.
fn plain(filter: &str) -> &str {
    filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/')).map_or(filter, |(_, filter)| filter)
}

fn bytes(event: &Event) -> usize {
    match event {
        Event::ReceivedBytes(bytes) => bytes.len(),
        Event::ReceivedMessages(messages) => messages.iter().map(|message| message.payload.len()).sum(),
        Event::SocketCreated(_) | Event::TimerTimeout(_) | Event::SocketClosed(_) => 0,
    }
}
