//! `polygate handler`: lists and changes the handlers of a running gateway, over its admin port.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Subcommand, ValueHint};
use http::Method;
use serde::Deserialize;

use crate::error::report;
use crate::rollout::{ChangeResult, HandlerStatus, Swap, VersionStatus};

use super::admin_client::{self, Client, ClientError};

/// Lists and changes the handlers of a running gateway
///
/// Uses the admin port of the gateway, `[admin]` in its configuration. A version is a component, or a gRPC server in
/// its place; every change prints the version that serves from then on. Exits with 1 if the gateway refuses, with its
/// reason.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polygate handler list\n  polygate handler swap jt808 jt808-new.wasm --swap canary:5%\n  polygate handler promote jt808\n  polygate handler rollback jt808"
)]
pub(crate) struct Args {
    #[command(flatten)]
    gateway: admin_client::Args,
    /// Print the response as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    operation: Operation,
}

#[derive(Debug, Subcommand)]
enum Operation {
    /// All handlers: active version, canary or shadow, number of connections
    List,
    /// The versions of a handler, newest first
    Versions {
        /// The handler
        name: String,
    },
    /// Loads a new version of a handler: a component, or a gRPC server
    Swap {
        /// The handler
        name: String,
        /// A component, or a core module with component metadata
        #[arg(value_hint = ValueHint::FilePath, required_unless_present = "url", conflicts_with = "url")]
        file: Option<PathBuf>,
        /// A gRPC server that speaks ExProto, instead
        #[arg(long)]
        url: Option<String>,
        /// How it takes over: live, new-connections, canary:SHARE or shadow; default: from the configuration
        #[arg(long, value_name = "HOW")]
        swap: Option<Swap>,
        /// Only load and store it
        #[arg(long, conflicts_with = "swap")]
        keep: bool,
        /// Skip the handler's conversations
        #[arg(long, conflicts_with = "url")]
        unchecked: bool,
    },
    /// Activates one of the stored versions
    Activate {
        /// The handler
        name: String,
        /// The version
        number: u32,
        /// How it takes over; default: live
        #[arg(long, value_name = "HOW")]
        swap: Option<Swap>,
    },
    /// Activates the previous version
    Rollback {
        /// The handler
        name: String,
    },
    /// Activates the canary or shadow version
    Promote {
        /// The handler
        name: String,
    },
    /// Ends a canary or shadow
    Abandon {
        /// The handler
        name: String,
    },
}

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandlerError {
    /// A file could not be read.
    #[error("cannot read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The gateway did not respond, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The response is not from a gateway.
    #[error("the response is not from a gateway of this version")]
    Answer(#[from] serde_json::Error),
    /// The output cannot be written.
    #[error("cannot write the result")]
    Write(#[source] io::Error),
}

#[derive(Deserialize)]
struct Handlers {
    handlers: Vec<HandlerStatus>,
}

#[derive(Deserialize)]
struct OfHandler {
    versions: Vec<VersionStatus>,
}

/// Exit code 0 on success, 1 on refusal.
pub(crate) async fn run(args: Args) -> ExitCode {
    match answer(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("polygate: {}", report(&error));
            ExitCode::FAILURE
        }
    }
}

async fn answer(args: Args) -> Result<(), HandlerError> {
    let read = |path: PathBuf| std::fs::read(&path).map_err(|source| HandlerError::Read { path, source });
    let client = Client::of(args.gateway)?;
    let text = match args.operation {
        Operation::List => {
            let answer = client.ask(Method::GET, "/api/v1/handlers", None).await?;
            if args.json { answer } else { handlers(&serde_json::from_str::<Handlers>(&answer)?.handlers) }
        }
        Operation::Versions { name } => {
            let answer = client.ask(Method::GET, &format!("{}/versions", path(&name)), None).await?;
            if args.json { answer } else { versions(&serde_json::from_str::<OfHandler>(&answer)?.versions) }
        }
        Operation::Swap { name, file, url, swap, keep, unchecked } => {
            let body = match (file, url) {
                (Some(file), _) => ("application/wasm", read(file)?),
                (None, url) => {
                    let server = serde_json::json!({ "kind": "grpc", "url": url.unwrap_or_default() });
                    ("application/json", server.to_string().into_bytes())
                }
            };
            let mut query = if keep { "?activate=false".to_owned() } else { query(swap) };
            if unchecked {
                query.push_str(if query.is_empty() { "?unchecked=true" } else { "&unchecked=true" });
            }
            changed(client.ask(Method::PUT, &format!("{}/versions{query}", path(&name)), Some(body)).await?, args.json)?
        }
        Operation::Activate { name, number, swap } => {
            let path = format!("{}/versions/{number}/activate{}", path(&name), query(swap));
            changed(client.ask(Method::POST, &path, None).await?, args.json)?
        }
        Operation::Rollback { name } => change(&client, &name, "rollback", args.json).await?,
        Operation::Promote { name } => change(&client, &name, "promote", args.json).await?,
        Operation::Abandon { name } => change(&client, &name, "abandon", args.json).await?,
    };
    let mut stdout = io::stdout();
    writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush()).map_err(HandlerError::Write)
}

async fn change(client: &Client, name: &str, operation: &str, json: bool) -> Result<String, HandlerError> {
    changed(client.ask(Method::POST, &format!("{}/{operation}", path(name)), None).await?, json)
}

/// The path of a handler. A name that needs escaping is no handler's.
fn path(name: &str) -> String {
    format!("/api/v1/handlers/{}", admin_client::escaped(name))
}

fn query(swap: Option<Swap>) -> String {
    swap.map_or_else(String::new, |swap| format!("?swap={}", swap.to_string().replace('%', "%25")))
}

fn changed(answer: String, json: bool) -> Result<String, HandlerError> {
    if json {
        return Ok(answer);
    }
    let ChangeResult { handler, version, state, before } = serde_json::from_str(&answer)?;
    Ok(format!("handler {handler}: version {version} is {}; version {before} was active", state.name()))
}

fn handlers(handlers: &[HandlerStatus]) -> String {
    let mut rows =
        vec![["HANDLER", "KIND", "ACTIVE", "BEFORE", "TRIAL", "HEALTHY", "VERSIONS", "CONNECTIONS"].map(str::to_owned)];
    for handler in handlers {
        let or_none = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        rows.push([
            handler.name.clone(),
            handler.kind.clone(),
            handler.active.to_string(),
            or_none(handler.previous),
            handler.trial.as_ref().map_or_else(|| "-".to_owned(), |trial| format!("{} ({})", trial.version, trial.how)),
            if handler.healthy { "yes" } else { "no" }.to_owned(),
            handler.loaded.to_string(),
            handler.connections.to_string(),
        ]);
    }
    table(&rows)
}

fn versions(versions: &[VersionStatus]) -> String {
    let mut rows =
        vec![["VERSION", "STATE", "CONNECTIONS", "EVENTS", "FAILURES", "WHEN", "BY", "WHAT"].map(str::to_owned)];
    for version in versions {
        rows.push([
            version.number.to_string(),
            version.state.name().to_owned(),
            version.connections.to_string(),
            version.events.to_string(),
            version.failures.to_string(),
            version.at.clone(),
            version.by.clone(),
            version.what.to_string(),
        ]);
    }
    table(&rows)
}

/// A table with aligned columns.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a string cannot fail.
            write!(line, "{cell:width$}  ").unwrap_or_default();
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["A", "LONG"], ["longer", "b"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "A       LONG\nlonger  b\n");
    }

    /// Any typed name stays one segment of the path.
    #[test]
    fn names_stay_in_their_place() {
        assert_eq!(path("jt808"), "/api/v1/handlers/jt808");
        assert_eq!(path("a/../b?c"), "/api/v1/handlers/a%2F%2E%2E%2Fb%3Fc");
    }
}
