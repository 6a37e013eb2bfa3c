//! Memory that the process may take: of the machine, or of the control group that it runs in.

use std::path::Path;

/// A quarter of the memory, in bytes: the default of `queued_bytes_max`.
pub(super) fn queued_bytes_max() -> usize {
    let info = rustix::system::sysinfo();
    let machine = info.totalram.saturating_mul(info.mem_unit.into());
    let group = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|groups| of_group(&groups));
    usize::try_from(group.map_or(machine, |group| group.min(machine)) / 4).unwrap_or(usize::MAX)
}

/// The limit of the control group (version 2) and of those above it.
fn of_group(groups: &str) -> Option<u64> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let limits = Path::new("/sys/fs/cgroup").join(own);
    limits
        .ancestors()
        .filter_map(|group| std::fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok())
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The machine runs this test, so a quarter is between 64 MiB and 64 TiB.
    #[test]
    fn a_quarter_of_the_memory() {
        let quarter = queued_bytes_max();
        assert!((64 << 20..64 << 40).contains(&quarter), "{quarter}");
        assert_eq!(of_group("1:name=systemd:/\n"), None, "version 1 has no limit here");
    }
}
