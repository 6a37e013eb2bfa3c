//! `[auth]`: users and rules of authentication and authorization.

use std::collections::BTreeMap;

use super::ExternalFiles;
use super::diagnostics::{Advice, ErrorReported, Fault};
use super::location::Quoted;
use super::read::{Table, all, read_all};
use super::schema::section;
use super::value::{Choice, FLAG, List, Located, SECRET, SecretSource, Text, text, values};
use crate::auth::{self, Action, Auth, Effect, Options, OptionsError, Rule, RuleFault, User};

section! {
    /// Authentication and authorization of devices and of the broker's MQTT clients.
    "auth", "[auth]", Once;

    /// whether clients without a user name are accepted; without users, whether clients with one are too
    ALLOW_ANONYMOUS "allow_anonymous": bool = FLAG, optional "`true` without users, `false` with users";
    /// the decision about a publish or subscribe that no rule matches
    DEFAULT "default": Effect = EFFECTS, optional "`\"allow\"`";
    &user::SECTION;
    &rule::SECTION;
}

section! {
    mod user;
    /// A user that may authenticate.
    "users", "[[auth.users]]", Rows;

    /// the name, unique among the users
    USERNAME "username": String = text("a user name", 1..=65_535), required;
    /// argon2id hash of the password in PHC form: `$argon2id$v=19$m=19456,t=2,p=1$salt$hash`
    PASSWORD_HASH "password_hash": SecretSource = SECRET, required;
    /// client ids that the user may have; each `*` stands for any characters, `${username}` for the user's name
    CLIENT_IDS "client_ids": Vec<Located<String>> =
        List { of: &PATTERN, one: "pattern of client ids" }, optional "any";
}

section! {
    mod rule;
    /// What clients may publish and subscribe to. The first rule that matches decides; without a match, `default` of
    /// `[auth]`.
    "rules", "[[auth.rules]]", Rows;

    /// the decision of the rule
    EFFECT "effect": Effect = EFFECTS, required;
    /// the actions that the rule matches
    ACTION "action": Action = ACTIONS, required;
    /// client ids that the rule matches; each `*` stands for any characters
    CLIENTS "clients": Vec<Located<String>> =
        List { of: &PATTERN, one: "pattern of client ids" }, optional "`[\"*\"]`";
    /// user names that the rule matches; each `*` stands for any characters
    USERNAMES "usernames": Vec<Located<String>> =
        List { of: &PATTERN, one: "pattern of user names" }, optional "any, or none";
    /// topic filters as the broker sees topics, with the mountpoint; they may use `${clientid}` and `${username}`
    TOPICS "topics": Vec<Located<String>> =
        List { of: &text("a topic filter", 0..=65_535), one: "topic filter" }, required;
}

const EFFECTS: Choice<Effect> = Choice(&[("allow", Effect::Allow), ("deny", Effect::Deny)]);
const ACTIONS: Choice<Action> =
    Choice(&[("publish", Action::Publish), ("subscribe", Action::Subscribe), ("all", Action::All)]);
const PATTERN: Text = text("a pattern such as \"meter-*\"", 1..=65_535);

/// The settings of `[auth]`.
pub(super) struct Access {
    allow_anonymous: Option<bool>,
    default: Option<Effect>,
    users: Vec<User>,
    rules: Vec<Rule>,
}

impl Access {
    /// Whether anonymous clients are allowed by default, and not by the file.
    pub(super) fn anonymous_by_default(&self) -> bool {
        self.allow_anonymous.is_none() && self.users.is_empty()
    }

    pub(super) fn into_options(self) -> Options {
        let allow_anonymous = self.allow_anonymous.unwrap_or(self.users.is_empty());
        Options { allow_anonymous, users: self.users, rules: self.rules, default: self.default.unwrap_or_default() }
    }
}

pub(super) fn read(root: &Table<'_>, external: ExternalFiles<'_>) -> Result<Access, ErrorReported> {
    let table = root.section_or_empty(&SECTION)?;
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let access = read_all!(Access {
        allow_anonymous: table.get(&ALLOW_ANONYMOUS),
        default: table.get(&DEFAULT),
        users: table.rows(&user::SECTION, |row| read_user(&row, external, &mut names)),
        rules: table.rows(&rule::SECTION, |row| read_rule(&row)),
    })?;
    // Users are configured to distinguish clients, so what no rule mentions is most likely not meant to be allowed.
    let is_undecided = access.default.is_none() && !access.rules.last().is_some_and(Rule::matches_everything);
    if is_undecided && !access.users.is_empty() {
        table.warn_at(DEFAULT.name, Advice::RulesOpen);
    }
    Ok(access)
}

/// A user; `names` has the location of each name that was read before.
fn read_user(
    row: &Table<'_>,
    external: ExternalFiles<'_>,
    names: &mut BTreeMap<String, String>,
) -> Result<User, ErrorReported> {
    let location = row.location("username");
    read_all!(User {
        client_ids: row.get(&user::CLIENT_IDS).and_then(|patterns| match patterns {
            None => Ok(None),
            Some(patterns) => {
                let checked = patterns.into_iter().map(|pattern| match auth::check_client_id(&pattern.value) {
                    Ok(()) => Ok(pattern.value),
                    Err(fault) => Err(row.fault_in(pattern.location, fault)),
                });
                all(checked).map(Some)
            }
        }),
        username: row.get(&user::USERNAME).and_then(|name| match names.get(&name) {
            Some(first) => Err(row.duplicate(location, &name, first)),
            None => {
                names.insert(name.clone(), location.position.to_string());
                Ok(name)
            }
        }),
        password_hash: row.get_with(&user::PASSWORD_HASH, |source| {
            let user = User { username: "user".to_owned(), password_hash: external.secret(source)?, client_ids: None };
            match Auth::new(Options { users: vec![user.clone()], ..Options::default() }) {
                Err(OptionsError::Hash { fault, .. }) => Err(Fault::new(fault)),
                Err(error) => Err(Fault::new(error)),
                Ok(_) => Ok(user.password_hash),
            }
        }),
    })
}

fn read_rule(row: &Table<'_>) -> Result<Rule, ErrorReported> {
    read_all!(Rule {
        effect: row.get(&rule::EFFECT),
        action: row.get(&rule::ACTION),
        clients: row.get(&rule::CLIENTS).map(|clients| clients.map_or_else(|| vec!["*".to_owned()], values)),
        usernames: row.get(&rule::USERNAMES).map(|usernames| usernames.map(values)),
        topics: row.get(&rule::TOPICS).and_then(|topics| all(topics.into_iter().map(|topic| check_topic(row, topic)))),
    })
}

/// Checks one topic of a rule, so that a wrong one does not hide the next.
fn check_topic(row: &Table<'_>, topic: Located<String>) -> Result<String, ErrorReported> {
    let rule = Rule {
        effect: Effect::Allow,
        action: Action::All,
        clients: vec!["*".to_owned()],
        usernames: None,
        topics: vec![topic.value.clone()],
    };
    let fault = match Auth::new(Options { rules: vec![rule], ..Options::default() }) {
        Ok(_) => return Ok(topic.value),
        // The location already says which topic it is.
        Err(OptionsError::Rule { fault: RuleFault::Template { fault, .. }, .. }) => Fault::new(fault),
        Err(OptionsError::Rule { fault: RuleFault::Malformed { fault, .. }, .. }) => Fault::new(fault),
        Err(OptionsError::Rule { fault: RuleFault::Share { text, .. }, .. }) => {
            Fault::new(format_args!("{} is a shared subscription; expected the filter alone", Quoted(&text)))
        }
        Err(error) => Fault::new(error),
    };
    Err(row.fault_in(topic.location, fault))
}
