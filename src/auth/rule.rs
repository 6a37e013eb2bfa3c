//! Authorization rules: which client may publish or subscribe to which topics.

use crate::topic::{self, Identity, Malformed, Placeholder, Template, TemplateError};

use super::pattern::Pattern;

const PLACEHOLDERS: &[Placeholder] = &[Placeholder::ClientId, Placeholder::Username];

/// Effect of a matching rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effect {
    #[default]
    Allow,
    Deny,
}

/// Action that a rule applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Publish,
    Subscribe,
    All,
}

/// Rule as configured.
#[derive(Clone, Debug)]
pub struct Rule {
    pub effect: Effect,
    pub action: Action,
    /// Patterns of client ids, at least one; `*` matches any characters.
    pub clients: Vec<String>,
    /// Patterns of user names, at least one; `None`: any, also none. A client without a user name has the empty one,
    /// which `*` matches.
    pub usernames: Option<Vec<String>>,
    /// Topic filters of the broker, at least one, with the mountpoint. They may use `${clientid}` and `${username}`.
    pub topics: Vec<String>,
}

impl Rule {
    /// Whether the rule matches every request, so that nothing is left to the rules behind it.
    pub(crate) fn matches_everything(&self) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| pattern == "*");
        self.action == Action::All
            && any(&self.clients)
            && self.usernames.as_ref().is_none_or(|usernames| any(usernames))
            && self.topics.iter().any(|topic| topic == "#")
    }
}

/// Invalid rule.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleFault {
    /// An empty list, which would never match.
    #[error("{list} is empty, and at least one entry is required")]
    Empty {
        /// `clients`, `usernames` or `topics`.
        list: &'static str,
    },
    /// Invalid placeholders in a topic.
    #[error("topics[{topic}]: {fault}")]
    Template {
        /// Index in the list, from 0.
        topic: usize,
        fault: TemplateError,
    },
    /// A malformed topic filter.
    #[error("topics[{topic}]: {fault}")]
    Malformed {
        /// Index in the list, from 0.
        topic: usize,
        fault: Malformed,
    },
    /// A shared subscription. A rule is about messages, and applies to the members of a group too.
    #[error("topics[{topic}]: {text:?} is a shared subscription, and the filter alone is expected")]
    Share {
        /// Index in the list, from 0.
        topic: usize,
        text: String,
    },
}

/// Client of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client<'a> {
    pub(super) client_id: &'a str,
    pub(super) username: &'a str,
}

#[derive(Debug)]
pub(super) struct CheckedRule {
    effect: Effect,
    action: Action,
    clients: Vec<Pattern>,
    usernames: Option<Vec<Pattern>>,
    topics: Vec<Topic>,
}

#[derive(Debug)]
enum Topic {
    Fixed(Box<str>),
    PerClient(Template),
}

impl CheckedRule {
    pub(super) fn new(rule: &Rule) -> Result<Self, RuleFault> {
        let some = |list, empty| if empty { Err(RuleFault::Empty { list }) } else { Ok(()) };
        some("clients", rule.clients.is_empty())?;
        some("usernames", rule.usernames.as_ref().is_some_and(Vec::is_empty))?;
        some("topics", rule.topics.is_empty())?;
        let patterns = |texts: &Vec<String>| texts.iter().map(|text| Pattern::new(text)).collect();
        let topics = rule.topics.iter().enumerate().map(|(place, text)| Topic::new(place, text));
        Ok(Self {
            effect: rule.effect,
            action: rule.action,
            clients: patterns(&rule.clients),
            usernames: rule.usernames.as_ref().map(patterns),
            topics: topics.collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn effect(&self) -> Effect {
        self.effect
    }

    /// Whether the rule decides this `action`, which is not [`Action::All`].
    pub(super) fn matches(&self, client: &Client<'_>, action: Action, topic: &str) -> bool {
        let any = |patterns: &[Pattern], text| patterns.iter().any(|pattern| pattern.matches(text));
        (self.action == action || self.action == Action::All)
            && any(&self.clients, client.client_id)
            && self.usernames.as_ref().is_none_or(|usernames| any(usernames, client.username))
            && self.topics.iter().any(|rule| self.topic_matches(rule, client, action, topic))
    }

    fn topic_matches(&self, rule: &Topic, client: &Client<'_>, action: Action, requested: &str) -> bool {
        let identity = Identity { client_id: client.client_id, username: client.username, peer_host: None };
        let filled;
        let filter = match rule {
            Topic::Fixed(filter) => filter,
            Topic::PerClient(template) => {
                filled = match self.effect {
                    // An invalid client name gets no permission from an allow rule …
                    Effect::Allow => match template.fill(&identity) {
                        Ok(filled) => filled,
                        Err(_) => return false,
                    },
                    // … and does not bypass a deny rule.
                    Effect::Deny => template.fill_widened(&identity),
                };
                &*filled
            }
        };
        match (action, self.effect) {
            (Action::Publish, _) => topic::matches(filter, requested),
            (_, Effect::Allow) => topic::covers(filter, requested),
            (_, Effect::Deny) => topic::overlaps(filter, requested),
        }
    }
}

impl Topic {
    fn new(place: usize, text: &str) -> Result<Self, RuleFault> {
        let template =
            Template::parse(text, PLACEHOLDERS).map_err(|fault| RuleFault::Template { topic: place, fault })?;
        let shape = template.shape();
        match topic::parse_filter(&shape) {
            Err(fault) => {
                Err(RuleFault::Malformed { topic: place, fault: Malformed { text: text.to_owned(), ..fault } })
            }
            Ok(parsed) if parsed.group.is_some() => Err(RuleFault::Share { topic: place, text: text.to_owned() }),
            Ok(_) if shape == text => Ok(Self::Fixed(shape.into())),
            Ok(_) => Ok(Self::PerClient(template)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(effect: Effect, topics: &[&str]) -> Result<CheckedRule, RuleFault> {
        CheckedRule::new(&Rule {
            effect,
            action: Action::All,
            clients: vec!["*".to_owned()],
            usernames: None,
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
        })
    }

    fn client<'a>(client_id: &'a str, username: &'a str) -> Client<'a> {
        Client { client_id, username }
    }

    #[test]
    fn allow_rules_cover_and_deny_rules_overlap_the_filter() {
        let allow = checked(Effect::Allow, &["a/+/x"]).unwrap();
        let deny = checked(Effect::Deny, &["a/+/x"]).unwrap();
        for (requested, allowed, denied) in [
            ("a/b/x", true, true),
            ("a/+/x", true, true),
            ("a/#", false, true),
            ("#", false, true),
            ("a/b", false, false),
            ("b/#", false, false),
        ] {
            assert_eq!(allow.matches(&client("c", ""), Action::Subscribe, requested), allowed, "{requested}");
            assert_eq!(deny.matches(&client("c", ""), Action::Subscribe, requested), denied, "{requested}");
        }
    }

    #[test]
    fn no_name_reaches_another_clients_topics() {
        let allow = checked(Effect::Allow, &["d/${clientid}/#", "${username}/#"]).unwrap();
        let fits = |client_id, username, topic| allow.matches(&client(client_id, username), Action::Publish, topic);
        assert!(fits("a", "", "d/a/x"));
        assert!(fits("a", "u", "u/x"));
        assert!(!fits("a", "", "d/b/x"));
        assert!(!fits("+", "", "d/a/x"));
        assert!(!fits("#", "", "d/a/x"));
        assert!(!fits("a/b", "", "d/a/b/x"));
        assert!(!fits("", "", "d//x"));
        assert!(!fits("a", "$SYS", "$SYS/x"));
        assert!(!fits("a", "", "/x"));
    }

    #[test]
    fn no_name_bypasses_a_deny_rule() {
        let deny = checked(Effect::Deny, &["inbox/${clientid}/private"]).unwrap();
        let fits = |client_id, topic| deny.matches(&client(client_id, ""), Action::Publish, topic);
        assert!(fits("a", "inbox/a/private"));
        assert!(!fits("a", "inbox/b/private"));
        assert!(fits("a/b", "inbox/a/b/private"));
        assert!(!fits("a/b", "outbox"));
    }

    #[test]
    fn user_names_narrow_a_rule() {
        let rule = Rule {
            effect: Effect::Deny,
            action: Action::Publish,
            clients: vec!["m-*".to_owned()],
            usernames: Some(vec!["guest*".to_owned()]),
            topics: vec!["#".to_owned()],
        };
        let rule = CheckedRule::new(&rule).unwrap();
        assert!(rule.matches(&client("m-1", "guest7"), Action::Publish, "a"));
        assert!(!rule.matches(&client("m-1", ""), Action::Publish, "a"));
        assert!(!rule.matches(&client("n-1", "guest7"), Action::Publish, "a"));
        assert!(!rule.matches(&client("m-1", "guest7"), Action::Subscribe, "a"));
    }

    #[test]
    fn invalid_rules_are_rejected() {
        let fault = |topic: &str| checked(Effect::Allow, &["a", topic]).unwrap_err().to_string();
        assert_eq!(fault("a/#/b"), r##"topics[1]: topic filter "a/#/b": "#" is allowed only at the end"##);
        assert_eq!(
            fault("$share/g/a"),
            r#"topics[1]: "$share/g/a" is a shared subscription, and the filter alone is expected"#
        );
        assert_eq!(
            fault("${peerhost}"),
            r#"topics[1]: "${peerhost}" is not known here; there are ${clientid} and ${username}"#
        );
        assert_eq!(
            checked(Effect::Allow, &[]).unwrap_err().to_string(),
            "topics is empty, and at least one entry is required"
        );
    }
}
