//! `[auth]`, its users and its rules.

use crate::config::schema::{Section, Shape};
use crate::config::value::{Flag, Key, Optional};

pub(in crate::config) static SECTION: Section = Section {
    key: "auth",
    title: "[auth]",
    about: "Who may authenticate, publish and subscribe: devices and the broker's MQTT clients alike.",
    shape: Shape::Once,
    entries: &[&ALLOW_ANONYMOUS, &user::SECTION, &rule::SECTION],
};

pub(in crate::config) static ALLOW_ANONYMOUS: Key<Flag, Optional> = Key {
    name: "allow_anonymous",
    form: Flag,
    presence: Optional("`true` without users, `false` with users"),
    about: "whether clients without a user name are let in; with no users at all, whether anybody is",
};

pub(in crate::config) mod user {
    use crate::config::schema::{Section, Shape};
    use crate::config::value::{Key, Required, Secret, Text};

    pub(in crate::config) static SECTION: Section = Section {
        key: "users",
        title: "[[auth.users]]",
        about: "Somebody who may authenticate.",
        shape: Shape::Rows,
        entries: &[&USERNAME, &PASSWORD_HASH],
    };

    pub(in crate::config) static USERNAME: Key<Text, Required> = Key {
        name: "username",
        form: Text { expected: "a user name", bytes: 1..=65_535 },
        presence: Required,
        about: "the name, different from all others",
    };

    pub(in crate::config) static PASSWORD_HASH: Key<Secret, Required> = Key {
        name: "password_hash",
        form: Secret,
        presence: Required,
        about: "argon2id hash of the password in PHC form: `$argon2id$v=19$m=19456,t=2,p=1$salt$hash`",
    };
}

pub(in crate::config) mod rule {
    use crate::auth::{Action, Effect};
    use crate::config::schema::{Section, Shape};
    use crate::config::value::{Choice, Key, List, Optional, Required, Text};

    pub(in crate::config) static SECTION: Section = Section {
        key: "rules",
        title: "[[auth.rules]]",
        about: "What clients may do. Rules are ordered: the first that fits decides, and what none fits is allowed.",
        shape: Shape::Rows,
        entries: &[&EFFECT, &ACTION, &CLIENTS, &USERNAMES, &TOPICS],
    };

    pub(in crate::config) static EFFECT: Key<Choice<Effect>, Required> = Key {
        name: "effect",
        form: Choice(&[("allow", Effect::Allow), ("deny", Effect::Deny)]),
        presence: Required,
        about: "what the rule decides",
    };

    pub(in crate::config) static ACTION: Key<Choice<Action>, Required> = Key {
        name: "action",
        form: Choice(&[("publish", Action::Publish), ("subscribe", Action::Subscribe), ("all", Action::All)]),
        presence: Required,
        about: "what it decides on",
    };

    pub(in crate::config) static CLIENTS: Key<List<Text>, Optional> = Key {
        name: "clients",
        form: List { of: PATTERN, one: "pattern of client ids" },
        presence: Optional("`[\"*\"]`"),
        about: "client ids it speaks of; each `*` stands for any characters",
    };

    pub(in crate::config) static USERNAMES: Key<List<Text>, Optional> = Key {
        name: "usernames",
        form: List { of: PATTERN, one: "pattern of user names" },
        presence: Optional("any, also none"),
        about: "user names it speaks of; each `*` stands for any characters",
    };

    pub(in crate::config) static TOPICS: Key<List<Text>, Required> = Key {
        name: "topics",
        form: List { of: Text { expected: "a topic filter", bytes: 0..=65_535 }, one: "topic filter" },
        presence: Required,
        about: "topic filters as the broker sees topics, with the mountpoint; they may use `${clientid}` and \
                `${username}`",
    };

    const PATTERN: Text = Text { expected: "a pattern such as \"meter-*\"", bytes: 1..=65_535 };
}
