//! How many devices the descriptors of this process are good for.

use rustix::process::{Resource, getrlimit};

/// Descriptors for everything but devices: at least this many, for what is open at the start.
const KEPT_MIN: u64 = 32;

/// Descriptors for everything but devices: at most this many more, for handlers, MQTT clients, files and the admin port.
const KEPT_MAX: u64 = 4096;

/// How many connections may take so many descriptors each; `None` when there is no limit on descriptors.
///
/// Beyond it peers wait in the backlog, instead of being accepted to find that nothing else can be opened for them.
pub(super) fn connections_max(descriptors_each: u64) -> Option<usize> {
    getrlimit(Resource::Nofile).current.map(|descriptors| {
        let connections = (unclaimed(descriptors) / descriptors_each).max(1);
        usize::try_from(connections).unwrap_or(usize::MAX)
    })
}

fn unclaimed(descriptors: u64) -> u64 {
    descriptors.saturating_sub(KEPT_MIN + KEPT_MAX.min(descriptors / 8)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An eighth is kept, and never more than a few thousand.
    #[test]
    fn some_are_kept() {
        for (descriptors, expected) in [(0, 1), (64, 24), (1024, 864), (20_000, 17_468), (1 << 20, 1_044_448)] {
            assert_eq!(unclaimed(descriptors), expected, "{descriptors}");
        }
    }
}
