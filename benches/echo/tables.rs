//! One gateway process with more sockets than a table of descriptors may hold.
//!
//! The kernel's limit on descriptors holds for each table, and a thread may have a table of its own. So each listener has
//! a thread with its own table, its own runtime and its own connections, which share everything else: the engine, the
//! guest, the table of connections, the broker, the metrics.

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
    // All of them before the first table is taken: whoever wakes a runtime writes to a descriptor of it, from any thread.
    let runtimes: Vec<_> = parts.listeners.iter().map(|_| runtime()).collect();
    for (listener, runtime) in parts.listeners.iter().zip(runtimes) {
        let (connections, socket) = (parts.connections(listener), listener.socket.clone());
        let (metrics, bound_tx) = (parts.telemetry.listener(&socket.name), bound_tx.clone());
        thread::spawn(move || {
            take_own_table().expect("no table of its own");
            runtime.block_on(async {
                let socket = Listener::bind(&socket, None, metrics).expect("cannot bind");
                bound_tx.send(socket.local_addr()).expect("nobody waits");
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

/// From now on this thread's descriptors are its own: a copy of those that the process has at this moment, so what was
/// opened for all before is at hand, and what is opened later belongs to one thread.
#[expect(
    unsafe_code,
    reason = "there is no safe wrapper: descriptors of this thread mean nothing to others from here on"
)]
fn take_own_table() -> io::Result<()> {
    // SAFETY: the call touches no memory. What is opened in this thread from now on, the listener and its sockets, is used and
    // closed in it alone; what others use of it, the descriptors that wake its runtime, every table has a copy of.
    match unsafe { libc::unshare(libc::CLONE_FILES) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
