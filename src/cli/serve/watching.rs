//! File watcher for `--watch`: polls the metadata of files.
//!
//! inotify reports changes of a directory entry or an inode, but the watched files may be replaced by renames, by
//! symbolic links of mounted volumes and over network file systems, where it reports nothing. Polling a handful of
//! files four times a second costs microseconds.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

/// Poll interval. A change is reported when nothing more has changed at the next poll, so that no file is read while it
/// is written.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Identity of a file's state: times of change, length, device and inode.
type FileStates = BTreeMap<PathBuf, Option<(i64, i64, u64, u64, u64)>>;

/// Watches a set of files.
#[derive(Debug)]
pub(super) struct Watcher {
    reported: FileStates,
    pending: Option<FileStates>,
}

impl Watcher {
    /// Starts from the current state of the files.
    pub(super) fn new(files: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { reported: read_states(files.into_iter().collect()), pending: None }
    }

    /// Replaces the set of files. Files that are watched already are compared with their last reported state.
    pub(super) fn follow(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        let mut now = read_states(files.into_iter().collect());
        for (path, seen) in &mut now {
            if let Some(known) = self.reported.get(path) {
                *seen = *known;
            }
        }
        self.reported = now;
        self.pending = None;
    }

    /// Returns when a file has changed and is no longer being written. Cancel safe.
    pub(super) async fn changed(&mut self) {
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let files = self.reported.keys().cloned().collect();
            // A hanging file system must not block a worker thread.
            let Ok(now) = tokio::task::spawn_blocking(move || read_states(files)).await else {
                continue;
            };
            if self.is_settled(now) {
                return;
            }
        }
    }

    fn is_settled(&mut self, now: FileStates) -> bool {
        if now == self.reported {
            self.pending = None;
        } else if self.pending.as_ref() == Some(&now) {
            self.reported = now;
            self.pending = None;
            return true;
        } else {
            self.pending = Some(now);
        }
        false
    }
}

fn read_states(files: Vec<PathBuf>) -> FileStates {
    let seen = |path: PathBuf| {
        let found = std::fs::metadata(&path).ok();
        let state = found.map(|found| (found.mtime(), found.mtime_nsec(), found.len(), found.ino(), found.dev()));
        (path, state)
    };
    files.into_iter().map(seen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is being written is reported once, when it is complete. A removed file is a change.
    #[test]
    fn a_change_is_reported_once_complete() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "one").unwrap();
        let mut watcher = Watcher::new([file.clone()]);
        let mut poll = || {
            let now = read_states(vec![file.clone()]);
            watcher.is_settled(now)
        };
        assert!(!poll());
        for text in ["t", "tw"] {
            std::fs::write(&file, text).unwrap();
            assert!(!poll());
        }
        assert!(poll());
        assert!(!poll());
        std::fs::remove_file(&file).unwrap();
        assert!(!poll());
        assert!(poll());
    }

    /// A change during a reload is not lost.
    #[test]
    fn changes_during_a_reload_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        std::fs::write(&one, "1").unwrap();
        let mut watcher = Watcher::new([one.clone()]);
        std::fs::write(&one, "11").unwrap();
        watcher.follow([one.clone(), two.clone()]);
        let now = || read_states(vec![one.clone(), two.clone()]);
        assert!(!watcher.is_settled(now()));
        assert!(watcher.is_settled(now()));
    }
}
