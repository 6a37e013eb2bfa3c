//! Suggestions for misspelt keys and words ("did you mean"), by Damerau-Levenshtein distance.

/// The known word that is nearest to the written one, if it is near.
pub(super) fn suggest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A word with one wrong letter in three is still recognised; a long text is no misspelt key.
    const CHARS_MAX: usize = 64;
    if written.chars().count() > CHARS_MAX {
        return None;
    }
    let written = written.to_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(&written, word), word))
        .filter(|&(distance, word)| distance <= (word.len() / 3).max(1) || shares_a_stem(&written, word))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, word)| word)
}

/// `max_connections` for `connections_max`, `timeout` for `idle_timeout`, `name` for `username`: the same
/// words, moved or left out.
fn shares_a_stem(written: &str, known: &str) -> bool {
    let mut words = written.split('_').filter(|word| word.len() > 2).peekable();
    words.peek().is_some() && words.all(|word| known.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_words_are_recognised_and_other_words_are_not() {
        let known = ["bind", "handlers", "idle_timeout", "connections_max", "username"];
        for (written, expected) in [
            ("bnid", Some("bind")),
            ("handler", Some("handlers")),
            ("idle-timeout", Some("idle_timeout")),
            ("Idle_Timeout", Some("idle_timeout")),
            ("max_connections", Some("connections_max")),
            ("timeout", Some("idle_timeout")),
            ("name", Some("username")),
            ("conections_max", Some("connections_max")),
            ("colour", None),
            ("", None),
            ("_", None),
        ] {
            assert_eq!(suggest(written, known), expected, "{written:?}");
        }
        assert_eq!(suggest(&"b".repeat(1 << 20), known), None);
    }
}
