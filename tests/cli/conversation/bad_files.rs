//! Every message about a bad file, word for word.

use std::path::Path;

use polygate::testing::conversation::Conversation;

/// Each file in `tests/fixtures/bad` is refused with exactly the text beside it.
#[test]
fn bad_files_are_refused_in_these_words() {
    let mut seen = 0;
    for entry in std::fs::read_dir("tests/fixtures/bad").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "conversation") {
            let reported = Conversation::read(&path).unwrap_err().to_string();
            let expected = std::fs::read_to_string(path.with_extension("txt")).unwrap_or_default();
            assert_eq!(format!("{reported}\n"), expected, "{}", path.display());
            seen += 1;
        }
    }
    assert_eq!(seen, 6);
}

#[test]
fn a_file_that_is_not_there() {
    let error = Conversation::read(Path::new("tests/fixtures/bad/none.conversation")).unwrap_err();
    assert_eq!(error.to_string(), "cannot read tests/fixtures/bad/none.conversation");
    assert!(std::error::Error::source(&error).is_some());
}

/// A file is read up to its limit and no further.
#[test]
fn a_file_that_is_too_long() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("long.conversation");
    let limit = polygate::testing::conversation::FILE_BYTES_MAX;
    std::fs::File::create(&path).unwrap().set_len(limit + 1).unwrap();
    let reported = Conversation::read(&path).unwrap_err().to_string();
    assert!(reported.ends_with("expected a conversation of at most 16777216 bytes, found a longer file"), "{reported}");
}
