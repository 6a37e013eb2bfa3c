//! The guest `jt808` as a server of its own: `--listen`, `--adapter` and `--setting` say where and how.

use std::process::ExitCode;

fn main() -> ExitCode {
    polygate_exproto::run::<jt808::terminal::Terminal>()
}
