//! Where the questions of an instance are answered during a call.

use std::time::Duration;

use bytes::Bytes;

use crate::adapter::{Adapter, Rehearsal};
use crate::conn::{Command, ConnId, QoS, Refused, Timer};

/// What stands behind the guest's `adapter` import for the length of one call.
#[derive(Debug)]
pub enum Desk {
    /// A connection's adapter.
    Live(Box<Adapter>),
    /// Nothing: what is asked is written down and answered, and has no effect.
    Rehearsal(Box<Rehearsal>),
}

impl Desk {
    /// Whose connection the call is about.
    pub(super) fn conn(&self) -> ConnId {
        match self {
            Self::Live(adapter) => adapter.handler_conn(),
            Self::Rehearsal(rehearsal) => rehearsal.conn(),
        }
    }

    /// The instance may have to say again who the peer is.
    pub(super) fn expect_again(&mut self) {
        match self {
            Self::Live(adapter) => adapter.expect_again(),
            Self::Rehearsal(_) => {}
        }
    }

    pub(super) fn send(&mut self, bytes: Bytes) -> Result<(), Refused> {
        match self {
            Self::Live(adapter) => adapter.send(bytes),
            Self::Rehearsal(rehearsal) => rehearsal.apply(Command::Send(bytes)),
        }
    }

    pub(super) fn close(&mut self) -> Result<(), Refused> {
        match self {
            Self::Live(adapter) => adapter.close(),
            Self::Rehearsal(rehearsal) => rehearsal.apply(Command::Close),
        }
    }

    pub(super) fn start_timer(&mut self, timer: Timer, interval: Duration) -> Result<(), Refused> {
        match self {
            Self::Live(adapter) => adapter.start_timer(timer, interval),
            Self::Rehearsal(rehearsal) => rehearsal.apply(Command::StartTimer { timer, interval }),
        }
    }

    pub(super) fn stop_timer(&mut self, timer: Timer) -> Result<(), Refused> {
        match self {
            Self::Live(adapter) => adapter.stop_timer(timer),
            Self::Rehearsal(rehearsal) => rehearsal.apply(Command::StopTimer(timer)),
        }
    }

    pub(super) async fn apply(&mut self, command: Command) -> Result<(), Refused> {
        match self {
            Self::Live(adapter) => adapter.apply(command).await,
            Self::Rehearsal(rehearsal) => rehearsal.apply(command),
        }
    }

    pub(super) async fn raw_publish(&mut self, topic: String, qos: QoS, payload: Bytes) -> Result<(), Refused> {
        match self {
            Self::Live(adapter) => adapter.raw_publish(&topic, qos, payload).await,
            Self::Rehearsal(rehearsal) => rehearsal.raw_publish(topic, qos, payload),
        }
    }
}
