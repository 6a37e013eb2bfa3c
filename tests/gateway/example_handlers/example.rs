use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// How long a handler may take to say where it listens; interpreters are slow to start on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A program under examples/.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Example {
    Rust,
    Python,
    PythonStreaming,
    Node,
}

impl Example {
    fn command(self) -> Command {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let handlers = repository.join("examples/handlers");
        let venv = repository.join("target/examples/venv/bin/python");
        let setup = "examples/handlers/setup";
        let (program, script) = match self {
            Self::Rust => {
                // Cargo puts a test under deps/ and the examples beside it.
                let deps = std::env::current_exe().unwrap();
                let example = deps.ancestors().nth(2).unwrap().join("examples/handler");
                return Command::new(present(example, "cargo build --example handler"));
            }
            Self::Python => (present(venv, setup), "python/handler.py"),
            Self::PythonStreaming => (present(venv, setup), "python/streaming.py"),
            Self::Node => {
                present(handlers.join("node/node_modules"), setup);
                (PathBuf::from("node"), "node/handler.js")
            }
        };
        let mut command = Command::new(program);
        command.arg(handlers.join(script));
        command
    }
}

fn present(path: PathBuf, maker: &str) -> PathBuf {
    assert!(path.exists(), "{} is missing: run {maker}", path.display());
    path
}

/// A handler that runs; killed when it is dropped.
pub struct Process {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
}

impl Process {
    /// Starts it on a free port, for the adapter at this url, and waits until it listens.
    pub async fn start(example: Example, adapter: &str) -> Self {
        let mut child = example
            .command()
            .args(["--listen", "127.0.0.1:0", "--adapter", adapter])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(START_TIMEOUT, stdout.next_line()).await.unwrap().unwrap();
        let line = line.expect("the handler ended without saying where it listens");
        let address =
            line.strip_prefix("listening on ").unwrap_or_else(|| panic!("expected the address, found {line:?}"));
        Self { address: address.parse().unwrap(), child }
    }

    /// Kills it, and waits until it is gone with all its sockets.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}
