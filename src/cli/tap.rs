//! `polygate tap`: live traffic of one connection.

use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueHint;

use super::admin_client::{self, Client, ClientError, escaped};
use crate::error::report;

/// Shows the live traffic of one connection of a running gateway, as a conversation
///
/// Uses the admin port of the gateway, `[admin]` in its configuration. Prints the bytes in both directions, the
/// published messages, and other operations of the handler as comments, until the connection ends or Ctrl-C. It never
/// delays the gateway and the device: data that is not received in time is left out, and reported. With --next the
/// connection is shown from its start, and the recording can be played by `polygate guest test` and `polygate replay`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polygate tap --client tracker-17\n  polygate tap --next --listener trackers --record night.conversation"
)]
#[group(id = "selector", required = true, multiple = false, args = ["client", "conn", "next"])]
pub(crate) struct Args {
    #[command(flatten)]
    gateway: admin_client::Args,
    /// The device that is, or will be, authenticated with this client id
    #[arg(long, value_name = "CLIENTID")]
    client: Option<String>,
    /// The connection with this id, as in the log
    #[arg(long, value_name = "ID")]
    conn: Option<String>,
    /// The next device that connects
    #[arg(long)]
    next: bool,
    /// With --next: to this listener
    #[arg(long, requires = "next", conflicts_with_all = ["client", "conn"], value_name = "NAME")]
    listener: Option<String>,
    /// With --next: from this address
    #[arg(long, requires = "next", conflicts_with_all = ["client", "conn"], value_name = "IP")]
    peer: Option<IpAddr>,
    /// Also record to a new file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    record: Option<PathBuf>,
}

/// Why the tap failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TapError {
    /// The file of the recording.
    #[error("cannot make the recording {path:?}")]
    Record {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The gateway did not respond, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Exit code 0 at the end of the connection or at Ctrl-C, 1 on failure.
pub(crate) async fn run(args: Args) -> ExitCode {
    let watching = tokio::select! {
        watched = watch(args) => watched,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    match watching {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("polygate: {}", report(&error));
            ExitCode::FAILURE
        }
    }
}

async fn watch(args: Args) -> Result<(), TapError> {
    let path = path(&args);
    let mut file = match args.record {
        Some(path) => match File::create_new(&path) {
            Ok(file) => Some(file),
            Err(source) => return Err(TapError::Record { path, source }),
        },
        None => None,
    };
    let client = Client::of(args.gateway)?;
    let mut stdout = io::stdout();
    client
        .follow(&path, |piece| {
            stdout.write_all(piece)?;
            stdout.flush()?;
            file.as_mut().map_or(Ok(()), |file| file.write_all(piece))
        })
        .await?;
    Ok(())
}

fn path(args: &Args) -> String {
    let mut query = Vec::new();
    let texts = [("client", &args.client), ("conn", &args.conn), ("listener", &args.listener)];
    for (name, text) in texts {
        query.extend(text.iter().map(|text| format!("{name}={}", escaped(text))));
    }
    query.extend(args.peer.iter().map(|peer| format!("peer={}", escaped(&peer.to_string()))));
    format!("/api/v1/tap?{}", query.join("&"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// The selector is in the query, whatever characters it has.
    #[test]
    fn the_query() {
        let of = |words: &[&str]| path(&Line::try_parse_from([&["tap"], words].concat()).unwrap().args);
        assert_eq!(of(&["--next"]), "/api/v1/tap?");
        assert_eq!(of(&["--client", "a&b=c d"]), "/api/v1/tap?client=a%26b%3Dc%20d");
        assert_eq!(of(&["--next", "--listener", "l", "--peer", "::1"]), "/api/v1/tap?listener=l&peer=%3A%3A1");
    }

    /// A tap needs exactly one selector.
    #[test]
    fn exactly_one_selector() {
        for words in
            [&["tap"] as &[&str], &["tap", "--client", "a", "--next"], &["tap", "--client", "a", "--peer", "::1"]]
        {
            assert!(Line::try_parse_from(words).is_err(), "{words:?}");
        }
    }
}
