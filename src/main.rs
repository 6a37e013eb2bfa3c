//! Binary `polygate`: runs the command line of [`polygate::run`].

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Every event of a remote handler allocates on one thread and frees on another. mimalloc saves a fifth of the CPU time
/// of such an event compared with glibc's allocator; `cargo bench --bench echo` measures with it.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    polygate::run()
}
