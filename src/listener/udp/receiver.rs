//! Receiving task of a UDP socket: reads datagrams in batches and passes them to their flows, or opens new ones.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use quinn_udp::{BATCH_SIZE, RecvMeta};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Flow;
use super::inbox::{Inbox, Refused};
use super::socket::Socket;
use super::socket_group::ReceiverConfig;
use crate::conn::PeerAddr;
use crate::listener::access::Effect;
use crate::listener::flow::{Key, QueueFull, split};
use crate::listener::flow_gate::{FlowGate, FlowStart, GateDecision};

/// Pause after a read that failed for lack of resources.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// After this long without a failed read, the next one is logged again.
const RECOVERED_AFTER: Duration = Duration::from_secs(10);

/// How often the kernel's drops are counted.
const OVERFLOWS_INTERVAL: Duration = Duration::from_secs(1);

/// Receives for the flows of one socket.
pub(super) struct Receiver {
    socket: Arc<Socket>,
    /// The current configuration; loaded before each batch.
    current: Arc<ArcSwap<ReceiverConfig>>,
    config: Arc<ReceiverConfig>,
    gate: FlowGate,
    /// The time of the last failed read.
    failed: Option<Instant>,
}

impl Receiver {
    pub(super) fn new(socket: Arc<Socket>, current: Arc<ArcSwap<ReceiverConfig>>) -> Self {
        let config = current.load_full();
        Self { socket, current, gate: config.gates.make(), config, failed: None }
    }

    /// Applies a new configuration, if there is one. An unchanged gate stays, with its state.
    fn follow(&mut self) {
        let current = self.current.load();
        if Arc::ptr_eq(&current, &self.config) {
            return;
        }
        if !current.gates.are(&self.config.gates) {
            self.gate = current.gates.make();
        }
        self.config = Arc::clone(&current);
    }

    /// Receives until the listener and all flows are gone.
    pub(super) async fn run(mut self, ended: CancellationToken, buffer_bytes: usize) {
        // Untouched pages of it take no memory.
        let mut buffers = vec![0; BATCH_SIZE * buffer_bytes];
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let mut counting = tokio::time::interval(OVERFLOWS_INTERVAL);
        counting.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut overflows, mut has_received) = (0, false);
        loop {
            let received = tokio::select! {
                received = self.socket.receive(&mut buffers, buffer_bytes, &mut metas) => received,
                // Only after a read: the kernel drops nothing while its buffer has room, and a full buffer leads to a
                // read.
                _ = counting.tick(), if has_received => {
                    has_received = false;
                    overflows = self.count_overflows(overflows);
                    continue;
                }
                () = ended.cancelled() => return,
            };
            has_received = true;
            self.follow();
            match received {
                Ok(count) => {
                    for (meta, buffer) in metas.iter().zip(buffers.chunks_exact(buffer_bytes)).take(count) {
                        self.handle_read(meta, buffer);
                    }
                }
                Err(error) if is_the_networks(&error) => {
                    tracing::debug!(listener = %self.config.labels.name, %error, "a datagram did not reach its peer");
                }
                Err(error) => self.handle_failure(&error).await,
            }
        }
    }

    /// Counts the kernel's drops since the last call; returns the number for the next one.
    fn count_overflows(&self, last: u32) -> u32 {
        let Some(now) = self.socket.overflows() else { return last };
        // The kernel's counter wraps at 2^32.
        self.config.labels.metrics.dropped("kernel_full", u64::from(now.wrapping_sub(last)));
        now
    }

    async fn handle_failure(&mut self, error: &io::Error) {
        self.config.labels.metrics.accept_errors.inc();
        if self.failed.replace(Instant::now()).is_none_or(|failed| failed.elapsed() > RECOVERED_AFTER) {
            tracing::error!(listener = %self.config.labels.name, %error, "cannot receive datagrams; trying again");
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }

    /// Handles one buffer: a datagram, or several coalesced ones of one peer.
    fn handle_read(&mut self, meta: &RecvMeta, buffer: &[u8]) {
        let key = self.socket.key(meta);
        let bytes = &buffer[..meta.len.min(buffer.len())];
        // A buffer that is full to the last byte may have been truncated; all but the last datagram are whole.
        let cut = bytes.len() == buffer.len();
        let mut datagrams = split(bytes, meta.stride).peekable();
        while let Some(datagram) = datagrams.next() {
            if cut && datagrams.peek().is_none() {
                self.config.labels.metrics.shed("datagram_truncated");
            } else {
                self.handle_datagram(key, datagram);
            }
        }
    }

    fn handle_datagram(&mut self, key: Key, datagram: &[u8]) {
        let known = self.socket.flows.lock().find(&key).cloned();
        if let Some(inbox) = &known
            && !self.gate.is_restart(inbox.epoch, datagram)
        {
            match inbox.deliver(datagram) {
                Ok(()) => return,
                Err(Refused::Full(QueueFull::Datagrams)) => return self.config.labels.metrics.shed("datagrams_full"),
                Err(Refused::Full(QueueFull::Bytes)) => return self.config.labels.metrics.shed("datagram_bytes_full"),
                Err(Refused::OverBudget) => return self.config.labels.metrics.shed("queued_bytes_full"),
                // Its connection has just ended: the peer is a new one.
                Err(Refused::Gone) => {}
            }
        }
        let peer = PeerAddr(key.peer);
        if self.config.admission.load().access.decide(peer.host()) == Effect::Deny {
            return self.reject("access");
        }
        match self.gate.decide(peer, self.socket.local(&key), datagram) {
            GateDecision::Enter(entry) => self.open(key, entry, datagram),
            GateDecision::Answer(answer) => {
                if let Err(error) = self.socket.try_send(&key, &answer) {
                    self.socket.unsent(&self.config.labels, &key, &answer, &error);
                }
            }
            GateDecision::Ignore => self.config.labels.metrics.shed("no_valid_cookie"),
        }
    }

    /// Opens a flow and passes it to the accept loop; undone if that is not possible.
    fn open(&self, key: Key, entry: FlowStart, datagram: &[u8]) {
        let place = match self.config.arrivals.try_reserve() {
            Ok(place) => place,
            Err(mpsc::error::TrySendError::Full(())) => return self.reject("accept_queue_full"),
            Err(mpsc::error::TrySendError::Closed(())) => return self.reject("draining"),
        };
        let inbox = Arc::new(Inbox::new(entry.epoch(), self.config.queue, Arc::clone(&self.config.queued)));
        if entry.keeps_datagram() && inbox.deliver(datagram).is_err() {
            // The queue is empty, so it is the budget of all.
            return self.reject("queued_bytes_full");
        }
        let opened = self.socket.flows.lock().open(key, Arc::clone(&inbox));
        let Ok((id, replaced)) = opened else {
            return self.reject("connections_max");
        };
        if let Some(replaced) = replaced {
            replaced.replace();
        }
        place.send(Flow::new(Arc::clone(&self.config.labels), Arc::clone(&self.socket), inbox, key, id, entry));
    }

    /// Counts a rejected peer, and its datagram.
    fn reject(&self, reason: &'static str) {
        self.config.labels.metrics.rejected(reason);
        self.config.labels.metrics.shed(reason);
    }
}

/// Errors of a read that report that a sent datagram was not delivered (ICMP).
fn is_the_networks(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | HostUnreachable | Interrupted | NetworkUnreachable)
        || quinn_udp::is_msg_size_err(error)
}
