//! Phases and deadlines of one connection: idle timeout, keepalive, write timeout. Pure: no socket, no clock, `now` is
//! an argument.

use std::time::{Duration, Instant};

use crate::adapter::TimerChange;
use crate::conn::CloseReason;

/// Phase of a connection. It only moves down this list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The handler knows the peer; bytes flow.
    Open,
    /// The close is decided: reads stop, queued bytes are still written.
    Closing(CloseReason),
}

/// Time limits of a connection. The peer's bytes count as activity, the gateway's do not.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Until the first byte of the peer.
    pub idle: Duration,
    /// Until the peer has authenticated; `None`: it need not.
    pub login: Option<Duration>,
    /// Of silence after the first byte, while no keepalive timer runs, which decides instead; `None`: unlimited.
    pub silence: Option<Duration>,
    /// Without progress while bytes for the peer are queued.
    pub write: Duration,
}

/// A deadline that has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Keepalive expired; the handler gets `OnTimerTimeout` before the close.
    Keepalive,
    /// Idle timeout.
    Idle,
    /// The peer has not authenticated in time.
    Login,
    /// Write timeout: the peer accepts no bytes, so no more are offered.
    Write,
}

#[derive(Debug)]
pub(crate) struct State {
    phase: Phase,
    timeouts: Timeouts,
    opened: Instant,
    /// Time of the last received bytes; `None` before the first.
    received: Option<Instant>,
    is_authenticated: bool,
    /// The silence after which keepalive expires, and the start of the timer.
    keepalive: Option<(Duration, Instant)>,
    /// Since when queued bytes have waited while the peer accepted none.
    stalled: Option<Instant>,
}

impl State {
    pub(crate) fn new(opened: Instant, timeouts: Timeouts) -> Self {
        Self {
            phase: Phase::Open,
            timeouts,
            opened,
            received: None,
            is_authenticated: false,
            keepalive: None,
            stalled: None,
        }
    }

    pub(crate) fn phase(&self) -> &Phase {
        &self.phase
    }

    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.opened)
    }

    /// Closes the connection. The first reason is kept.
    pub(crate) fn close(&mut self, reason: CloseReason) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closing(reason);
        }
    }

    /// Bytes or a datagram arrived.
    pub(crate) fn handle_received(&mut self, now: Instant) {
        self.received = Some(now);
    }

    /// The handler has authenticated the peer.
    pub(crate) fn handle_authenticated(&mut self) {
        self.is_authenticated = true;
    }

    /// After a write: whether the socket accepted bytes, and whether others are still queued.
    pub(crate) fn handle_written(&mut self, now: Instant, took_some: bool, some_wait: bool) {
        if !some_wait {
            self.stalled = None;
        } else if took_some || self.stalled.is_none() {
            self.stalled = Some(now);
        }
    }

    /// The handler started or stopped a timer.
    ///
    /// Keepalive expires after 1.5 times the interval (MQTT 3.1.1 §3.1.2.10). Received bytes restart it and sent bytes
    /// do not, so the gateway's own traffic cannot keep a dead peer alive.
    pub(crate) fn handle_timer(&mut self, now: Instant, change: TimerChange) {
        self.keepalive = match change {
            TimerChange::Start(interval) => Some((interval.saturating_add(interval / 2), now)),
            TimerChange::Stop => None,
        };
    }

    /// Time of the next [`State::handle_timeout`] call; `None` when no deadline is set.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [self.idle_deadline(), self.login_deadline(), self.keepalive_deadline(), self.write_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns a deadline that has passed. The phase changes with it, so each is returned once.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Option<Due> {
        let due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if due(self.write_deadline()) {
            // Also while closing: the last bytes have the same deadline.
            self.close(CloseReason::WriteTimedOut);
            self.stalled = None;
            return Some(Due::Write);
        }
        if due(self.keepalive_deadline()) {
            self.close(CloseReason::KeepaliveExpired);
            return Some(Due::Keepalive);
        }
        if due(self.login_deadline()) {
            self.close(CloseReason::LoginTimedOut);
            return Some(Due::Login);
        }
        if due(self.idle_deadline()) {
            self.close(CloseReason::IdleTimedOut);
            return Some(Due::Idle);
        }
        None
    }

    fn idle_deadline(&self) -> Option<Instant> {
        if self.phase != Phase::Open {
            return None;
        }
        match self.received {
            None => self.opened.checked_add(self.timeouts.idle),
            Some(received) => received.checked_add(self.timeouts.silence.filter(|_| self.keepalive.is_none())?),
        }
    }

    fn login_deadline(&self) -> Option<Instant> {
        let is_due = self.phase == Phase::Open && !self.is_authenticated;
        self.opened.checked_add(self.timeouts.login.filter(|_| is_due)?)
    }

    fn keepalive_deadline(&self) -> Option<Instant> {
        let (silence, started) = self.keepalive.filter(|_| self.phase == Phase::Open)?;
        let heard = self.received.map_or(started, |received| received.max(started));
        heard.checked_add(silence)
    }

    fn write_deadline(&self) -> Option<Instant> {
        self.stalled.map(|since| since + self.timeouts.write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn opened(idle: Duration) -> (Instant, State) {
        let now = Instant::now();
        (now, State::new(now, Timeouts { idle, login: None, silence: None, write: 1000 * MS }))
    }

    /// After the first bytes, a silence longer than its limit closes the connection, until a keepalive timer replaces it.
    #[test]
    fn silence_after_the_first_byte() {
        let start = Instant::now();
        let timeouts = Timeouts { idle: 100 * MS, login: None, silence: Some(500 * MS), write: 1000 * MS };
        let mut state = State::new(start, timeouts);
        assert_eq!(state.poll_timeout(), Some(start + 100 * MS), "before the first byte");
        state.handle_received(start + 300 * MS);
        assert_eq!(state.poll_timeout(), Some(start + 800 * MS));

        state.handle_timer(start + 300 * MS, TimerChange::Start(4000 * MS));
        assert_eq!(state.poll_timeout(), Some(start + 6300 * MS), "a device may announce long intervals");
        state.handle_timer(start + 300 * MS, TimerChange::Stop);

        assert_eq!(state.handle_timeout(start + 799 * MS), None);
        assert_eq!(state.handle_timeout(start + 800 * MS), Some(Due::Idle));
        assert_eq!(*state.phase(), Phase::Closing(CloseReason::IdleTimedOut));
    }

    /// A peer that sends bytes and never authenticates is closed; an authenticated one is not.
    #[test]
    fn login_deadline() {
        let start = Instant::now();
        let timeouts = Timeouts { idle: 100 * MS, login: Some(500 * MS), silence: None, write: 1000 * MS };
        let (mut stranger, mut device) = (State::new(start, timeouts), State::new(start, timeouts));
        stranger.handle_received(start + 499 * MS);
        assert_eq!(stranger.handle_timeout(start + 499 * MS), None);
        assert_eq!(stranger.handle_timeout(start + 500 * MS), Some(Due::Login));
        assert_eq!(*stranger.phase(), Phase::Closing(CloseReason::LoginTimedOut));
        assert_eq!(stranger.poll_timeout(), None, "it is due once");

        device.handle_received(start);
        device.handle_authenticated();
        assert_eq!(device.poll_timeout(), None);
        assert_eq!(device.handle_timeout(start + 5000 * MS), None);
    }

    /// A peer that sends nothing is closed at 500 ms, and not at 499.
    #[test]
    fn idle_deadline() {
        let (start, mut state) = opened(500 * MS);
        assert_eq!(state.poll_timeout(), Some(start + 500 * MS));

        assert_eq!(state.handle_timeout(start + 499 * MS), None);
        assert_eq!(*state.phase(), Phase::Open);

        assert_eq!(state.handle_timeout(start + 500 * MS), Some(Due::Idle));
        assert_eq!(*state.phase(), Phase::Closing(CloseReason::IdleTimedOut));
        assert_eq!(state.poll_timeout(), None, "it is due once");
    }

    /// The first byte ends the idle deadline for good.
    #[test]
    fn a_byte_ends_the_idle_deadline() {
        let (start, mut state) = opened(500 * MS);
        state.handle_received(start + MS);
        assert_eq!(state.poll_timeout(), None);
        assert_eq!(state.handle_timeout(start + 5000 * MS), None);
    }

    /// Keepalive expires after one and a half intervals of silence, counted from the last received byte.
    #[test]
    fn keepalive_counts_silence() {
        let (start, mut state) = opened(500 * MS);
        state.handle_received(start);
        state.handle_timer(start + 100 * MS, TimerChange::Start(200 * MS));
        assert_eq!(state.poll_timeout(), Some(start + 400 * MS));

        state.handle_received(start + 300 * MS);
        assert_eq!(state.handle_timeout(start + 400 * MS), None);
        assert_eq!(state.handle_timeout(start + 599 * MS), None);
        assert_eq!(state.handle_timeout(start + 600 * MS), Some(Due::Keepalive));
        assert_eq!(*state.phase(), Phase::Closing(CloseReason::KeepaliveExpired));
        assert_eq!(state.handle_timeout(start + 900 * MS), None, "it is due once");
    }

    /// Sent bytes do not keep a silent peer alive.
    #[test]
    fn sent_bytes_do_not_count() {
        let (start, mut state) = opened(500 * MS);
        state.handle_received(start);
        state.handle_timer(start, TimerChange::Start(200 * MS));
        state.handle_written(start + 250 * MS, true, false);
        assert_eq!(state.handle_timeout(start + 300 * MS), Some(Due::Keepalive));
    }

    /// A second start replaces the first; a stop clears the deadline.
    #[test]
    fn timers_are_replaced_and_stopped() {
        let (start, mut state) = opened(500 * MS);
        state.handle_received(start);
        state.handle_timer(start, TimerChange::Start(200 * MS));
        state.handle_timer(start, TimerChange::Start(1000 * MS));
        assert_eq!(state.poll_timeout(), Some(start + 1500 * MS));
        state.handle_timer(start, TimerChange::Stop);
        assert_eq!(state.poll_timeout(), None);
    }

    /// A peer that accepts nothing is closed after the write timeout; every accepted byte restarts it.
    #[test]
    fn a_stalled_peer_is_closed() {
        let (start, mut state) = opened(500 * MS);
        state.handle_received(start);
        state.handle_written(start, false, true);
        state.handle_written(start + 900 * MS, true, true);
        state.handle_written(start + 1000 * MS, false, true);
        assert_eq!(state.handle_timeout(start + 1899 * MS), None);
        assert_eq!(state.handle_timeout(start + 1900 * MS), Some(Due::Write));
        assert_eq!(*state.phase(), Phase::Closing(CloseReason::WriteTimedOut));
    }

    /// The first close reason is the reported one.
    #[test]
    fn the_first_reason_stays() {
        let (start, mut state) = opened(500 * MS);
        state.close(CloseReason::HandlerAsked);
        state.close(CloseReason::Kicked);
        assert_eq!(state.handle_timeout(start + 600 * MS), None);
        assert_eq!(*state.phase(), Phase::Closing(CloseReason::HandlerAsked));
    }
}
