//! Receive queue between the receiving task of a socket and the connection of a flow.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::byte_budget::ByteBudget;
use crate::listener::flow::{Bounds, Queue, QueueFull};

/// The state that a flow shares with its receiving task.
#[derive(Debug)]
pub(super) struct Inbox {
    /// The epoch of the flow at its gate.
    pub(super) epoch: u64,
    state: Mutex<State>,
    /// The budget of all queues.
    budget: Arc<ByteBudget>,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    waker: Option<Waker>,
    life: Life,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Open,
    /// The peer restarted: no datagram follows the queued ones.
    Replaced,
    /// The flow was dropped.
    Gone,
}

/// Why a datagram was refused.
pub(super) enum Refused {
    Full(QueueFull),
    /// All queues together have reached their bound.
    OverBudget,
    Gone,
}

impl Inbox {
    pub(super) fn new(epoch: u64, bounds: Bounds, budget: Arc<ByteBudget>) -> Self {
        let state = State { queue: Queue::new(bounds), waker: None, life: Life::Open };
        Self { epoch, state: Mutex::new(state), budget }
    }

    pub(super) fn deliver(&self, datagram: &[u8]) -> Result<(), Refused> {
        let waker = {
            let mut state = self.state.lock();
            if state.life != Life::Open {
                return Err(Refused::Gone);
            }
            if !self.budget.admits(state.queue.bytes(), datagram.len()) {
                return Err(Refused::OverBudget);
            }
            state.queue.push(datagram).map_err(Refused::Full)?;
            self.budget.update(0, datagram.len());
            state.waker.take()
        };
        // Not under the lock: the woken task takes it at once.
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    pub(super) fn replace(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.life = Life::Replaced;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Queued datagrams.
    pub(super) fn queued(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// Refuses further datagrams; returns the number of unread ones.
    pub(super) fn close(&self) -> usize {
        let mut state = self.state.lock();
        state.life = Life::Gone;
        self.budget.update(state.queue.bytes(), 0);
        state.queue.clear()
    }

    /// The next datagram; `None` after the last one.
    pub(super) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut state = self.state.lock();
        match (state.queue.pop(), state.life) {
            (Some(datagram), _) => {
                self.budget.update(datagram.len(), 0);
                Poll::Ready(Some(datagram))
            }
            (None, Life::Replaced | Life::Gone) => Poll::Ready(None),
            (None, Life::Open) => {
                match &mut state.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    waker @ None => *waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}

/// Without a close: the flow never reached the accept loop.
impl Drop for Inbox {
    fn drop(&mut self) {
        self.budget.update(self.state.get_mut().queue.bytes(), 0);
    }
}
