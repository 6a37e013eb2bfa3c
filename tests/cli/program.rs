use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Timeout of every wait. Long, because the machine may be busy; a passing test does not come near it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Capacity for unread log lines; the program would block beyond it.
const LINES_MAX: usize = 1 << 20;

/// Waits for a future with the timeout.
pub async fn within<T>(what: &str, coming: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, coming).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The program, without environment variables of the test runner.
fn polygate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polygate"));
    for name in ["POLYGATE_LOG", "POLYGATE_LOG_FORMAT", "POLYGATE_REPLAY_MQTT"] {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// The result of a finished program.
#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the program to its end.
pub async fn run(arguments: &[&str]) -> Output {
    output(polygate(arguments)).await
}

/// Runs the program to its end, in a folder.
pub async fn run_in(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = polygate(arguments);
    command.current_dir(folder);
    output(command).await
}

/// Runs the program to its end, with its results going to a file or device.
pub async fn run_into(stdout: &str, arguments: &[&str]) -> Output {
    let mut command = polygate(arguments);
    command.stdout(std::fs::OpenOptions::new().write(true).open(stdout).unwrap());
    output(command).await
}

async fn output(mut command: Command) -> Output {
    let output = within("the program to end", command.spawn().unwrap().wait_with_output()).await.unwrap();
    Output {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A configuration in a directory of its own, which is also the data directory.
pub struct Setup {
    dir: TempDir,
    text: String,
}

impl Setup {
    /// This text, after a `[gateway]` table that keeps everything in the directory.
    pub fn new(text: &str) -> Self {
        Self::with_gateway("", text)
    }

    /// The same with more keys of `[gateway]`.
    pub fn with_gateway(keys: &str, text: &str) -> Self {
        let text = format!("[gateway]\nnode = \"test\"\ndata_dir = \"data\"\n{keys}\n{text}");
        Self { dir: tempfile::tempdir().unwrap(), text }
    }

    /// One listener before a guest of guests/dist, with all the other ports that a gateway can have.
    pub fn guest(name: &str, keys: &str) -> Self {
        let component = repository("guests/dist").join(name).with_extension("wasm");
        Self::new(&format!(
            "[adapter]\nbind = \"127.0.0.1:0\"\n[admin]\ntoken = \"none\"\nbind = \"127.0.0.1:0\"\n[broker]\nbind = \"127.0.0.1:0\"\n\
             [handlers.h]\nkind = \"wasm\"\ncomponent = {component:?}\n{keys}\n\
             [listeners.l]\nbind = \"tcp://127.0.0.1:0\"\nhandlers = [\"h\"]\n"
        ))
    }

    /// The echo guest: it returns all bytes.
    pub fn echo() -> Self {
        Self::guest("echo", "settings = { mode = \"raw\" }")
    }

    /// The same in the directory of a program that has ended, with its data.
    pub fn in_directory(mut self, dir: TempDir) -> Self {
        self.dir = dir;
        self
    }

    /// More tables.
    pub fn more(mut self, tables: &str) -> Self {
        self.text.push_str(tables);
        self
    }

    /// The token keys of the admin port, instead of `token = "none"`.
    pub fn admin(mut self, keys: &str) -> Self {
        self.text = self.text.replace("[admin]\ntoken = \"none\"\n", &format!("[admin]\n{keys}\n"));
        self
    }

    /// More keys of the gateway.
    pub fn gateway(mut self, keys: &str) -> Self {
        self.text = self.text.replace("[gateway]\n", &format!("[gateway]\n{keys}\n"));
        self
    }

    /// Another text, in the same directory.
    pub fn with_text(mut self, text: String) -> Self {
        self.text = text;
        self
    }

    /// Writes the configuration and gives its file.
    pub fn write(&self) -> String {
        let file = self.dir.path().join("polygate.toml");
        std::fs::write(&file, &self.text).unwrap();
        file.to_str().unwrap().to_owned()
    }

    /// Runs `polygate serve` to its end.
    pub async fn serve_to_the_end(&self, arguments: &[&str]) -> Output {
        run(&[&["serve", "-c", &self.write()], arguments].concat()).await
    }

    /// Starts `polygate serve`.
    pub fn serve(self, arguments: &[&str]) -> Serving {
        let file = self.write();
        let child = polygate(&[&["serve", "-c", &file], arguments].concat()).spawn().unwrap();
        self.serving(child)
    }

    /// Starts it from a shell that has run this command, with a log in JSON.
    pub fn serve_after(self, command: &str) -> Serving {
        self.serve_from(command, Stdio::null())
    }

    /// The same with something that the shell has as its standard input.
    pub fn serve_from(self, command: &str, input: impl Into<Stdio>) -> Serving {
        let program = env!("CARGO_BIN_EXE_polygate");
        let script = format!("{command}; exec {program:?} --log-format json serve -c {:?}", self.write());
        let child = Command::new("bash")
            .args(["-c", &script])
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.serving(child)
    }

    fn serving(self, mut child: Child) -> Serving {
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let (line, lines) = mpsc::channel(LINES_MAX);
        let reading = tokio::spawn(async move {
            while let Some(text) = stderr.next_line().await.unwrap() {
                line.send(text).await.unwrap();
            }
        });
        Serving { child, reading, lines, seen: Vec::new(), dir: self.dir }
    }

    /// Starts `polygate serve` with a log in JSON and waits until it has started.
    pub async fn served(self) -> Serving {
        let mut serving = self.serve(&["--log-format", "json"]);
        serving.line("started").await;
        serving
    }
}

/// `polygate serve`, running.
pub struct Serving {
    child: Child,
    reading: JoinHandle<()>,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
    dir: TempDir,
}

impl Serving {
    /// The next line of the log that has this in it.
    pub async fn text(&mut self, part: &str) -> String {
        let looking = async {
            while let Some(line) = self.lines.recv().await {
                self.seen.push(line.clone());
                if line.contains(part) {
                    return Some(line);
                }
            }
            None
        };
        let found = within(&format!("{part:?} in the log"), looking).await;
        found.unwrap_or_else(|| panic!("the program ended without {part:?} in its log: {:#?}", self.seen))
    }

    /// The next line of a log in JSON that has this message.
    pub async fn line(&mut self, message: &str) -> Value {
        let text = self.text(&format!("\"message\":{message:?}")).await;
        serde_json::from_str(&text).unwrap()
    }

    /// A port, from a field of a line of a log in JSON that has been seen.
    pub fn port(&self, message: &str, field: &str) -> SocketAddr {
        let lines = self.seen.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let line = lines.into_iter().find(|line| line["message"] == message).unwrap();
        line[field].as_str().unwrap_or_else(|| panic!("no {field} in {line}")).parse().unwrap()
    }

    /// The address of the listener.
    pub fn listener(&self) -> SocketAddr {
        self.port("accepting", "address")
    }

    /// The MQTT address.
    pub fn broker(&self) -> SocketAddr {
        self.port("started", "broker")
    }

    /// The admin address.
    pub fn admin(&self) -> SocketAddr {
        self.port("started", "admin")
    }

    /// Closes the log's pipe.
    pub async fn close_stderr(&mut self) {
        self.reading.abort();
        assert!((&mut self.reading).await.is_err_and(|error| error.is_cancelled()));
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Waits until the process has ended; returns its exit code and its whole log.
    pub async fn ended(mut self) -> (Option<i32>, Vec<String>) {
        let status: ExitStatus = within("the program to end", self.child.wait()).await.unwrap();
        while let Some(line) = within("the end of the log", self.lines.recv()).await {
            self.seen.push(line);
        }
        (status.code(), self.seen)
    }

    /// Kills it, and gives its directory.
    pub async fn kill(mut self) -> TempDir {
        within("the program to be killed", self.child.kill()).await.unwrap();
        self.dir
    }

    /// Asks it to stop, and waits until it has.
    pub async fn stop(self) -> (Option<i32>, Vec<String>) {
        self.signal(Signal::TERM);
        self.ended().await
    }
}

/// A raw device: a TCP socket.
pub struct Device(TcpStream);

impl Device {
    pub async fn connect(address: SocketAddr) -> Self {
        Self(within("a connection", TcpStream::connect(address)).await.unwrap())
    }

    pub async fn says(&mut self, bytes: impl AsRef<[u8]>) {
        within("the socket to take bytes", self.0.write_all(bytes.as_ref())).await.unwrap();
    }

    pub async fn gets(&mut self, expected: &str) {
        let mut bytes = vec![0; expected.len()];
        within("bytes from the gateway", self.0.read_exact(&mut bytes)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
    }

    /// The next line, without its end.
    pub async fn line(&mut self) -> String {
        let mut bytes = Vec::new();
        loop {
            match within("bytes from the gateway", self.0.read_u8()).await.unwrap() {
                b'\n' => return String::from_utf8(bytes).unwrap(),
                byte => bytes.push(byte),
            }
        }
    }

    /// The gateway ends the stream in order, without another byte.
    pub async fn expect_closed(mut self) {
        let mut bytes = Vec::new();
        within("the end of the stream", self.0.read_to_end(&mut bytes)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), "");
    }
}

/// The messages of a log in JSON, each of whose lines must be JSON with a time, a level and a target. Only libraries
/// have lines without a message, at the level trace.
pub fn messages(log: &[String]) -> Vec<String> {
    log.iter()
        .map(|text| {
            let line: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
            for field in ["timestamp", "level", "target"] {
                assert!(line[field].is_string(), "no {field} in {text}");
            }
            assert!(line["message"].is_string() || line["level"] == "TRACE", "no message in {text}");
            line["message"].as_str().unwrap_or_default().to_owned()
        })
        .collect()
}
