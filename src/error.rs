//! Error report: an error with its sources as one line of text.

use std::error::Error;

/// The message of an error followed by the messages of its sources, in one line: `cannot bind listener "a": permission denied`.
pub(crate) fn report(error: &(dyn Error + 'static)) -> String {
    let mut text = message(error);
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = message(cause);
        // Some libraries repeat their cause in their own text.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The message of one error without its sources. Operating system errors lose their number and their capital letter.
fn message(error: &(dyn Error + 'static)) -> String {
    let text = error.to_string();
    let number = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    let Some(reason) = number.and_then(|number| text.strip_suffix(&format!(" (os error {number})"))) else {
        return text;
    };
    let mut characters = reason.chars();
    characters.next().into_iter().flat_map(char::to_lowercase).chain(characters).collect()
}
