//! One gateway process with more sockets than one descriptor table may hold.
//!
//! The kernel limits the descriptors of a table, and a thread may have a table of its own. So each listener has
//! a thread with its own table, its own runtime and its own connections, which share all other state: the engine, the
//! guest, the connection registry, the broker, the metrics.

use std::io;
use std::sync::mpsc;
use std::thread;

use polygate::testing::drain::Drain;
use polygate::testing::listener::Listener;
use polygate::testing::serve::{ListenerShutdown, serve};
use tokio::runtime::{Builder, Runtime};

use crate::devices::lines;
use crate::parts::Parts;

/// Binds every listener of the configuration and prints its address; then answers each line of stdin with the number of
/// live connections.
pub async fn run(parts: Parts) {
    let (bound_tx, bound) = mpsc::channel();
    // All of them before the first table is unshared: a runtime is woken by a write to its descriptor, from any thread.
    let runtimes: Vec<_> = parts.listeners.iter().map(|_| runtime()).collect();
    for (listener, runtime) in parts.listeners.iter().zip(runtimes) {
        let (connections, socket) = (parts.connections(listener), listener.socket.clone());
        let (metrics, bound_tx) = (parts.telemetry.listener(&socket.name), bound_tx.clone());
        thread::spawn(move || {
            take_own_table().expect("no table of its own");
            runtime.block_on(async {
                let socket = Listener::bind(&socket, None, metrics, &crate::parts::queued()).expect("cannot bind");
                bound_tx.send(socket.local_addr()).expect("the receiver is gone");
                serve(socket, connections, Drain::new(), ListenerShutdown::default()).await
            })
        });
        print!("{} ", bound.recv().expect("a thread has ended"));
    }
    println!();
    let mut lines = lines();
    while lines.recv().await.is_some() {
        println!("{}", parts.table.len());
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("no runtime")
}

/// Unshares the descriptor table of this thread (`CLONE_FILES`): a copy of the current one, so shared descriptors stay
/// available, and later ones belong to one thread.
#[expect(
    unsafe_code,
    reason = "there is no safe wrapper: descriptors of this thread mean nothing to others from here on"
)]
fn take_own_table() -> io::Result<()> {
    // SAFETY: the call touches no memory. Later descriptors of this thread, the listener and its sockets, are used and
    // closed in it alone; shared ones, which wake its runtime, are copied to every table.
    match unsafe { libc::unshare(libc::CLONE_FILES) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
