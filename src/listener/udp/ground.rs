use std::fmt;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Flow;
use super::receiver::Receiver;
use super::socket::Socket;
use crate::conn::ListenAddr;
use crate::listener::door::Door;
use crate::listener::flow::Bounds;
use crate::listener::{Admission, Options, Tuning};
use crate::telemetry::ListenerMetrics;

/// Makes a door for each socket.
#[derive(Clone)]
pub(super) struct Doors(Arc<dyn Fn() -> Door + Send + Sync>);

impl Doors {
    pub(super) fn new(door: impl Fn() -> Door + Send + Sync + 'static) -> Self {
        Self(Arc::new(door))
    }

    pub(super) fn make(&self) -> Door {
        self.0()
    }

    pub(super) fn are(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Doors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Doors")
    }
}

/// A listener as the log and the metrics know it.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) name: Arc<str>,
    pub(super) metrics: ListenerMetrics,
}

/// What the receiving tasks go by: whose the new peers are. Replaced as a whole.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) owner: Arc<Owner>,
    pub(super) admission: Arc<ArcSwap<Admission>>,
    pub(super) doors: Doors,
    pub(super) queue: Bounds,
    pub(super) arrivals: mpsc::Sender<Flow>,
}

/// The sockets of an address, with the tasks that receive from them, which end when it is dropped.
///
/// Listeners and flows share it: the sockets stay as long as one of them is there, all of them, because the kernel would
/// spread the peers anew over what is left.
#[derive(Debug)]
pub(super) struct Ground {
    sockets: Vec<Arc<Socket>>,
    local: ListenAddr,
    /// What the sockets were made with.
    made: Tuning,
    terms: Arc<ArcSwap<Terms>>,
    _tasks: DropGuard,
}

impl Ground {
    /// Binds the sockets and begins to receive.
    pub(super) fn bind(options: &Options, terms: Terms, buffer_bytes: usize) -> io::Result<Self> {
        let mut sockets = Vec::with_capacity(options.datagrams.sockets);
        let mut address = options.bind.address;
        for _ in 0..options.datagrams.sockets {
            let socket = Socket::bind(address, options)?;
            // When the system chose the port, the others follow.
            address = socket.local;
            sockets.push(Arc::new(socket));
        }
        let terms = Arc::new(ArcSwap::from_pointee(terms));
        let ended = CancellationToken::new();
        for socket in &sockets {
            let receiver = Receiver::new(Arc::clone(socket), Arc::clone(&terms));
            tokio::spawn(receiver.run(ended.clone(), buffer_bytes));
        }
        Ok(Self {
            sockets,
            local: ListenAddr(address),
            made: options.tuning.clone(),
            terms,
            _tasks: ended.drop_guard(),
        })
    }

    /// The bound address.
    pub(super) fn local(&self) -> ListenAddr {
        self.local
    }

    /// Whose new peers are from now on.
    pub(super) fn set_terms(&self, terms: Terms) {
        self.terms.store(Arc::new(terms));
    }

    /// Follows other options, for the peers that come from now on.
    ///
    /// # Errors
    ///
    /// What only other sockets could follow, such as their number: with another one, the kernel would spread the peers anew.
    pub(super) fn follow(&self, options: &Options) -> io::Result<()> {
        let datagrams = &options.datagrams;
        self.terms.rcu(|terms| Terms { queue: datagrams.queue, ..Terms::clone(terms) });
        for socket in &self.sockets {
            socket.flows.lock().resize(datagrams.flows_max);
        }
        for socket in &self.sockets {
            socket.resize(&options.tuning)?;
        }
        self.made.followed_by(&options.tuning)?;
        if self.sockets.len() == datagrams.sockets {
            return Ok(());
        }
        let (now, asked) = (self.sockets.len(), datagrams.sockets);
        Err(io::Error::other(format!("it keeps its {now} sockets; {asked} take a restart, or another address")))
    }
}
