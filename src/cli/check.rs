//! `polygate check`: is this configuration valid, and what would it run?

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::{Config, Faults, Warning};

/// Checks a configuration file: finds every fault at once, with its line, its key, what was found and what
/// was expected.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  polygate check -c polygate.toml")]
pub struct Args {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Runs the command: what would run goes to `stdout`, faults go to `stderr` with exit code 1.
///
/// # Errors
///
/// When nobody takes the output.
pub fn run(args: &Args, stdout: &mut impl Write, stderr: &mut impl Write) -> io::Result<ExitCode> {
    match Config::load(&args.config) {
        Ok((config, warnings)) => {
            write!(stdout, "{}", summary(&args.config.display().to_string(), &config, &warnings))?;
            stdout.flush()?;
            Ok(ExitCode::SUCCESS)
        }
        Err(faults) => {
            tell(&faults, stderr)?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn tell(faults: &Faults, stderr: &mut impl Write) -> io::Result<()> {
    writeln!(stderr, "{faults}")?;
    stderr.flush()
}

/// What the file makes of the gateway, for people.
fn summary(file: &str, config: &Config, warnings: &[Warning]) -> String {
    let mut lines: Vec<[String; 2]> = vec![
        ["node".to_owned(), config.node.to_string()],
        ["data".to_owned(), config.data_dir.display().to_string()],
    ];
    if let Some(adapter) = &config.adapter {
        lines.push(["adapter".to_owned(), format!("{}{}", adapter.bind, if adapter.tls.is_some() { ", TLS" } else { "" })]);
    }
    if let Some(admin) = &config.admin {
        lines.push(["admin".to_owned(), admin.bind.to_string()]);
    }
    let mqtt = config.broker.bind.map_or_else(|| "no MQTT port".to_owned(), |bind| format!("MQTT clients on {bind}"));
    lines.push(["broker".to_owned(), format!("embedded, {mqtt}")]);
    for listener in &config.listeners {
        let chain: Vec<&str> = listener.handlers.iter().map(AsRef::as_ref).collect();
        let name = format!("listener {}", listener.socket.name);
        lines.push([name, format!("{} -> {}", listener.socket.bind, chain.join(", "))]);
    }
    let width = lines.iter().map(|[name, _]| name.len()).max().unwrap_or(0);
    let mut text = format!("{file} is valid\n");
    for [name, value] in &lines {
        text.push_str(&format!("  {name:width$}  {value}\n"));
    }
    for warning in warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    text
}
