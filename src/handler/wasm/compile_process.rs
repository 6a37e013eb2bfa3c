//! Compiling in a process of its own: a component that makes the compiler eat memory or time takes nothing else along.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::engines::Capacity;
use super::error::{LoadError, LoadErrorKind};
use super::options::Options;

/// What is read of the words of a process that compiles, in bytes: an error with its causes, many times over.
const WORDS_BYTES_MAX: u64 = 64 << 10;

/// Where components are compiled.
#[derive(Clone, Debug)]
pub enum Compiler {
    /// In this process, without bounds: for components that are known.
    InProcess,
    /// In a process of its own, of this program: `polygate` itself.
    Subprocess(PathBuf),
}

/// What compiling one component may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// How long it may take.
    pub timeout: Duration,
    /// Memory of the process that compiles, in bytes.
    pub memory_bytes_max: u64,
}

impl Default for Bounds {
    /// A guest in Python takes some twenty seconds on an idle machine.
    fn default() -> Self {
        Self { timeout: Duration::from_secs(300), memory_bytes_max: 4 << 30 }
    }
}

impl Compiler {
    /// Sees to it that a guest's compiled component is in the cache before it is loaded by a host with
    /// this capacity. A compiler in this process leaves
    /// that to the loading.
    ///
    /// Dropping the future ends the process that compiles.
    ///
    /// # Errors
    ///
    /// [`LoadError`], with the other process's words or with the bound that it has reached.
    pub async fn prepare(
        &self,
        cache_dir: &Path,
        capacity: Capacity,
        options: &Options,
        known_as: &Path,
        bounds: Bounds,
    ) -> Result<(), LoadError> {
        match self {
            Self::InProcess => Ok(()),
            Self::Subprocess(program) => compile(program, cache_dir, capacity, options, known_as, bounds).await,
        }
    }
}

/// Compiles a guest into the cache in a process of its own and checks there that it is a handler. A guest that is in the
/// cache already costs the start of the process.
///
/// Dropping the future ends the process.
///
/// # Errors
///
/// [`LoadError`], with the other process's words or with the bound that it has reached.
pub(super) async fn compile(
    program: &Path,
    cache_dir: &Path,
    capacity: Capacity,
    options: &Options,
    known_as: &Path,
    bounds: Bounds,
) -> Result<(), LoadError> {
    let error = |kind| LoadError::new(&options.name, known_as, kind);
    let failed = |why: String| error(LoadErrorKind::CompilerProcess(why));
    let arguments: [OsString; 9] = [
        "compile".into(),
        // Its words are its result.
        "--log=off".into(),
        format!("--handler={}", options.name).into(),
        format!("--instance-memory={}", options.memory_bytes_max).into(),
        format!("--memory={}", bounds.memory_bytes_max).into(),
        format!("--seconds={}", bounds.timeout.as_secs().saturating_add(1)).into(),
        joined("--cache=", cache_dir),
        joined("--known-as=", known_as),
        joined("--component=", &options.component),
    ];
    let mut child = Command::new(program)
        .args(arguments)
        .args(capacity.small.map(|_| "--small-engine"))
        // Secrets may be in the environment, and nothing there is of use.
        .env_clear()
        // The allocator reserves a gigabyte at a time; as writable memory it would count before it is used.
        .env("MIMALLOC_ARENA_EAGER_COMMIT", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("could not be compiled: cannot start the compiler {program:?}: {error}")))?;
    let stderr = child.stderr.take();
    let mut words = Vec::new();
    let ending = async {
        if let Some(stderr) = stderr {
            stderr.take(WORDS_BYTES_MAX).read_to_end(&mut words).await?;
        }
        child.wait().await
    };
    let status = match tokio::time::timeout(bounds.timeout, ending).await {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => return Err(failed(format!("could not be compiled: {error}"))),
        Err(_) => {
            let timeout = humantime::format_duration(bounds.timeout);
            return Err(failed(format!("could not be compiled within {timeout} (compile_timeout)")));
        }
    };
    let words = String::from_utf8_lossy(&words);
    match (status.code(), words.trim()) {
        (Some(0), _) => Ok(()),
        // Its own words name the handler and the file.
        (Some(1), words) if !words.is_empty() => Err(error(LoadErrorKind::Reported(words.to_owned()))),
        (_, words) => Err(failed(cut_short(status, words, bounds))),
    }
}

fn joined(option: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(option);
    argument.push(path);
    argument
}

/// Why a process that compiles ended without a result.
fn cut_short(status: ExitStatus, words: &str, bounds: Bounds) -> String {
    // Of a panic or a failed allocation, the first line says most.
    let first = words.lines().find(|line| !line.is_empty()).unwrap_or("no word of it");
    let ran_out = first.contains("allocat") || first.contains("memory");
    let memory = bytesize::ByteSize(bounds.memory_bytes_max).display().iec().to_string();
    match status.signal().and_then(Signal::from_named_raw) {
        Some(Signal::ABORT | Signal::SEGV | Signal::BUS | Signal::TRAP) if ran_out => {
            format!("could not be compiled within {memory} of memory (compile_memory_max): {first}")
        }
        Some(Signal::XCPU) => "could not be compiled: its CPU time is used up (compile_timeout)".to_owned(),
        Some(_) | None => format!(
            "could not be compiled within {memory} of memory (compile_memory_max) or breaks the compiler ({status}): {first}"
        ),
    }
}

/// Bounds the memory and the CPU time of this process, for good, and keeps it from leaving a core file.
///
/// Memory is what is mapped privately to be written (`RLIMIT_DATA`), and not all addresses (`RLIMIT_AS`): an engine reserves
/// far more addresses than there is memory.
///
/// # Errors
///
/// The operating system's.
pub(crate) fn bound_this_process(memory_bytes_max: u64, seconds: u64) -> io::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let bounds = [
        (Resource::Data, memory_bytes_max),
        // All threads together; the time on the clock is bounded by whoever waits.
        (Resource::Cpu, seconds.saturating_mul(cores)),
        (Resource::Core, 0),
    ];
    for (resource, bound) in bounds {
        setrlimit(resource, Rlimit { current: Some(bound), maximum: Some(bound) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(5), memory_bytes_max: 64 << 20 };

    /// However a compiler ends, the operator is told which bound to look at.
    #[test]
    fn ends_in_words() {
        let abort = ExitStatus::from_raw(6);
        let reported = cut_short(abort, "\nmemory allocation of 8 bytes failed\n", BOUNDS);
        assert!(
            reported.starts_with("could not be compiled within 64.0 MiB of memory (compile_memory_max): memory"),
            "{reported}"
        );
        let reported = cut_short(ExitStatus::from_raw(24), "", BOUNDS);
        assert_eq!(reported, "could not be compiled: its CPU time is used up (compile_timeout)");
        let reported = cut_short(ExitStatus::from_raw(101 << 8), "thread 'main' panicked", BOUNDS);
        assert!(reported.ends_with("or breaks the compiler (exit status: 101): thread 'main' panicked"), "{reported}");
    }
}
