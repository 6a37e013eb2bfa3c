//! The conversations that people copy.

use std::path::{Path, PathBuf};

use polygate::testing::conversation::{Action, Conversation};

fn examples() -> Vec<PathBuf> {
    let list =
        |folder: &Path| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let folders = list(Path::new("examples/conversations")).into_iter().filter(|path| path.is_dir());
    let mut paths: Vec<PathBuf> = folders.flat_map(|folder| list(&folder)).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "conversation"));
    paths.sort();
    paths
}

/// All examples are read, and are as the printer would print them, so that recording answers changes nothing else.
#[test]
fn examples_are_in_canonical_form() {
    let examples = examples();
    assert!(examples.len() > 40, "{examples:?}");
    for path in examples {
        let conversation = Conversation::read(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(conversation.to_string(), std::fs::read_to_string(&path).unwrap(), "{}", path.display());
    }
}

/// Every frame in the tour ends in the exclusive-or of what stands before it, both ways.
#[test]
fn frames_of_the_tour_have_their_checksums() {
    let tour = Conversation::read(&PathBuf::from("examples/conversations/jt808/tour.conversation")).unwrap();
    let mut frames = 0;
    for (line, step) in tour.steps() {
        let frame: Vec<u8> = match &step.action {
            Action::FromPeer(bytes) => bytes.to_vec(),
            Action::ToPeer(pattern) => pattern.cells().iter().map(|cell| cell.unwrap()).collect(),
            _ => continue,
        };
        let [0x7e, inside @ .., 0x7e] = frame.as_slice() else { panic!("line {line}: no frame") };
        assert!(!inside.contains(&0x7d), "line {line}: the tour has no escapes, which this test would have to undo");
        assert_eq!(inside.iter().fold(0, |sum, byte| sum ^ byte), 0, "line {line}");
        frames += 1;
    }
    assert_eq!(frames, 12);
}
