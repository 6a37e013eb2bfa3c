//! Backend of a handler's adapter calls: a live connection's [`Adapter`], or a [`DryRunAdapter`] without effects.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use bytes::Bytes;

use super::{Adapter, DryRunAdapter};
use crate::conn::{Command, ConnId, Refused, Timer};

/// Backend of the guest's `adapter` import for one call.
#[derive(Debug)]
pub enum Backend {
    /// A live connection.
    Live(Box<Adapter>),
    /// No connection: commands are logged and answered, and have no effect.
    DryRun(Box<DryRunAdapter>),
}

impl Backend {
    /// A dry run for a handler that serves `conn`.
    pub fn dry_run(conn: ConnId) -> Self {
        Self::DryRun(Box::new(DryRunAdapter::new(conn)))
    }

    /// The connection of this call, by its id towards the handler.
    pub fn conn(&self) -> ConnId {
        match self {
            Self::Live(adapter) => adapter.handler_conn(),
            Self::DryRun(adapter) => adapter.conn(),
        }
    }

    /// As [`Adapter::allow_reauthentication`].
    pub fn allow_reauthentication(&mut self) {
        match self {
            Self::Live(adapter) => adapter.allow_reauthentication(),
            Self::DryRun(_) => {}
        }
    }

    /// As [`Adapter::send`].
    pub fn send(&mut self, bytes: Bytes) -> Result<(), Refused> {
        match self {
            Self::Live(adapter) => adapter.send(bytes),
            Self::DryRun(adapter) => adapter.apply(Command::Send(bytes)),
        }
    }

    /// As [`Adapter::close`].
    pub fn close(&mut self) -> Result<(), Refused> {
        match self {
            Self::Live(adapter) => adapter.close(),
            Self::DryRun(adapter) => adapter.apply(Command::Close),
        }
    }

    /// As [`Adapter::start_timer`].
    pub fn start_timer(&mut self, timer: Timer, interval: Duration) -> Result<(), Refused> {
        match self {
            Self::Live(adapter) => adapter.start_timer(timer, interval),
            Self::DryRun(adapter) => adapter.apply(Command::StartTimer { timer, interval }),
        }
    }

    /// As [`Adapter::stop_timer`].
    pub fn stop_timer(&mut self, timer: Timer) -> Result<(), Refused> {
        match self {
            Self::Live(adapter) => adapter.stop_timer(timer),
            Self::DryRun(adapter) => adapter.apply(Command::StopTimer(timer)),
        }
    }

    /// As [`Adapter::apply`].
    pub async fn apply(&mut self, command: Command) -> Result<(), Refused> {
        match self {
            Self::Live(adapter) => adapter.apply(command).await,
            Self::DryRun(adapter) => adapter.apply(command),
        }
    }
}

/// The adapter of a connection, which a guest's instance owns for the length of a call.
///
/// A wasmtime store owns everything its guest can reach, and an instance may serve many connections; so the connection
/// moves its adapter into the call and takes it back with the answer. The connection does nothing else in between:
/// reaching for the adapter during a call is a bug of this program, and panics.
#[derive(Debug)]
pub(crate) struct AdapterSlot(Option<Box<Adapter>>);

const IN_A_CALL: &str = "the adapter is in a call, and its connection waits for the answer";

impl AdapterSlot {
    pub(crate) fn new(adapter: Adapter) -> Self {
        Self(Some(Box::new(adapter)))
    }

    /// Moves the adapter out, until [`AdapterSlot::restore`].
    pub(crate) fn take(&mut self) -> Backend {
        Backend::Live(self.0.take().expect(IN_A_CALL))
    }

    /// Moves the adapter of a finished call back.
    pub(crate) fn restore(&mut self, backend: Backend) {
        match backend {
            Backend::Live(adapter) => self.0 = Some(adapter),
            Backend::DryRun(_) => {}
        }
    }
}

impl Deref for AdapterSlot {
    type Target = Adapter;

    fn deref(&self) -> &Adapter {
        self.0.as_deref().expect(IN_A_CALL)
    }
}

impl DerefMut for AdapterSlot {
    fn deref_mut(&mut self) -> &mut Adapter {
        self.0.as_deref_mut().expect(IN_A_CALL)
    }
}
