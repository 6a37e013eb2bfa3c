//! A server in a process of its own, and its statistics from the kernel.

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;

/// A child process that has printed its addresses; killed on drop.
pub struct Server {
    child: Child,
    stdin: Mutex<ChildStdin>,
    stdout: Lines<BufReader<ChildStdout>>,
    addresses: Vec<SocketAddr>,
}

/// CPU time of a gateway.
#[derive(Clone, Copy, Default)]
pub struct CpuTimes {
    /// Of its background threads for long events.
    pub long: Duration,
    /// Of all others.
    pub serving: Duration,
}

impl CpuTimes {
    pub fn since(self, before: Self) -> Self {
        Self { long: self.long.saturating_sub(before.long), serving: self.serving.saturating_sub(before.serving) }
    }
}

impl Server {
    pub async fn start(args: &[&str]) -> Self {
        Self::start_with(args, Stdio::inherit()).await
    }

    /// The same with another log.
    pub async fn start_with(args: &[&str], log: Stdio) -> Self {
        let this = std::env::current_exe().expect("this program has no path");
        let mut child = Command::new(this)
            .arg("--server")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("cannot start a server");
        let stdin = Mutex::new(child.stdin.take().expect("stdin is piped"));
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let line = stdout.next_line().await.expect("cannot read").expect("the server ended at once");
        let addresses = line.split_terminator(' ').map(|address| address.parse().expect("no address")).collect();
        Self { child, stdin, stdout, addresses }
    }

    /// The first address.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// All printed addresses.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The listeners, if the last address is the adapter's.
    pub fn listeners(&self) -> &[SocketAddr] {
        &self.addresses[..self.addresses.len() - 1]
    }

    /// The gateway's adapter.
    pub fn adapter(&self) -> SocketAddr {
        self.addresses[self.addresses.len() - 1]
    }

    /// Writes a line to the server's stdin.
    pub async fn tell(&self, line: &str) {
        self.stdin.lock().await.write_all(format!("{line}\n").as_bytes()).await.expect("the server is gone");
    }

    /// Writes a line to the server's stdin, and returns its response.
    pub async fn ask(&mut self, line: &str) -> String {
        self.tell(line).await;
        self.stdout.next_line().await.expect("cannot read").expect("the server has ended")
    }

    fn proc(&self, file: &str) -> String {
        let pid = self.child.id().expect("the server is gone");
        fs::read_to_string(format!("/proc/{pid}/{file}")).expect("cannot read /proc")
    }

    /// Proportional set size: resident pages, shared ones counted by their share. All instances of a guest share the
    /// unmodified pages of its image.
    pub fn memory_kib(&self) -> f64 {
        let rollup = self.proc("smaps_rollup");
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("no Pss");
        line.trim().trim_end_matches(" kB").parse().expect("no number")
    }

    /// Page tables, which are not shared.
    pub fn page_tables_kib(&self) -> f64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:")).expect("no VmPTE");
        line.trim().trim_end_matches(" kB").parse().expect("no number")
    }

    /// The number that `vm.max_map_count` bounds.
    pub fn mappings(&self) -> usize {
        self.proc("maps").lines().count()
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        let pid = self.child.id().expect("the server is gone");
        fs::read_dir(format!("/proc/{pid}/fd")).expect("cannot read /proc").count()
    }

    /// CPU time so far of the live threads, to the nanosecond.
    pub fn cpu_times(&self) -> CpuTimes {
        let pid = self.child.id().expect("the server is gone");
        let mut times = CpuTimes::default();
        for thread in fs::read_dir(format!("/proc/{pid}/task")).expect("cannot read /proc") {
            let thread = thread.expect("cannot read /proc").path();
            let read = |file: &str| fs::read_to_string(thread.join(file)).unwrap_or_default();
            let nanoseconds = read("schedstat").split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0);
            let of = if ["guest-low-prio", "guest-idle-prio"].contains(&read("comm").trim()) {
                &mut times.long
            } else {
                &mut times.serving
            };
            *of += Duration::from_nanos(nanoseconds);
        }
        times
    }

    /// CPU time so far, of all threads, in steps of 10 ms.
    pub fn cpu(&self) -> Duration {
        let stat = self.proc("stat");
        let (_, fields) = stat.rsplit_once(") ").expect("no stat");
        let ticks: u64 = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("no number")).sum();
        Duration::from_millis(ticks * 10)
    }
}
