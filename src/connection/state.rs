//! The phases and deadlines of one connection. Pure: no socket, no clock, `now` is an argument.

use std::time::{Duration, Instant};

use crate::adapter::TimerChange;
use crate::conn::CloseReason;

/// Where a connection is in its life. It only ever moves down this list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The handler knows the peer; bytes flow.
    Open,
    /// It is decided that the connection ends: nothing new is read, what is queued is still written.
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

/// What has become due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// The keepalive interval ran out; the handler is to be told before the connection ends.
    Keepalive,
    /// The peer was silent for too long.
    Idle,
    /// The peer has not authenticated in time.
    Login,
    /// The peer does not take what is sent to it; there is no use in offering it more.
    Write,
}

/// Phases and deadlines.
#[derive(Debug)]
pub(crate) struct State {
    phase: Phase,
    timeouts: Timeouts,
    opened: Instant,
    /// When the peer was last heard; `None` before its first byte.
    received: Option<Instant>,
    is_authenticated: bool,
    /// The silence after which keepalive expires, and since when it may count.
    keepalive: Option<(Duration, Instant)>,
    /// Since when bytes have waited without the peer taking any.
    stalled: Option<Instant>,
}

impl State {
    /// A connection that was opened now.
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

    /// The phase.
    pub(crate) fn phase(&self) -> &Phase {
        &self.phase
    }

    /// How long the connection has lived.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.opened)
    }

    /// Decides that the connection ends. The first reason stays.
    pub(crate) fn close(&mut self, reason: CloseReason) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closing(reason);
        }
    }

    /// Bytes or a datagram came from the peer.
    pub(crate) fn handle_received(&mut self, now: Instant) {
        self.received = Some(now);
    }

    /// The handler has authenticated the peer.
    pub(crate) fn handle_authenticated(&mut self) {
        self.is_authenticated = true;
    }

    /// The socket was offered bytes: whether it took some, and whether others still wait.
    pub(crate) fn handle_written(&mut self, now: Instant, took_some: bool, some_wait: bool) {
        if !some_wait {
            self.stalled = None;
        } else if took_some || self.stalled.is_none() {
            self.stalled = Some(now);
        }
    }

    /// The handler started or stopped a timer.
    ///
    /// Keepalive expires after 1.5 times the interval (MQTT 3.1.1 §3.1.2.10). The peer's bytes start it
    /// anew and ours do not, so our own traffic cannot keep a dead peer alive.
    pub(crate) fn handle_timer(&mut self, now: Instant, change: TimerChange) {
        self.keepalive = match change {
            TimerChange::Start(interval) => Some((interval.saturating_add(interval / 2), now)),
            TimerChange::Stop => None,
        };
    }

    /// When [`State::handle_timeout`] is to be called next; `None` when nothing can become due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [self.idle_deadline(), self.login_deadline(), self.keepalive_deadline(), self.write_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Finds what has become due. The phase moves with it, so the same thing is due once.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Option<Due> {
        let due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if due(self.write_deadline()) {
            // Also while closing: the peer does not take the last bytes either.
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

    /// A peer that has spoken is ended after the silence limit, unless a keepalive timer decides instead.
    #[test]
    fn silence_after_the_first_byte() {
        let start = Instant::now();
        let timeouts = Timeouts { idle: 100 * MS, login: None, silence: Some(500 * MS), write: 1000 * MS };
        let mut state = State::new(start, timeouts);
        assert_eq!(state.poll_timeout(), Some(start + 100 * MS), "before the first byte");
        state.handle_received(start + 300 * MS);
        assert_eq!(state.poll_timeout(), Some(start + 800 * MS));

        state.handle_timer(start + 300 * MS, TimerChange::Start(4000 * MS));
        assert_eq!(state.poll_timeout(), Some(start + 6300 * MS), "a device may announce that it speaks rarely");
        state.handle_timer(start + 300 * MS, TimerChange::Stop);

        assert_eq!(state.handle_timeout(start + 799 * MS), None);
        assert_eq!(state.handle_timeout(start + 800 * MS), Some(Due::Idle));
        assert_eq!(*state.phase(), Phase::Closing(CloseReason::IdleTimedOut));
    }

    /// A peer that sends bytes and never authenticates is ended; one that has authenticated is not.
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

    /// A peer that never speaks is ended at 500 ms, and not at 499.
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

    /// Keepalive runs out after one and a half intervals of silence, counted from the last byte received.
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

    /// What we write does not keep a silent peer alive.
    #[test]
    fn our_bytes_do_not_count() {
        let (start, mut state) = opened(500 * MS);
        state.handle_received(start);
        state.handle_timer(start, TimerChange::Start(200 * MS));
        state.handle_written(start + 250 * MS, true, false);
        assert_eq!(state.handle_timeout(start + 300 * MS), Some(Due::Keepalive));
    }

    /// A second start replaces the first; a stop leaves nothing due.
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

    /// A peer that takes nothing is ended after the write timeout; every byte it takes starts it anew.
    #[test]
    fn a_stalled_peer_is_ended() {
        let (start, mut state) = opened(500 * MS);
        state.handle_received(start);
        state.handle_written(start, false, true);
        state.handle_written(start + 900 * MS, true, true);
        state.handle_written(start + 1000 * MS, false, true);
        assert_eq!(state.handle_timeout(start + 1899 * MS), None);
        assert_eq!(state.handle_timeout(start + 1900 * MS), Some(Due::Write));
        assert_eq!(*state.phase(), Phase::Closing(CloseReason::WriteTimedOut));
    }

    /// The first reason to end is the one that is told.
    #[test]
    fn the_first_reason_stays() {
        let (start, mut state) = opened(500 * MS);
        state.close(CloseReason::HandlerAsked);
        state.close(CloseReason::Kicked);
        assert_eq!(state.handle_timeout(start + 600 * MS), None);
        assert_eq!(*state.phase(), Phase::Closing(CloseReason::HandlerAsked));
    }
}
