//! Conflicts of bind addresses: two sockets cannot have one address.

use std::net::{IpAddr, SocketAddr};

use super::diagnostics::ErrorReported;
use super::location::Location;
use super::read::Table;
use super::schema::{DefaultTo, Key, Optional};
use crate::listener::Bind;

/// All addresses that the configuration binds.
#[derive(Default)]
pub(super) struct Binds(Vec<Bound>);

struct Bound {
    location: Location,
    address: SocketAddr,
    ports: Ports,
    /// As the user wrote it.
    written: String,
}

/// TCP and UDP have ports of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ports {
    Tcp,
    Udp,
}

impl Binds {
    /// Reads the address of a TCP port that is not for devices.
    pub(super) fn read(
        &mut self,
        table: &Table<'_>,
        key: &Key<SocketAddr, DefaultTo<SocketAddr>>,
    ) -> Result<SocketAddr, ErrorReported> {
        table.get(key).inspect(|bind| self.add(table.location(key.name), *bind))
    }

    /// As [`read`](Self::read), for a port that may be absent.
    pub(super) fn read_optional(
        &mut self,
        table: &Table<'_>,
        key: &Key<SocketAddr, Optional>,
    ) -> Result<Option<SocketAddr>, ErrorReported> {
        table.get(key).inspect(|bind| bind.iter().for_each(|bind| self.add(table.location(key.name), *bind)))
    }

    fn add(&mut self, location: Location, address: SocketAddr) {
        self.0.push(Bound { location, address, ports: Ports::Tcp, written: address.to_string() });
    }

    pub(super) fn add_listener(&mut self, location: Location, bind: Bind) {
        let ports = if bind.transport.has_datagrams() { Ports::Udp } else { Ports::Tcp };
        self.0.push(Bound { location, address: bind.address, ports, written: bind.to_string() });
    }

    /// Records each address that conflicts with one before it.
    pub(super) fn check(mut self, root: &Table<'_>) {
        // The fault is at the later line, whatever the order in which the tables were read.
        self.0.sort_by_key(|bound| bound.location.line);
        for (index, bound) in self.0.iter().enumerate() {
            let first = self
                .0
                .iter()
                .take(index)
                .find(|first| first.ports == bound.ports && overlap(first.address, bound.address));
            if let Some(first) = first {
                let other = match first.location.line {
                    Some(line) => format!("{} in line {line}", first.location.position),
                    None => format!("{}, by default", first.location.position),
                };
                root.fault_in(bound.location.clone(), format_args!("{} is taken by {other}", bound.written));
            }
        }
    }
}

/// Whether the addresses of two sockets of one kind conflict. A wildcard takes the port of every address of its family,
/// and `[::]` that of IPv4 too, unless `IPV6_V6ONLY` is set.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let takes = |one: IpAddr, other: IpAddr| one.is_unspecified() && (one.is_ipv6() || other.is_ipv4());
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() != 0 && one.port() == other.port() && (a == b || takes(a, b) || takes(b, a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_take_all_addresses() {
        for (one, other, expected) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "[::1]:1", false),
            ("[::]:1", "127.0.0.1:1", true),
            ("[::]:1", "0.0.0.0:1", true),
            ("[::]:1", "[::1]:1", true),
            ("[::1]:1", "127.0.0.1:1", false),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1", true),
        ] {
            let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(overlap(one, other), expected, "{one} {other}");
            assert_eq!(overlap(other, one), expected, "{other} {one}");
        }
    }
}
