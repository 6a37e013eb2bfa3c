//! Connection limit of the gateway from its limit of file descriptors (RLIMIT_NOFILE).

use rustix::process::{Resource, getrlimit};

/// Minimum number of reserved descriptors, for files open at the start.
const RESERVED_MIN: u64 = 32;

/// Maximum number of further reserved descriptors, for handlers, MQTT clients, files and the admin port.
const RESERVED_MAX: u64 = 4096;

/// Maximum number of connections with a descriptor each; `None` without a limit of descriptors.
///
/// Further peers wait in the kernel's backlog, instead of being accepted without descriptors for their handler.
pub(super) fn connections_max() -> Option<usize> {
    getrlimit(Resource::Nofile)
        .current
        .map(|descriptors| usize::try_from(for_connections(descriptors)).unwrap_or(usize::MAX))
}

fn for_connections(descriptors: u64) -> u64 {
    descriptors.saturating_sub(RESERVED_MIN + RESERVED_MAX.min(descriptors / 8)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An eighth is reserved, and never more than a few thousand.
    #[test]
    fn some_are_reserved() {
        for (descriptors, expected) in [(0, 1), (64, 24), (1024, 864), (20_000, 17_468), (1 << 20, 1_044_448)] {
            assert_eq!(for_connections(descriptors), expected, "{descriptors}");
        }
    }
}
