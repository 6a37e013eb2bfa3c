//! A broker in a process of its own, and its statistics from the kernel.

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};

use crate::PATIENCE;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Polygate,
    Mosquitto,
}

impl Kind {
    pub const BOTH: [Self; 2] = [Self::Polygate, Self::Mosquitto];

    pub fn name(self) -> &'static str {
        match self {
            Self::Polygate => "polygate",
            Self::Mosquitto => "mosquitto",
        }
    }
}

/// A running broker; killed on drop.
pub struct Server {
    child: Child,
    /// Kept open: the program would block at a closed log.
    _log: Option<Lines<BufReader<ChildStderr>>>,
    pub address: SocketAddr,
    dir: TempDir,
}

impl Server {
    pub async fn start(kind: Kind) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        match kind {
            Kind::Polygate => Self::polygate(dir).await.0,
            Kind::Mosquitto => Self::mosquitto(dir).await,
        }
    }

    /// Starts polygate with the state of an earlier one; says how long that took.
    pub async fn restart(dir: TempDir) -> (Self, String) {
        let since = Instant::now();
        let (server, restored) = Self::polygate(dir).await;
        let restored = restored.expect("a state is restored");
        let text = format!(
            "{} retained messages and {} sessions ({} bytes) read in {} ms; started {} ms after the process began",
            restored["retained"],
            restored["sessions"],
            restored["bytes"],
            restored["ms"].as_str().unwrap_or_default(),
            since.elapsed().as_millis()
        );
        (server, text)
    }

    async fn polygate(dir: TempDir) -> (Self, Option<Value>) {
        let file = dir.path().join("polygate.toml");
        let text = "[gateway]\nnode = \"bench\"\ndata_dir = \"data\"\n[broker]\nbind = \"127.0.0.1:0\"\n\
                    [auth]\nallow_anonymous = true\n";
        fs::write(&file, text).expect("the configuration is written");
        let mut child = Command::new(env!("CARGO_BIN_EXE_polygate"))
            .args(["--log-format", "json", "serve", "-c"])
            .arg(&file)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("polygate starts");
        let mut log = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let mut restored = None;
        loop {
            let line = tokio::time::timeout(PATIENCE, log.next_line()).await.expect("polygate starts in time");
            let line = line.expect("its log is read").expect("it does not end at once");
            let line: Value = serde_json::from_str(&line).expect("its log is JSON");
            if line["message"] == "the broker's state is restored" {
                restored = Some(line);
            } else if line["message"] == "started" {
                let address = line["broker"].as_str().and_then(|text| text.parse().ok()).expect("an MQTT address");
                return (Self { child, _log: Some(log), address, dir }, restored);
            }
        }
    }

    async fn mosquitto(dir: TempDir) -> Self {
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let file = dir.path().join("mosquitto.conf");
        let text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_dest none\nset_tcp_nodelay true\n"
        );
        fs::write(&file, text).expect("the configuration is written");
        let child =
            Command::new("mosquitto").arg("-c").arg(&file).kill_on_drop(true).spawn().expect("mosquitto starts");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(address).await.is_err() {
            assert!(Instant::now() < until, "mosquitto does not accept");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Self { child, _log: None, address, dir }
    }

    fn pid(&self) -> u32 {
        self.child.id().expect("the server runs")
    }

    /// CPU time of all its threads.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the server runs");
        let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_ascii_whitespace().collect();
        let ticks: u64 = [fields[11], fields[12]].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }

    /// Resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the server runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    pub async fn stop(mut self) -> TempDir {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a process id");
        kill_process(pid, Signal::TERM).expect("the server runs");
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("the server stops").expect("it is waited for");
        self.dir
    }

    pub async fn kill(mut self) -> TempDir {
        self.child.kill().await.expect("the server is killed");
        self.dir
    }
}

/// Both this process and the servers need a descriptor for each client.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .expect("the limit is raised");
}
