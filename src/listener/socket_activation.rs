//! Socket activation: listening sockets that systemd bound and passed to this process (sd_listen_fds(3)).
//!
//! The gateway needs no right to bind low ports then, and new connections wait in the backlog while it restarts.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use socket2::{SockRef, Type};

use super::Bind;

/// Passed sockets that no listener has taken yet.
#[derive(Debug, Default)]
pub struct ActivatedSockets(Vec<ActivatedSocket>);

#[derive(Debug)]
struct ActivatedSocket {
    name: String,
    /// The bound address; `None` for a socket that no listener can use, such as a Unix socket.
    address: Option<SocketAddr>,
    has_datagrams: bool,
    socket: OwnedFd,
}

impl ActivatedSockets {
    /// The sockets that the service manager passed to this process; empty when there are none.
    ///
    /// Must be called once, before anything else is opened: it takes ownership of the descriptors.
    ///
    /// # Errors
    ///
    /// A passed descriptor is not an open socket, or `LISTEN_FDNAMES` does not name each.
    pub fn from_environment() -> io::Result<Self> {
        sd_notify::listen_fds_with_names()?
            .map(|(fd, name)| activated_socket(fd, &name))
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// The socket for a listener: the one with its name, or else the one bound to its address.
    pub fn take(&mut self, listener: &str, bind: Bind) -> Option<OwnedFd> {
        let is_named = |activated_socket: &ActivatedSocket| activated_socket.name == listener;
        let is_there = |activated_socket: &ActivatedSocket| {
            activated_socket.address == Some(bind.address) && bind.address.port() != 0
        };
        let fits = |activated_socket: &ActivatedSocket| {
            activated_socket.has_datagrams == bind.transport.has_datagrams() && activated_socket.address.is_some()
        };
        let at = self.0.iter().position(|activated_socket| fits(activated_socket) && is_named(activated_socket));
        let at = at.or_else(|| {
            self.0.iter().position(|activated_socket| fits(activated_socket) && is_there(activated_socket))
        })?;
        Some(self.0.remove(at).socket)
    }

    /// The remaining sockets, as names or addresses.
    pub fn unclaimed(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|activated_socket| match activated_socket.address {
            Some(address) => format!("{} at {address}", activated_socket.name),
            None => activated_socket.name.clone(),
        })
    }
}

fn activated_socket(fd: RawFd, name: &str) -> io::Result<ActivatedSocket> {
    #[expect(unsafe_code, reason = "a number in the environment is all there is of the descriptor")]
    // SAFETY: nothing is closed here, and the kernel refuses a number that is not open.
    let looked_at = unsafe { BorrowedFd::borrow_raw(fd) };
    let seen = SockRef::from(&looked_at);
    let has_datagrams = seen.r#type()? == Type::DGRAM;
    let address = seen.local_addr().ok().and_then(|address| address.as_socket());
    #[expect(unsafe_code, reason = "a number in the environment is all there is of the descriptor")]
    // SAFETY: it is an open socket, as was just checked. sd_listen_fds(3) passes it to this process, whose id has been
    // compared, and nothing else has been opened yet, so it has no other owner here.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(ActivatedSocket { name: name.to_owned(), address, has_datagrams, socket })
}

/// Duplicates the descriptor of a passed socket.
pub(super) fn duplicate(socket: &OwnedFd) -> io::Result<OwnedFd> {
    socket.as_fd().try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn handed(name: &str, socket: OwnedFd) -> ActivatedSocket {
        let seen = SockRef::from(&socket);
        let address = seen.local_addr().unwrap().as_socket();
        let has_datagrams = seen.r#type().unwrap() == Type::DGRAM;
        ActivatedSocket { name: name.to_owned(), address, has_datagrams, socket }
    }

    /// A name precedes an address, and the kind of socket must match.
    #[test]
    fn a_name_precedes_an_address() {
        let tcp = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let second = tcp[1].local_addr().unwrap();
        let datagrams = udp.local_addr().unwrap();
        let [first, other] = tcp;
        let mut activated = ActivatedSockets(vec![
            handed("trackers", udp.into()),
            handed("trackers", first.into()),
            handed("unknown", other.into()),
        ]);
        let bind = |text: &str| text.parse::<Bind>().unwrap();
        assert!(activated.take("trackers", bind("tcp://0.0.0.0:7993")).is_some());
        assert!(activated.take("trackers", bind("tcp://0.0.0.0:7993")).is_none(), "the other is for datagrams");
        assert!(activated.take("meters", bind(&format!("tls://{second}"))).is_some());
        assert!(activated.take("sensors", bind(&format!("tcp://{datagrams}"))).is_none());
        assert_eq!(activated.unclaimed().collect::<Vec<_>>(), [format!("trackers at {datagrams}")]);
        assert!(activated.take("sensors", bind(&format!("udp://{datagrams}"))).is_some());
    }
}
