//! WASI preview 2 without capabilities, for guests with a toolchain that imports it: no files, no sockets, no
//! environment. Standard output and standard error go to the log.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::{WasiCtx, WasiCtxView};

use super::log::{GuestLog, LINE_BYTES_MAX};
use crate::wit::types::Level;

/// Maximum number of host resources of one instance: streams, pollables of clocks and the like. Language runtimes use a
/// few dozen; each takes host memory that the guest's memory limit does not count.
const RESOURCES_MAX: usize = 1000;

/// WASI context and resource table of one instance.
pub(super) struct Wasi {
    ctx: WasiCtx,
    table: ResourceTable,
}

impl Wasi {
    pub(super) fn new(log: Arc<Mutex<GuestLog>>) -> Self {
        let ctx = WasiCtx::builder().stdout(Log(Arc::clone(&log))).stderr(Log(log)).build();
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        Self { ctx, table }
    }

    pub(super) fn view(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.ctx, table: &mut self.table }
    }
}

/// A guest's standard output or standard error.
#[derive(Clone)]
struct Log(Arc<Mutex<GuestLog>>);

impl IsTerminal for Log {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Log {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(LineBuffer { log: self.clone(), line: Vec::new() })
    }
}

/// Splits the output into log lines.
struct LineBuffer {
    log: Log,
    line: Vec<u8>,
}

impl LineBuffer {
    fn end_line(&mut self) {
        if !self.line.is_empty() {
            self.log.0.lock().line(Level::Debug, &String::from_utf8_lossy(&self.line));
            self.line.clear();
        }
    }
}

impl AsyncWrite for LineBuffer {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        for &byte in bytes {
            if byte == b'\n' || self.line.len() == LINE_BYTES_MAX {
                self.end_line();
            }
            if byte != b'\n' {
                self.line.push(byte);
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end_line();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use wasmtime_wasi::sockets::WasiSocketsView;

    use super::super::log::handler_limiter;
    use super::*;
    use crate::conn::ConnId;

    fn wasi() -> Wasi {
        let log = GuestLog::new(ConnId::from_u64(1), "guest".into(), handler_limiter(), Counter::default());
        Wasi::new(Arc::new(Mutex::new(log)))
    }

    impl wasmtime_wasi::WasiView for Wasi {
        fn ctx(&mut self) -> WasiCtxView<'_> {
            self.view()
        }
    }

    /// Sockets are refused before they take a descriptor.
    #[tokio::test]
    async fn sockets_are_refused() {
        use wasmtime_wasi::p2::bindings::sockets::network::IpAddressFamily;
        use wasmtime_wasi::p2::bindings::sockets::{tcp_create_socket, udp_create_socket};

        let mut wasi = wasi();
        assert!(tcp_create_socket::Host::create_tcp_socket(&mut wasi.sockets(), IpAddressFamily::Ipv4).is_err());
        assert!(udp_create_socket::Host::create_udp_socket(&mut wasi.sockets(), IpAddressFamily::Ipv4).await.is_err());
    }

    /// The host resources of an instance are limited.
    #[test]
    fn resources_are_bounded() {
        let mut wasi = wasi();
        for _ in 0..RESOURCES_MAX {
            wasi.table.push(()).unwrap();
        }
        assert!(wasi.table.push(()).is_err());
    }
}
