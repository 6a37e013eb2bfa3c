//! Receive queue between the receiving task of a socket and the connection of a flow.

use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::listener::flow::{Bounds, Queue, QueueFull};

/// The state that a flow shares with its receiving task.
#[derive(Debug)]
pub(super) struct Inbox {
    /// The epoch of the flow at its gate.
    pub(super) epoch: u64,
    state: Mutex<State>,
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
    Gone,
}

impl Inbox {
    pub(super) fn new(epoch: u64, bounds: Bounds) -> Self {
        let state = State { queue: Queue::new(bounds), waker: None, life: Life::Open };
        Self { epoch, state: Mutex::new(state) }
    }

    pub(super) fn deliver(&self, datagram: &[u8]) -> Result<(), Refused> {
        let waker = {
            let mut state = self.state.lock();
            if state.life != Life::Open {
                return Err(Refused::Gone);
            }
            state.queue.push(datagram).map_err(Refused::Full)?;
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
        state.queue.clear()
    }

    /// The next datagram; `None` after the last one.
    pub(super) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut state = self.state.lock();
        match (state.queue.pop(), state.life) {
            (Some(datagram), _) => Poll::Ready(Some(datagram)),
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
