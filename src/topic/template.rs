//! Topic templates: texts with placeholders for a client's identity, in mountpoints and rules.
//!
//! A value that would change the structure of the topic is rejected. A client with the name `a/b`, `+` or `$SYS` would
//! otherwise reach another client's topics, every client's topics, or the broker's.

use std::fmt;
use std::net::IpAddr;

/// Placeholder of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// `${clientid}`
    ClientId,
    /// `${username}`
    Username,
    /// `${peerhost}`: the peer's IP address without the port.
    PeerHost,
}

impl Placeholder {
    fn name(self) -> &'static str {
        match self {
            Self::ClientId => "${clientid}",
            Self::Username => "${username}",
            Self::PeerHost => "${peerhost}",
        }
    }
}

impl fmt::Display for Placeholder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Values of the placeholders.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    pub client_id: &'a str,
    /// Empty if there is none.
    pub username: &'a str,
    /// The peer's address; `None` where a template does not use it.
    pub peer_host: Option<IpAddr>,
}

/// A parsed text with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(Placeholder),
}

/// Invalid template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// An unknown placeholder.
    #[error("{found:?} is not known here; there are {}", List(allowed))]
    Unknown {
        /// The placeholder as written.
        found: String,
        /// Known placeholders.
        allowed: &'static [Placeholder],
    },
    /// `${` without its `}`.
    #[error("\"${{\" at byte {at} has no \"}}\"")]
    Unclosed {
        /// Byte offset.
        at: usize,
    },
    /// Two placeholders in one level: two clients could fill it with the same text.
    #[error("the level {level:?} has two placeholders, and one is allowed")]
    Ambiguous { level: String },
}

struct List<'a>(&'a [Placeholder]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, placeholder) in self.0.iter().enumerate() {
            let separator = match index {
                0 => "",
                _ if index + 1 == self.0.len() => " and ",
                _ => ", ",
            };
            write!(f, "{separator}{placeholder}")?;
        }
        Ok(())
    }
}

/// A value that is not allowed in a topic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{placeholder} is {value:?}, and in a topic it must {must}")]
pub struct Unfit {
    pub placeholder: Placeholder,
    pub value: String,
    /// The violated requirement.
    pub must: &'static str,
}

impl Template {
    /// Parses a text with the `allowed` placeholders.
    ///
    /// # Errors
    ///
    /// An unknown or unclosed placeholder, or two of them in one level.
    pub(crate) fn parse(text: &str, allowed: &'static [Placeholder]) -> Result<Self, TemplateError> {
        for level in text.split('/') {
            if level.matches("${").count() > 1 {
                return Err(TemplateError::Ambiguous { level: level.to_owned() });
            }
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let Some((name, behind)) = after.split_once('}') else {
                return Err(TemplateError::Unclosed { at: text.len() - after.len() - "${".len() });
            };
            let found = format!("${{{name}}}");
            let Some(placeholder) = allowed.iter().find(|placeholder| placeholder.name() == found) else {
                return Err(TemplateError::Unknown { found, allowed });
            };
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Part::Value(*placeholder));
            rest = behind;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// Fills in the values.
    ///
    /// A value must not be empty, must not contain `/`, `+`, `#` or U+0000, and must not begin with `$` at the start of
    /// the text: it fills one level or a part of one, and never more.
    ///
    /// # Errors
    ///
    /// The first value that violates this.
    pub(crate) fn fill(&self, identity: &Identity<'_>) -> Result<String, Unfit> {
        let mut filled = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Value(placeholder) => {
                    let value = value(*placeholder, identity);
                    if let Some(must) = unfit(&value, filled.is_empty()) {
                        return Err(Unfit { placeholder: *placeholder, value, must });
                    }
                    filled.push_str(&value);
                }
            }
        }
        Ok(filled)
    }

    /// Fills in the values; where one is not allowed, returns a filter that covers every topic it could mean.
    ///
    /// For deny rules: a client with an invalid name must not bypass the rule.
    pub(crate) fn fill_widened(&self, identity: &Identity<'_>) -> String {
        let mut filled = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Value(placeholder) => {
                    let value = value(*placeholder, identity);
                    if unfit(&value, filled.is_empty()).is_none() {
                        filled.push_str(&value);
                        continue;
                    }
                    filled.truncate(filled.rfind('/').map_or(0, |slash| slash + 1));
                    if filled.is_empty() && value.starts_with('$') {
                        // "#" would not match a level that begins with "$".
                        filled.push_str(value.split('/').next().unwrap_or_default());
                        filled.push('/');
                    }
                    filled.push('#');
                    return filled;
                }
            }
        }
        filled
    }

    /// The text with each placeholder replaced by the same plain word: the structure of the results of
    /// [`fill`](Self::fill).
    pub(crate) fn shape(&self) -> String {
        self.0
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.as_str(),
                Part::Value(_) => "x",
            })
            .collect()
    }
}

fn value(placeholder: Placeholder, identity: &Identity<'_>) -> String {
    match placeholder {
        Placeholder::ClientId => identity.client_id.to_owned(),
        Placeholder::Username => identity.username.to_owned(),
        Placeholder::PeerHost => identity.peer_host.map(|host| host.to_string()).unwrap_or_default(),
    }
}

fn unfit(value: &str, first: bool) -> Option<&'static str> {
    if value.is_empty() {
        return Some("not be empty");
    }
    if value.contains(['/', '+', '#', '\0']) {
        return Some("not contain \"/\", \"+\", \"#\" or U+0000");
    }
    (first && value.starts_with('$')).then_some("not begin with \"$\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[Placeholder] = &[Placeholder::ClientId, Placeholder::Username, Placeholder::PeerHost];

    fn identity<'a>(client_id: &'a str, username: &'a str) -> Identity<'a> {
        Identity { client_id, username, peer_host: Some("192.0.2.7".parse().unwrap()) }
    }

    #[test]
    fn placeholders_are_replaced_by_values() {
        let template = Template::parse("v1/${username}/d-${clientid}/${peerhost}/", ALL).unwrap();
        assert_eq!(template.fill(&identity("a", "u")), Ok("v1/u/d-a/192.0.2.7/".to_owned()));
        assert_eq!(template.shape(), "v1/x/d-x/x/");
    }

    #[test]
    fn faults_are_found_when_parsing() {
        let error = |text| Template::parse(text, ALL).unwrap_err().to_string();
        assert_eq!(
            error("a/${client}/"),
            r#""${client}" is not known here; there are ${clientid}, ${username} and ${peerhost}"#
        );
        assert_eq!(error("a/${clientid/"), r#""${" at byte 2 has no "}""#);
        assert_eq!(
            error("${clientid}${username}/"),
            r#"the level "${clientid}${username}" has two placeholders, and one is allowed"#
        );
        assert!(Template::parse("a$b/{x}", ALL).is_ok());
    }

    #[test]
    fn a_deny_filter_is_widened() {
        let first = Template::parse("${clientid}/x", ALL).unwrap();
        let inner = Template::parse("a/d-${clientid}/x", ALL).unwrap();
        for (value, from_first, from_inner) in [
            ("b", "b/x", "a/d-b/x"),
            ("b/c", "#", "a/#"),
            ("", "#", "a/#"),
            ("$SYS", "$SYS/#", "a/d-$SYS/x"),
            ("$SYS/b", "$SYS/#", "a/#"),
        ] {
            assert_eq!(first.fill_widened(&identity(value, "")), from_first, "{value:?}");
            assert_eq!(inner.fill_widened(&identity(value, "")), from_inner, "{value:?}");
        }
    }

    #[test]
    fn a_value_never_changes_the_structure_of_the_topic() {
        let first = Template::parse("${clientid}/x", ALL).unwrap();
        let inner = Template::parse("a/${clientid}/x", ALL).unwrap();
        for value in ["", "a/b", "/", "+", "#", "a+", "a#", "a\0"] {
            assert!(first.fill(&identity(value, "")).is_err(), "{value:?}");
            assert!(inner.fill(&identity(value, "")).is_err(), "{value:?}");
        }
        assert!(first.fill(&identity("$SYS", "")).is_err());
        assert_eq!(inner.fill(&identity("$SYS", "")), Ok("a/$SYS/x".to_owned()));
        assert_eq!(
            inner.fill(&identity("a/b", "")).unwrap_err().to_string(),
            r##"${clientid} is "a/b", and in a topic it must not contain "/", "+", "#" or U+0000"##
        );
    }
}
