//! argv to a subcommand, and its exit code.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Every event of a remote handler allocates on one thread and frees on another. Against glibc's allocator this one takes
/// a fifth off the CPU time of such an event; `cargo bench --bench echo` measures with it.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    polygate::run()
}
