//! The guest `echo` as a server of its own: `--listen`, `--adapter` and `--setting` say where and how.

use std::process::ExitCode;

fn main() -> ExitCode {
    polygate_exproto::run::<echo::Echo>()
}
