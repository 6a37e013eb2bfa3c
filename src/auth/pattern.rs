//! Wildcard patterns for client ids and user names: each `*` matches any characters, also none.

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern(Vec<Box<str>>);

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        Self::with(text, |part| part.into())
    }

    /// The pattern whose texts between the stars are replaced.
    pub(super) fn with(text: &str, replace: impl Fn(&str) -> Box<str>) -> Self {
        Self(text.split('*').map(replace).collect())
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        match self.0.as_slice() {
            [] => false,
            [whole] => **whole == *text,
            [first, inner @ .., last] => {
                let Some(mut rest) = text.strip_prefix(&**first).and_then(|rest| rest.strip_suffix(&**last)) else {
                    return false;
                };
                // The leftmost match of each part leaves the most text for the parts behind it.
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
    fn stars_match_anything() {
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
            assert_eq!(Pattern::new(pattern).matches(text), expected, "{pattern:?} {text:?}");
        }
    }

    fn naive(pattern: &str, text: &str) -> bool {
        match pattern.chars().next() {
            None => text.is_empty(),
            Some('*') => (0..=text.len()).any(|skipped| naive(&pattern[1..], &text[skipped..])),
            Some(char) => text.starts_with(char) && naive(&pattern[1..], &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn patterns_agree_with_a_naive_matcher(pattern in "[ab*]{0,7}", text in "[ab]{0,7}") {
            prop_assert_eq!(Pattern::new(&pattern).matches(&text), naive(&pattern, &text));
        }
    }
}
