//! Authentication of clients, and authorization of publish and subscribe.
//!
//! One policy for devices and for MQTT clients of the embedded broker; [`Auth::replace`] replaces it while clients stay
//! connected, and their next requests meet the new rules. Holds password hashes; never shows or logs them, nor a
//! password.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use secrecy::{ExposeSecret, SecretString};

use crate::conn::{Denied, Password, Refused};
use crate::telemetry::LoginMetrics;

mod attempts;
mod hash;
mod pattern;
mod rule;
mod verified;
mod verifier;

pub(crate) use hash::HashFault;
use hash::PasswordHash;
use pattern::Pattern;
pub(crate) use rule::RuleFault;
pub use rule::{Action, Effect, Rule};
use rule::{CheckedRule, Client};
pub(crate) use verifier::Origin;
use verifier::{Overloaded, Verifier};

/// Maximum memory of a password hash, in KiB.
pub(crate) const HASH_MEMORY_KIB_MAX: u32 = 256 * 1024;

/// Policy as configured.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether clients without a user name are allowed; without any users, whether clients are allowed at all.
    pub allow_anonymous: bool,
    pub users: Vec<User>,
    /// In order: the first matching rule decides.
    pub rules: Vec<Rule>,
    /// Decision about a request that no rule matches.
    pub default: Effect,
}

#[derive(Clone)]
pub struct User {
    /// Not empty.
    pub username: String,
    /// An argon2id hash in PHC form: `$argon2id$v=19$m=19456,t=2,p=1$…$…`.
    pub password_hash: SecretString,
    /// Patterns of the client ids that the user may have, at least one; `*` matches any characters, and `${username}`
    /// stands for the user's name. `None`: any.
    pub client_ids: Option<Vec<String>>,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Invalid [`Options`].
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error("users[{user}] has no username")]
    UsernameEmpty {
        /// Index in the list, from 0.
        user: usize,
    },
    #[error("users[{user}]: there is a user {username:?} already")]
    UsernameTwice {
        /// Index of the second one, from 0.
        user: usize,
        username: String,
    },
    /// An invalid password hash.
    #[error("users[{user}].password_hash of {username:?}")]
    Hash {
        /// Index of the user, from 0.
        user: usize,
        username: String,
        /// The fault; never shows the hash.
        #[source]
        fault: HashFault,
    },
    /// An invalid list of client ids.
    #[error("users[{user}].client_ids of {username:?}")]
    ClientIds {
        /// Index of the user, from 0.
        user: usize,
        username: String,
        #[source]
        fault: ClientIdsFault,
    },
    /// The operating system's random generator failed.
    #[error("the system's random generator failed")]
    Random(#[source] getrandom::Error),
    /// An invalid rule.
    #[error("rules[{rule}]")]
    Rule {
        /// Index in the list, from 0.
        rule: usize,
        #[source]
        fault: RuleFault,
    },
}

/// Invalid client ids of a user.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientIdsFault {
    #[error("the list is empty, and at least one pattern is required")]
    Empty,
    /// A placeholder other than `${username}`.
    #[error("{pattern:?} has another placeholder than \"${{username}}\"")]
    Placeholder { pattern: String },
}

/// Credentials of a client.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    pub client_id: &'a str,
    /// Empty if there is none.
    pub username: &'a str,
    /// Any bytes, as in MQTT.
    pub password: Option<&'a Password>,
    pub origin: Origin,
    /// The client's address, if it is known.
    pub address: Option<IpAddr>,
}

/// Active policy. Clones share it.
#[derive(Clone)]
pub struct Auth(Arc<Shared>);

struct Shared {
    policy: ArcSwap<Policy>,
    verifier: Verifier,
}

struct Policy {
    allow_anonymous: bool,
    users: Users,
    rules: Vec<CheckedRule>,
    default: Effect,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = self.0.policy.load();
        f.debug_struct("Auth")
            .field("allow_anonymous", &policy.allow_anonymous)
            .field("users", &policy.users.0.len())
            .field("rules", &policy.rules.len())
            .finish()
    }
}

impl Auth {
    /// Checks the options and creates the policy.
    ///
    /// # Errors
    ///
    /// The first fault; see [`OptionsError`].
    pub fn new(options: Options) -> Result<Self, OptionsError> {
        let policy = ArcSwap::from_pointee(Policy::new(options)?);
        let verifier = Verifier::new().map_err(OptionsError::Random)?;
        Ok(Self(Arc::new(Shared { policy, verifier })))
    }

    /// Results of the logins so far.
    pub fn counters(&self) -> &LoginMetrics {
        self.0.verifier.counters()
    }

    /// Checks the options and replaces the policy.
    ///
    /// Connected clients stay connected; their next publish or subscribe meets the new rules.
    ///
    /// # Errors
    ///
    /// The first fault; then the old policy stays active.
    pub fn replace(&self, options: Options) -> Result<(), OptionsError> {
        self.0.policy.store(Arc::new(Policy::new(options)?));
        Ok(())
    }

    /// Authenticates a client.
    ///
    /// Without a user name it needs `allow_anonymous`. With one it must be a configured user with its password; without
    /// configured users, names mean nothing and `allow_anonymous` decides. An unknown name takes as long as a wrong
    /// password, so the delay does not reveal which it was.
    ///
    /// Waits at most two seconds for a place among the verifications that run: hashes are made to be slow and large. A
    /// password that was verified minutes ago needs none.
    ///
    /// # Errors
    ///
    /// [`Refused::Denied`] with [`Denied::Anonymous`], [`Denied::Credentials`] or [`Denied::ClientId`];
    /// [`Refused::Full`] if no place became free: the client may try again.
    pub async fn authenticate(&self, credentials: Credentials<'_>) -> Result<(), Refused> {
        let policy = self.0.policy.load_full();
        let username = credentials.username;
        if username.is_empty() || policy.users.0.is_empty() {
            return if policy.allow_anonymous { Ok(()) } else { Err(Refused::Denied(Denied::Anonymous)) };
        }
        let wrong = || Refused::Denied(Denied::Credentials);
        let (user, known) = policy.users.find(username).ok_or_else(wrong)?;
        let password = credentials.password.cloned().unwrap_or_else(|| Password::new([]));
        let source = (credentials.origin, credentials.address);
        match self.0.verifier.verify(source, username, (Arc::clone(&user.hash), known), password).await {
            Ok(true) if user.may_have(credentials.client_id) => Ok(()),
            Ok(true) => Err(Refused::Denied(Denied::ClientId { client_id: credentials.client_id.to_owned() })),
            Ok(false) => Err(wrong()),
            Err(Overloaded) => Err(Refused::Full {
                what: "the queue of password verifications",
                limit: "what this machine verifies in two seconds".to_owned(),
            }),
        }
    }

    /// Whether a client may publish to a topic name of the broker, that is, with the mountpoint.
    ///
    /// `username` is empty if it has none.
    pub fn allows_publish(&self, client_id: &str, username: &str, topic: &str) -> bool {
        self.0.policy.load().allows(&Client { client_id, username }, Action::Publish, topic)
    }

    /// Whether a client may subscribe to a topic filter of the broker, that is, with the mountpoint. Of a shared
    /// subscription (`$share/group/filter`) the filter is checked: a rule is about messages, and a member of a group
    /// may get any message of its filter.
    ///
    /// A deny rule matches if its filter and the requested one have a name in common; an allow rule matches if its
    /// filter covers the requested one. Otherwise a client could request more than is denied (`#` where `secret/#` is
    /// denied), or more than is allowed, and get the forbidden part with it.
    ///
    /// `username` is empty if it has none. A malformed filter is not allowed.
    pub fn allows_subscribe(&self, client_id: &str, username: &str, filter: &str) -> bool {
        let Ok(parsed) = crate::topic::parse_filter(filter) else { return false };
        self.0.policy.load().allows(&Client { client_id, username }, Action::Subscribe, parsed.filter)
    }
}

impl Policy {
    fn new(options: Options) -> Result<Self, OptionsError> {
        let rules = options
            .rules
            .iter()
            .enumerate()
            .map(|(index, rule)| CheckedRule::new(rule).map_err(|fault| OptionsError::Rule { rule: index, fault }));
        Ok(Self {
            allow_anonymous: options.allow_anonymous,
            rules: rules.collect::<Result<_, _>>()?,
            users: Users::new(options.users)?,
            default: options.default,
        })
    }

    fn allows(&self, client: &Client<'_>, action: Action, topic: &str) -> bool {
        let decisive = self.rules.iter().find(|rule| rule.matches(client, action, topic));
        decisive.map_or(self.default, CheckedRule::effect) == Effect::Allow
    }
}

/// A user whose hash and patterns are parsed.
struct CheckedUser {
    username: String,
    hash: Arc<PasswordHash>,
    client_ids: Option<Vec<Pattern>>,
}

impl CheckedUser {
    fn new(user: usize, options: User) -> Result<Self, OptionsError> {
        let User { username, password_hash, client_ids } = options;
        if username.is_empty() {
            return Err(OptionsError::UsernameEmpty { user });
        }
        let hash = match PasswordHash::parse(password_hash.expose_secret()) {
            Ok(hash) => Arc::new(hash),
            Err(fault) => return Err(OptionsError::Hash { user, username, fault }),
        };
        match client_ids.map(|patterns| parse_client_ids(&patterns, &username)).transpose() {
            Ok(client_ids) => Ok(Self { username, hash, client_ids }),
            Err(fault) => Err(OptionsError::ClientIds { user, username, fault }),
        }
    }

    fn may_have(&self, client_id: &str) -> bool {
        self.client_ids.as_ref().is_none_or(|patterns| patterns.iter().any(|pattern| pattern.matches(client_id)))
    }
}

/// Placeholder in [`User::client_ids`].
const USERNAME: &str = "${username}";

/// Checks one pattern of [`User::client_ids`].
///
/// # Errors
///
/// [`ClientIdsFault::Placeholder`].
pub(crate) fn check_client_id(pattern: &str) -> Result<(), ClientIdsFault> {
    if pattern.split(USERNAME).any(|part| part.contains("${")) {
        return Err(ClientIdsFault::Placeholder { pattern: pattern.to_owned() });
    }
    Ok(())
}

fn parse_client_ids(patterns: &[String], username: &str) -> Result<Vec<Pattern>, ClientIdsFault> {
    if patterns.is_empty() {
        return Err(ClientIdsFault::Empty);
    }
    let parse = |pattern: &String| {
        check_client_id(pattern)?;
        // A star in a user's name is no wildcard.
        Ok(Pattern::with(pattern, |part| part.replace(USERNAME, username).into()))
    };
    patterns.iter().map(parse).collect()
}

/// Users, sorted by name.
struct Users(Vec<CheckedUser>);

impl Users {
    fn new(users: Vec<User>) -> Result<Self, OptionsError> {
        let mut checked: Vec<CheckedUser> = Vec::with_capacity(users.len());
        for (index, user) in users.into_iter().enumerate() {
            let user = CheckedUser::new(index, user)?;
            match checked.binary_search_by(|known| known.username.cmp(&user.username)) {
                Ok(_) => return Err(OptionsError::UsernameTwice { user: index, username: user.username }),
                Err(place) => checked.insert(place, user),
            }
        }
        Ok(Self(checked))
    }

    /// The user whose password is verified, and whether it is the one called `username`.
    ///
    /// For an unknown name it is another user, always the same one for the same name: its verification costs what a
    /// user's does, also when hashes differ in cost. `None` without users.
    fn find(&self, username: &str) -> Option<(&CheckedUser, bool)> {
        match self.0.binary_search_by(|known| known.username.as_str().cmp(username)) {
            Ok(place) => Some((&self.0[place], true)),
            Err(place) => Some((self.0.get(place).or(self.0.last())?, false)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hash of "secret", with minimal cost.
    const HASH: &str = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$3+oP1qKlyJ4YtBGvnjCIBA0OdNqSpNyvOpZGE0rShXQ";

    fn options(allow_anonymous: bool, users: &[&str], rules: Vec<Rule>) -> Options {
        let users = users
            .iter()
            .map(|name| User {
                username: (*name).to_owned(),
                password_hash: hash::tests::hash("secret").into(),
                client_ids: None,
            })
            .collect();
        Options { allow_anonymous, users, rules, default: Effect::Allow }
    }

    fn rule(effect: Effect, action: Action, clients: &[&str], topics: &[&str]) -> Rule {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Rule { effect, action, clients: owned(clients), usernames: None, topics: owned(topics) }
    }

    fn credentials<'a>(client_id: &'a str, username: &'a str, password: Option<&'a Password>) -> Credentials<'a> {
        let address = Some(std::net::Ipv4Addr::LOCALHOST.into());
        Credentials { client_id, username, password, origin: Origin::Device, address }
    }

    async fn authenticate(auth: &Auth, username: &str, password: Option<&str>) -> Result<(), Denied> {
        let password = password.map(|password| Password::new(password.as_bytes()));
        auth.authenticate(credentials("c", username, password.as_ref())).await.map_err(denied)
    }

    fn denied(refused: Refused) -> Denied {
        let Refused::Denied(denied) = refused else { panic!("{refused}") };
        denied
    }

    /// A user that is bound to client ids is refused with any other, and a star in its own name is no wildcard.
    #[tokio::test]
    async fn a_user_has_its_own_client_ids_only() {
        let mut bound = options(false, &["u", "v*"], vec![]);
        let ids = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect());
        bound.users[0].client_ids = ids(&["${username}", "gate-*-${username}"]);
        bound.users[1].client_ids = ids(&["${username}"]);
        let auth = Auth::new(bound.clone()).unwrap();
        let password = Password::new(*b"secret");
        for (username, client_id, expected) in [
            ("u", "u", true),
            ("u", "gate-7-u", true),
            ("u", "gate-7-v", false),
            ("u", "v*", false),
            ("u", "${username}", false),
            ("u", "", false),
            ("v*", "v*", true),
            ("v*", "v-other", false),
        ] {
            let result = auth.authenticate(credentials(client_id, username, Some(&password))).await.map_err(denied);
            let denial = Denied::ClientId { client_id: client_id.to_owned() };
            assert_eq!(result, if expected { Ok(()) } else { Err(denial) }, "{username} as {client_id}");
        }
        for (patterns, message) in [
            (&[][..], "the list is empty, and at least one pattern is required"),
            (&["${clientid}"], r#""${clientid}" has another placeholder than "${username}""#),
        ] {
            bound.users[1].client_ids = ids(patterns);
            let error = Auth::new(bound.clone()).unwrap_err();
            let chain = format!("{error}: {}", std::error::Error::source(&error).unwrap());
            assert_eq!(chain, format!(r#"users[1].client_ids of "v*": {message}"#));
        }
    }

    /// A verified password is not verified again, and a replaced one is not accepted from memory.
    #[tokio::test]
    async fn a_success_is_remembered_until_the_password_changes() {
        let auth = Auth::new(options(false, &["u"], vec![])).unwrap();
        for _ in 0..3 {
            assert_eq!(authenticate(&auth, "u", Some("secret")).await, Ok(()));
            assert_eq!(authenticate(&auth, "u", Some("wrong")).await, Err(Denied::Credentials));
        }
        let counters = auth.counters();
        assert_eq!([&counters.verified, &counters.cached, &counters.wrong].map(|counter| counter.get()), [1, 2, 3]);

        let mut changed = options(false, &["u"], vec![]);
        changed.users[0].password_hash = hash::tests::hash("another").into();
        auth.replace(changed).unwrap();
        assert_eq!(authenticate(&auth, "u", Some("secret")).await, Err(Denied::Credentials));
        auth.replace(options(false, &["v"], vec![])).unwrap();
        assert_eq!(authenticate(&auth, "u", Some("secret")).await, Err(Denied::Credentials));
    }

    #[test]
    fn what_no_rule_matches_is_decided_by_the_default() {
        for (default, expected) in [(Effect::Allow, true), (Effect::Deny, false)] {
            let rules = vec![rule(Effect::Allow, Action::All, &["*"], &["d/${clientid}/#"])];
            let auth = Auth::new(Options { default, ..options(true, &[], rules) }).unwrap();
            assert!(auth.allows_publish("a", "", "d/a/x") && auth.allows_subscribe("a", "", "d/a/#"));
            for filter in ["#", "d/b/x", "d/#", "$SYS/#"] {
                assert_eq!(auth.allows_subscribe("a", "", filter), expected, "{filter}");
            }
            assert_eq!(auth.allows_publish("a", "", "e"), expected);
        }
    }

    #[tokio::test]
    async fn users_need_their_password_and_anonymous_clients_permission() {
        let auth = Auth::new(options(false, &["u", "v"], vec![])).unwrap();
        assert_eq!(authenticate(&auth, "u", Some("secret")).await, Ok(()));
        assert_eq!(authenticate(&auth, "u", Some("Secret")).await, Err(Denied::Credentials));
        assert_eq!(authenticate(&auth, "u", None).await, Err(Denied::Credentials));
        for unknown in ["a", "uu", "z"] {
            assert_eq!(authenticate(&auth, unknown, Some("secret")).await, Err(Denied::Credentials));
        }
        assert_eq!(authenticate(&auth, "", None).await, Err(Denied::Anonymous));

        auth.replace(options(true, &["u"], vec![])).unwrap();
        assert_eq!(authenticate(&auth, "", None).await, Ok(()));
        assert_eq!(authenticate(&auth, "w", Some("secret")).await, Err(Denied::Credentials));
    }

    #[tokio::test]
    async fn without_users_names_are_ignored() {
        let auth = Auth::new(options(true, &[], vec![])).unwrap();
        assert_eq!(authenticate(&auth, "any", Some("x")).await, Ok(()));
        auth.replace(options(false, &[], vec![])).unwrap();
        assert_eq!(authenticate(&auth, "any", Some("x")).await, Err(Denied::Anonymous));
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let auth = Auth::new(options(
            true,
            &[],
            vec![
                rule(Effect::Allow, Action::Publish, &["admin-*"], &["$SYS/#"]),
                rule(Effect::Deny, Action::Publish, &["*"], &["$SYS/#"]),
                rule(Effect::Allow, Action::Subscribe, &["*"], &["d/${clientid}/#"]),
                rule(Effect::Deny, Action::Subscribe, &["*"], &["d/#"]),
            ],
        ))
        .unwrap();
        assert!(auth.allows_publish("admin-1", "", "$SYS/x"));
        assert!(!auth.allows_publish("admi", "", "$SYS/x"));
        assert!(auth.allows_publish("a", "", "d/b/x"));
        assert!(auth.allows_subscribe("a", "", "d/a/#"));
        assert!(auth.allows_subscribe("a", "", "$share/g/d/a/x"));
        assert!(auth.allows_subscribe("a", "", "$SYS/#"));
        for filter in ["d/b/x", "d/+/x", "#", "+/a/x", "$share/g/d/b/x", "$share/g", ""] {
            assert!(!auth.allows_subscribe("a", "", filter), "{filter}");
        }
    }

    #[test]
    fn a_fault_names_its_index_and_never_the_hash() {
        let mut bad = options(true, &["u", "v"], vec![]);
        bad.users[1].password_hash = HASH.replace("argon2id", "argon2i").into();
        let error = Auth::new(bad).unwrap_err();
        let chain = format!("{error}: {}", std::error::Error::source(&error).unwrap());
        assert_eq!(chain, r#"users[1].password_hash of "v": argon2id is expected, and it is argon2i"#);

        let error = Auth::new(options(true, &["u", "u"], vec![])).unwrap_err();
        assert_eq!(error.to_string(), r#"users[1]: there is a user "u" already"#);
        assert!(Auth::new(options(true, &[""], vec![])).is_err());
        assert!(!format!("{:?}", options(true, &["u"], vec![])).contains("argon2id$"));
        assert_eq!(format!("{:?}", Password::new(*b"secret")), "Password(…)");
    }
}
