//! Patterns for client ids and user names: text in which each `*` stands for any characters, also none.

/// A pattern, split at its stars.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern(Vec<Box<str>>);

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        Self(text.split('*').map(Into::into).collect())
    }

    pub(super) fn fits(&self, text: &str) -> bool {
        match self.0.as_slice() {
            [] => false,
            [whole] => **whole == *text,
            [first, inner @ .., last] => {
                let Some(mut rest) = text.strip_prefix(&**first).and_then(|rest| rest.strip_suffix(&**last)) else {
                    return false;
                };
                // The leftmost place of each part leaves the most for those behind it.
                inner.iter().all(|part| match rest.split_once(&**part) {
                    Some((_, behind)) => {
                        rest = behind;
                        true
                    }
                    None => false,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "anything", true),
            ("", "", true),
            ("", "a", false),
            ("a*", "a", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("meter-*-*", "meter-1-2", true),
            ("meter-*-*", "meter-1", false),
            ("*b*", "abc", true),
            ("a**c", "abc", true),
            ("a.c", "abc", false),
        ] {
            assert_eq!(Pattern::new(pattern).fits(text), expected, "{pattern:?} {text:?}");
        }
    }

    fn slowly(pattern: &str, text: &str) -> bool {
        match pattern.chars().next() {
            None => text.is_empty(),
            Some('*') => (0..=text.len()).any(|skipped| slowly(&pattern[1..], &text[skipped..])),
            Some(char) => text.starts_with(char) && slowly(&pattern[1..], &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn patterns_agree_with_trying_everything(pattern in "[ab*]{0,7}", text in "[ab]{0,7}") {
            prop_assert_eq!(Pattern::new(&pattern).fits(&text), slowly(&pattern, &text));
        }
    }
}
