//! `polygate replay --bless`: records the responses of the gateway in the conversations.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Args, Error, options};
use crate::conversation::bless::{EndedEarly, bless};
use crate::conversation::play::mqtt_observer::Watch;
use crate::conversation::play::{MqttObserver, PlayError, record};
use crate::conversation::{Conversation, ReadError};

/// A conversation could not be recorded; its file is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It could not be played.
    #[error("{name}")]
    Play {
        /// The file.
        name: String,
        /// Why.
        source: PlayError,
    },
    /// The gateway ended the connection too early.
    #[error("{name}")]
    Ended {
        /// The file.
        name: String,
        /// Where.
        source: EndedEarly,
    },
    /// The recorded conversation cannot be parsed.
    #[error("{name}: the recorded conversation could not be read back")]
    Broken {
        /// The file.
        name: String,
        /// Why.
        source: ReadError,
    },
    /// The file could not be written.
    #[error("cannot write {path}", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Records all conversations, one after the other, and rewrites the files that change.
pub(super) async fn record_all(args: &Args, conversations: &[Conversation], out: &mut impl Write) -> Result<(), Error> {
    for (path, conversation) in args.conversations.iter().zip(conversations) {
        // A broker client for each: late messages are not counted for the next one.
        let observer = match &args.mqtt {
            None => None,
            Some(broker) => {
                Some(MqttObserver::connect(broker, &args.mountpoint, Watch::Everything, args.timeout).await?)
            }
        };
        let name = || conversation.name().to_owned();
        let happened = record(conversation, &args.to, observer.as_ref(), &options(args), args.quiet).await;
        if let Some(observer) = observer {
            observer.close(args.timeout).await;
        }
        let happened = happened.map_err(|source| RecordError::Play { name: name(), source })?;
        let blessed = bless(conversation, &happened).map_err(|source| RecordError::Ended { name: name(), source })?;
        let text = blessed.to_string();
        Conversation::parse(name(), &text)
            .map_err(|faults| RecordError::Broken { name: name(), source: faults.into() })?;
        if blessed == *conversation {
            writeln!(out, "{}  unchanged", conversation.name())?;
            continue;
        }
        replace(path, &text).map_err(|source| RecordError::Write { path: path.clone(), source })?;
        writeln!(out, "{}  recorded", conversation.name())?;
    }
    Ok(())
}

/// Replaces a file atomically: an interruption keeps the old text.
pub(in crate::cli) fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let written = std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        // The partial file is useless; a failure to remove it does not change the reported error.
        drop(std::fs::remove_file(&beside));
    }
    written
}
