//! Whether there are ports for the connections of all devices to an external broker.

use crate::pubsub::external::Options;

/// Ports of the kernel's default range (`net.ipv4.ip_local_port_range`), for when it cannot be read.
const PORTS_DEFAULT: usize = 28_232;

/// Warns when the pairs of source address and broker address have fewer ports than there may be devices.
pub(super) fn warn_if_few(options: &Options, connections_max: Option<usize>) {
    let ports = ports();
    let (sources, brokers) = (options.source_addresses.len().max(1), options.urls.len());
    let available = ports.saturating_mul(sources).saturating_mul(brokers);
    if connections_max.is_some_and(|max| max > available) {
        tracing::warn!(
            connections_max,
            available,
            sources,
            brokers,
            ports,
            "fewer ports towards the broker than connections of devices: add source_addresses, or widen ip_local_port_range"
        );
    }
}

fn ports() -> usize {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    count(&range).unwrap_or(PORTS_DEFAULT)
}

/// The number of ports in the kernel's form of a range: two numbers, both in it.
fn count(range: &str) -> Option<usize> {
    let (first, last) = range.trim().split_once(char::is_whitespace)?;
    let (first, last): (usize, usize) = (first.parse().ok()?, last.trim().parse().ok()?);
    last.checked_sub(first).map(|span| span + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_counted() {
        assert_eq!(count("32768\t60999\n"), Some(28_232));
        assert_eq!(count("1 1"), Some(1));
        for text in ["", "5", "9 1", "a b"] {
            assert_eq!(count(text), None, "{text:?}");
        }
    }
}
