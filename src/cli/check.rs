//! `polygate check`: validates a configuration (dry run), and summarizes it.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueHint;

use crate::config::{Config, Warning};

/// Validates a configuration file and reports all faults at once
///
/// Each fault has its line, key, found and expected value. For a valid file, prints a summary, and warnings about valid
/// but probably unintended settings. Exits with 0 if the file is valid, with 1 otherwise.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  polygate check -c polygate.toml")]
pub(crate) struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
}

/// Runs the command: the summary goes to `stdout`, faults go to `stderr` with exit code 1.
///
/// # Errors
///
/// The output cannot be written.
pub(crate) fn run(args: &Args, stdout: &mut impl Write, stderr: &mut impl Write) -> io::Result<ExitCode> {
    match Config::load(&args.config) {
        Ok((config, warnings)) => {
            write!(stdout, "{}", summary(&args.config.display().to_string(), &config, &warnings))?;
            stdout.flush()?;
            Ok(ExitCode::SUCCESS)
        }
        Err(faults) => {
            writeln!(stderr, "{faults}")?;
            stderr.flush()?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// A summary of the configuration.
fn summary(file: &str, config: &Config, warnings: &[Warning]) -> String {
    let mut lines: Vec<[String; 2]> =
        vec![["node".to_owned(), config.node.to_string()], ["data".to_owned(), config.data_dir.display().to_string()]];
    if let Some(adapter) = &config.adapter {
        lines.push([
            "adapter".to_owned(),
            format!("{}{}", adapter.bind, if adapter.tls.is_some() { ", TLS" } else { "" }),
        ]);
    }
    if let Some(admin) = &config.admin {
        lines.push(["admin".to_owned(), admin.bind.to_string()]);
    }
    let mqtt = config.broker.bind.map_or_else(|| "no MQTT port".to_owned(), |bind| format!("MQTT clients on {bind}"));
    lines.push(["broker".to_owned(), format!("embedded, {mqtt}")]);
    for listener in &config.listeners {
        let chain: Vec<&str> = listener.handlers.iter().map(AsRef::as_ref).collect();
        let name = format!("listener {}", listener.socket.name);
        let framing = listener.connection.framing.as_ref();
        let framing = framing.map_or_else(String::new, |framing| format!(" [framing: {}]", framing.kind()));
        lines.push([name, format!("{}{framing} -> {}", listener.socket.bind, chain.join(", "))]);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> (bool, String, String) {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("polygate.toml");
        std::fs::write(&config, text).unwrap();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let code = run(&Args { config }, &mut stdout, &mut stderr).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap().replace(&format!("{}/", dir.path().display()), "");
        (code == ExitCode::SUCCESS, text(stdout), text(stderr))
    }

    #[test]
    fn a_valid_file_is_summed_up_on_stdout() {
        let (fine, stdout, stderr) = check(
            r#"
            gateway.node = "gw-1"
            admin.bind = "127.0.0.1:9180"
            broker.bind = "127.0.0.1:1883"
            [handlers.one]
            kind = "grpc"
            url = "http://127.0.0.1:9001"
            [handlers.two]
            kind = "grpc"
            url = "http://127.0.0.1:9002"
            [listeners.trackers]
            bind = "tcp://127.0.0.1:7993"
            handlers = ["one", "two"]
            [handlers.three]
            kind = "grpc"
            url = "http://127.0.0.1:9003"
            [listeners.meters]
            bind = "tcp://127.0.0.1:7994"
            handlers = ["two"]
            framing = { kind = "gap", silence = "50ms" }
            "#,
        );
        assert!(fine && stderr.is_empty());
        let expected = r#"polygate.toml is valid
  node               gw-1
  data               polygate-data
  adapter            127.0.0.1:9100
  admin              127.0.0.1:9180
  broker             embedded, MQTT clients on 127.0.0.1:1883
  listener trackers  tcp://127.0.0.1:7993 -> one, two
  listener meters    tcp://127.0.0.1:7994 [framing: gap] -> two
warning: line 14, handlers.three: no listener uses this handler
"#;
        assert_eq!(stdout, expected);
    }

    #[test]
    fn faults_go_to_stderr() {
        let (fine, stdout, stderr) = check("gateway.nod = 1\n");
        assert!(!fine && stdout.is_empty());
        let expected =
            "polygate.toml has 1 fault:\n  line 1  gateway.nod   is not a key of [gateway]; did you mean \"node\"?\n";
        assert_eq!(stderr, expected);
    }
}
