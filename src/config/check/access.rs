//! `[auth]`: users and rules.

use std::collections::BTreeMap;

use crate::auth::{Auth, Options, OptionsError, Rule, User};
use crate::config::ExternalFiles;
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::Table;
use crate::config::schema::auth::{self, rule, user};
use crate::config::value::Located;

/// What `[auth]` says.
#[derive(Debug)]
pub(super) struct Access {
    /// As written.
    allow_anonymous: Option<bool>,
    users: Vec<User>,
    rules: Vec<Rule>,
}

impl Access {
    /// Whether anybody is let in without the file saying so.
    pub(super) fn anonymous_by_default(&self) -> bool {
        self.allow_anonymous.is_none() && self.users.is_empty()
    }

    pub(super) fn into_options(self) -> Options {
        let allow_anonymous = self.allow_anonymous.unwrap_or(self.users.is_empty());
        Options { allow_anonymous, users: self.users, rules: self.rules }
    }
}

pub(super) fn read(root: &Table<'_>, external: ExternalFiles<'_>) -> Result<Access, ErrorReported> {
    let table = root.section_or_empty(&auth::SECTION)?;
    let allow_anonymous = table.get(&auth::ALLOW_ANONYMOUS);
    let users = users(&table, external);
    let rules = table.rows(&rule::SECTION).and_then(|rows| all(rows.iter().map(rule)));
    Ok(Access { allow_anonymous: allow_anonymous?, users: users?, rules: rules? })
}

fn users(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<Vec<User>, ErrorReported> {
    let rows = table.rows(&user::SECTION)?;
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    all(rows.iter().map(|row| {
        let username = row.get(&user::USERNAME).and_then(|name| {
            if let Some(first) = names.get(&name) {
                return Err(row.fault_at("username", Fault::Twice { found: name, first: first.clone() }));
            }
            names.insert(name.clone(), row.location("username").position.to_string());
            Ok(name)
        });
        let password_hash = row
            .get(&user::PASSWORD_HASH)
            .and_then(|source| external.secret(source).map_err(|fault| row.fault_at("password_hash", fault)));
        // A hash is looked at also when its user has no name.
        let password_hash = password_hash.and_then(|password_hash| {
            let user = User { username: "user".to_owned(), password_hash };
            match Auth::new(Options { users: vec![user.clone()], ..Options::default() }) {
                Err(OptionsError::Hash { fault, .. }) => Err(row.fault_at("password_hash", Fault::Hash(fault))),
                Err(error) => Err(row.fault(Fault::Access(error))),
                Ok(_) => Ok(user.password_hash),
            }
        });
        Ok(User { username: username?, password_hash: password_hash? })
    }))
}

fn rule(row: &Table<'_>) -> Result<Rule, ErrorReported> {
    let effect = row.get(&rule::EFFECT);
    let action = row.get(&rule::ACTION);
    let clients = row.get(&rule::CLIENTS);
    let usernames = row.get(&rule::USERNAMES);
    let topics = row.get(&rule::TOPICS).and_then(|topics| all(topics.into_iter().map(|topic| check_topic(row, topic))));
    Ok(Rule {
        effect: effect?,
        action: action?,
        clients: clients?.map_or_else(|| vec!["*".to_owned()], values),
        usernames: usernames?.map(values),
        topics: topics?,
    })
}

/// Each topic alone, so that one that is wrong does not hide the next.
fn check_topic(row: &Table<'_>, topic: Located<String>) -> Result<String, ErrorReported> {
    let rule = Rule {
        effect: crate::auth::Effect::Allow,
        action: crate::auth::Action::All,
        clients: vec!["*".to_owned()],
        usernames: None,
        topics: vec![topic.value.clone()],
    };
    let fault = match Auth::new(Options { rules: vec![rule], ..Options::default() }) {
        Err(OptionsError::Rule { fault, .. }) => Fault::Rule(fault),
        Err(error) => Fault::Access(error),
        Ok(_) => return Ok(topic.value),
    };
    Err(row.fault_in(topic.location, fault))
}

fn values(list: Vec<Located<String>>) -> Vec<String> {
    list.into_iter().map(|placed| placed.value).collect()
}

/// All values, each read before the first fault ends it.
fn all<T>(results: impl Iterator<Item = Result<T, ErrorReported>>) -> Result<Vec<T>, ErrorReported> {
    let results: Vec<Result<T, ErrorReported>> = results.collect();
    results.into_iter().collect()
}
