//! Compiler process: compiles a guest in a subprocess with limits of memory and time (`setrlimit(2)`), so that a
//! component that exhausts or crashes the compiler does not affect the gateway.
//!
//! The process ends when the compilation ends, at its limits, or when the future is dropped.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::engines::Capacity;
use super::error::{LoadError, LoadErrorKind};
use super::options::Options;
use super::runtime::Runtime;

/// Maximum length of the compiler's standard error output, in bytes: many times an error with its causes.
const STDERR_BYTES_MAX: u64 = 64 << 10;

/// Maximum length of compiled code, in bytes: several times that of the largest component.
const CODE_BYTES_MAX: u64 = 1 << 30;

/// Where components are compiled.
#[derive(Clone, Debug)]
pub enum Compiler {
    /// In this process, without limits: for trusted components.
    InProcess,
    /// In a subprocess of this program, `polygate`.
    Subprocess(PathBuf),
}

/// Limits of the compilation of one component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Wall-clock time.
    pub timeout: Duration,
    /// Memory of the compiler process, in bytes.
    pub memory_bytes_max: u64,
}

impl Default for Bounds {
    /// A Python guest compiles in about twenty seconds on an idle machine.
    fn default() -> Self {
        Self { timeout: Duration::from_secs(300), memory_bytes_max: 4 << 30 }
    }
}

impl Compiler {
    /// Compiles a guest that is not cached into the cache of the runtime that will load it. `InProcess` does nothing:
    /// the load compiles then.
    ///
    /// Dropping the future kills the compiler process.
    ///
    /// # Errors
    ///
    /// [`LoadError`], with the compiler's error output or the exceeded limit.
    pub async fn prepare(
        &self,
        runtime: &Runtime,
        options: &Options,
        known_as: &Path,
        bounds: Bounds,
    ) -> Result<(), LoadError> {
        let Self::Subprocess(program) = self else { return Ok(()) };
        let panicked = |error: tokio::task::JoinError| {
            let reason = format!("could not be compiled: {error}");
            LoadError::new(&options.name, known_as, LoadErrorKind::CompilerProcess(reason))
        };
        let (cached, of) = (runtime.clone(), options.clone());
        let has = tokio::task::spawn_blocking(move || cached.has(&of)).await.map_err(panicked)?;
        if has.map_err(|error| error.about(known_as))? {
            return Ok(());
        }
        let code = compile(program, runtime.capacity(), options, known_as, bounds).await?;
        let (cached, of) = (runtime.clone(), options.clone());
        let put = tokio::task::spawn_blocking(move || cached.put(&of, &code)).await.map_err(panicked)?;
        put.map_err(|error| error.about(known_as))
    }
}

/// Compiles a guest in a subprocess, which checks that it is a handler and hands the code back over a pipe.
///
/// Dropping the future kills the process.
///
/// # Errors
///
/// [`LoadError`], with the compiler's error output or the exceeded limit.
pub(super) async fn compile(
    program: &Path,
    capacity: Capacity,
    options: &Options,
    known_as: &Path,
    bounds: Bounds,
) -> Result<Vec<u8>, LoadError> {
    let error = |kind| LoadError::new(&options.name, known_as, kind);
    let failed = |reason: String| error(LoadErrorKind::CompilerProcess(reason));
    let arguments: [OsString; 8] = [
        "compile".into(),
        // Standard error output is the result of the process; log lines would mix with it.
        "--log=off".into(),
        format!("--handler={}", options.name).into(),
        format!("--instance-memory={}", options.memory_bytes_max).into(),
        format!("--memory={}", bounds.memory_bytes_max).into(),
        format!("--seconds={}", bounds.timeout.as_secs().saturating_add(1)).into(),
        joined("--known-as=", known_as),
        joined("--component=", &options.component),
    ];
    let mut child = Command::new(program)
        .args(arguments)
        .args(capacity.small.map(|_| "--small-engine"))
        // The environment may hold secrets, and the compiler needs no variable of it.
        .env_clear()
        // The allocator reserves a gigabyte at a time; committed eagerly, it would count against RLIMIT_DATA before its
        // use.
        .env("MIMALLOC_ARENA_EAGER_COMMIT", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("could not be compiled: cannot start the compiler {program:?}: {error}")))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut code, mut output) = (Vec::new(), Vec::new());
    let exit = async {
        tokio::try_join!(read_to(stdout, CODE_BYTES_MAX, &mut code), read_to(stderr, STDERR_BYTES_MAX, &mut output))?;
        child.wait().await
    };
    let status = match tokio::time::timeout(bounds.timeout, exit).await {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => return Err(failed(format!("could not be compiled: {error}"))),
        Err(_) => {
            let timeout = humantime::format_duration(bounds.timeout);
            return Err(failed(format!("could not be compiled within {timeout} (compile_timeout)")));
        }
    };
    let output = String::from_utf8_lossy(&output);
    match (status.code(), output.trim()) {
        (Some(0), _) => Ok(code),
        // The report names the handler and the file itself.
        (Some(1), report) if !report.is_empty() => Err(error(LoadErrorKind::Reported(report.to_owned()))),
        (_, output) => Err(failed(abnormal_exit(status, output, bounds))),
    }
}

/// Reads a pipe of the process to its end, or its first bytes; the process ends when it writes more.
async fn read_to(pipe: Option<impl AsyncRead + Unpin>, bytes_max: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
    if let Some(pipe) = pipe {
        pipe.take(bytes_max).read_to_end(bytes).await?;
    }
    Ok(())
}

fn joined(option: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(option);
    argument.push(path);
    argument
}

/// Error text for a compiler process that ended without a result.
fn abnormal_exit(status: ExitStatus, output: &str, bounds: Bounds) -> String {
    // The first line of a panic or a failed allocation has the cause.
    let first = output.lines().find(|line| !line.is_empty()).unwrap_or("no error output");
    let is_out_of_memory = first.contains("allocat") || first.contains("memory");
    let memory = bytesize::ByteSize(bounds.memory_bytes_max).display().iec().to_string();
    match status.signal().and_then(Signal::from_named_raw) {
        Some(Signal::ABORT | Signal::SEGV | Signal::BUS | Signal::TRAP) if is_out_of_memory => {
            format!("could not be compiled within {memory} of memory (compile_memory_max): {first}")
        }
        Some(Signal::XCPU) => "could not be compiled: CPU time exceeded (compile_timeout)".to_owned(),
        Some(_) | None => format!(
            "could not be compiled within {memory} of memory (compile_memory_max), or crashed the compiler ({status}): \
             {first}"
        ),
    }
}

/// Limits the memory and CPU time of this process permanently, disables core files, and gives up new privileges
/// (set-user-ID programs; `PR_SET_NO_NEW_PRIVS`) of this thread and those that it starts.
///
/// The memory limit covers private writable mappings (`RLIMIT_DATA`), not the address space (`RLIMIT_AS`): an engine
/// reserves far more address space than it uses.
///
/// # Errors
///
/// Errors of `setrlimit(2)` and `prctl(2)`.
pub(crate) fn bound_this_process(memory_bytes_max: u64, seconds: u64) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let limits = [
        (Resource::Data, memory_bytes_max),
        // CPU time of all threads; the parent process limits the wall-clock time.
        (Resource::Cpu, seconds.saturating_mul(cores)),
        (Resource::Core, 0),
    ];
    for (resource, limit) in limits {
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(5), memory_bytes_max: 64 << 20 };

    /// The error of every abnormal exit names the limit to check.
    #[test]
    fn abnormal_exits_name_the_limit() {
        let abort = ExitStatus::from_raw(6);
        let reported = abnormal_exit(abort, "\nmemory allocation of 8 bytes failed\n", BOUNDS);
        assert!(
            reported.starts_with("could not be compiled within 64.0 MiB of memory (compile_memory_max): memory"),
            "{reported}"
        );
        let reported = abnormal_exit(ExitStatus::from_raw(24), "", BOUNDS);
        assert_eq!(reported, "could not be compiled: CPU time exceeded (compile_timeout)");
        let reported = abnormal_exit(ExitStatus::from_raw(101 << 8), "thread 'main' panicked", BOUNDS);
        assert!(
            reported.ends_with(", or crashed the compiler (exit status: 101): thread 'main' panicked"),
            "{reported}"
        );
    }
}
