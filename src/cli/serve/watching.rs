//! Finds out that a file has changed, by looking.
//!
//! The operating system could tell, but what it tells of is a directory entry or an inode, and the files that matter here are
//! replaced by renames, by symbolic links of mounted volumes and over network file systems, where it tells nothing. To look at a
//! handful of files four times a second costs microseconds.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

/// How often it looks. A change is acted on when nothing more has changed at the next look, so that no file is read
/// that is half written.
const LOOKS_EVERY: Duration = Duration::from_millis(250);

/// What tells one state of a file from another: when it was changed, its length, and which file it is.
type Seen = BTreeMap<PathBuf, Option<(i64, i64, u64, u64, u64)>>;

/// Watches some files.
#[derive(Debug)]
pub(super) struct Watcher {
    acted_on: Seen,
    pending: Option<Seen>,
}

impl Watcher {
    /// From what the files are now.
    pub(super) fn new(files: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { acted_on: look(files.into_iter().collect()), pending: None }
    }

    /// Watches these from now on. What was watched already is compared with what was acted on last.
    pub(super) fn follow(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        let mut now = look(files.into_iter().collect());
        for (path, seen) in &mut now {
            if let Some(known) = self.acted_on.get(path) {
                *seen = *known;
            }
        }
        self.acted_on = now;
        self.pending = None;
    }

    /// Returns when a file has changed and has come to rest. Can be dropped and called again.
    pub(super) async fn changed(&mut self) {
        loop {
            tokio::time::sleep(LOOKS_EVERY).await;
            let files = self.acted_on.keys().cloned().collect();
            // A file system that hangs must not take a thread of the devices with it.
            let Ok(now) = tokio::task::spawn_blocking(move || look(files)).await else {
                continue;
            };
            if self.is_settled(now) {
                return;
            }
        }
    }

    fn is_settled(&mut self, now: Seen) -> bool {
        if now == self.acted_on {
            self.pending = None;
        } else if self.pending.as_ref() == Some(&now) {
            self.acted_on = now;
            self.pending = None;
            return true;
        } else {
            self.pending = Some(now);
        }
        false
    }
}

fn look(files: Vec<PathBuf>) -> Seen {
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

    /// A file that is being written is not acted on; when it has come to rest, it is, once. A file that is gone is a change.
    #[test]
    fn a_change_is_acted_on_when_it_has_come_to_rest() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "one").unwrap();
        let mut watcher = Watcher::new([file.clone()]);
        let mut look = || {
            let now = look(vec![file.clone()]);
            watcher.is_settled(now)
        };
        assert!(!look());
        for text in ["t", "tw"] {
            std::fs::write(&file, text).unwrap();
            assert!(!look());
        }
        assert!(look());
        assert!(!look());
        std::fs::remove_file(&file).unwrap();
        assert!(!look());
        assert!(look());
    }

    /// What changes while a configuration is followed is not lost.
    #[test]
    fn what_is_watched_stays_watched() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        std::fs::write(&one, "1").unwrap();
        let mut watcher = Watcher::new([one.clone()]);
        std::fs::write(&one, "11").unwrap();
        watcher.follow([one.clone(), two.clone()]);
        let now = || look(vec![one.clone(), two.clone()]);
        assert!(!watcher.is_settled(now()));
        assert!(watcher.is_settled(now()));
    }
}
