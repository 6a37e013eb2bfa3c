//! Retained messages: the last one of each topic that was published to be kept.
//!
//! Pure: `now` is an argument. Bounded in number and in bytes; what would go over a bound is not kept,
//! and the caller gets an error. A subscription's filter is answered page by page, so that a filter that
//! matches everything holds no lock for long and makes no long list.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Instant;

/// How many topics one page looks at, at most.
const PAGE_STEPS: usize = 256;

/// What one retained message costs beside its topic and payload, about: the entry and its properties.
const OVERHEAD_BYTES: usize = 512;

/// The bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Messages.
    pub(super) messages_max: usize,
    /// Bytes of all topics and payloads, with [`OVERHEAD_BYTES`] for each message.
    pub(super) bytes_max: usize,
}

/// The messages, by topic.
///
/// The key is the topic with U+0000 in the place of `/`: so the topics under one level lie together,
/// in the order of their levels, and a filter with wildcards can jump over what it cannot match.
#[derive(Debug)]
pub(super) struct Retained<V> {
    messages: BTreeMap<Box<str>, Entry<V>>,
    bytes: usize,
    limits: Limits,
}

#[derive(Debug)]
struct Entry<V> {
    message: V,
    bytes: usize,
    expires: Option<Instant>,
}

/// Where the next page begins.
#[derive(Clone, Debug)]
pub(super) struct Cursor(Box<str>);

/// What became of a message that was to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RetainOutcome {
    /// It is kept, and replaces the topic's last one.
    Yes,
    /// A bound is reached; the topic's last one is gone all the same, because it is out of date.
    Full,
}

impl<V> Retained<V> {
    pub(super) fn new(limits: Limits) -> Self {
        Self { messages: BTreeMap::new(), bytes: 0, limits }
    }

    /// How many messages are kept, expired ones that were not requested since among them.
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
        self.bytes = 0;
    }

    /// The message of a topic.
    pub(super) fn get(&self, topic: &str) -> Option<&V> {
        self.messages.get(&key(topic)).map(|entry| &entry.message)
    }

    /// All messages.
    pub(super) fn all(&self) -> impl Iterator<Item = &V> {
        self.messages.values().map(|entry| &entry.message)
    }

    /// Keeps a message of `payload_bytes`, until it expires.
    pub(super) fn set(
        &mut self,
        topic: &str,
        message: V,
        payload_bytes: usize,
        expires: Option<Instant>,
        now: Instant,
    ) -> RetainOutcome {
        self.remove(topic);
        let bytes = topic.len() + payload_bytes + OVERHEAD_BYTES;
        if !self.has_room(bytes) {
            self.drop_expired(now);
            if !self.has_room(bytes) {
                return RetainOutcome::Full;
            }
        }
        self.bytes += bytes;
        self.messages.insert(key(topic), Entry { message, bytes, expires });
        RetainOutcome::Yes
    }

    /// Forgets the message of a topic.
    pub(super) fn remove(&mut self, topic: &str) {
        if let Some(entry) = self.messages.remove(&key(topic)) {
            self.bytes -= entry.bytes;
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.messages.len() < self.limits.messages_max && self.bytes + bytes <= self.limits.bytes_max
    }

    fn drop_expired(&mut self, now: Instant) {
        let bytes = &mut self.bytes;
        self.messages.retain(|_, entry| {
            let live = entry.expires.is_none_or(|expires| now < expires);
            if !live {
                *bytes -= entry.bytes;
            }
            live
        });
    }

    /// Shows the messages that `filter` matches, in the order of their topics, beginning at `from`
    /// or at the first. Gives back where to go on, `None` at the end.
    pub(super) fn page<'a>(
        &'a self,
        filter: &str,
        from: Option<Cursor>,
        now: Instant,
        mut show: impl FnMut(&'a V, Option<Instant>),
    ) -> Option<Cursor> {
        let filter: Vec<&str> = filter.split('/').collect();
        let mut from = match from {
            Some(Cursor(from)) => from,
            None => {
                filter.iter().take_while(|level| !is_wildcard(level)).copied().collect::<Vec<_>>().join("\0").into()
            }
        };
        for _ in 0..PAGE_STEPS {
            let (key, entry) = self.messages.range::<str, _>((Bound::Included(&*from), Bound::Unbounded)).next()?;
            match compare(&filter, key) {
                Verdict::Matches => {
                    if entry.expires.is_none_or(|expires| now < expires) {
                        show(&entry.message, entry.expires);
                    }
                    from = format!("{key}\0").into();
                }
                Verdict::GoOn(next) => from = next,
                Verdict::Past => return None,
            }
        }
        Some(Cursor(from))
    }
}

/// What a key means for a filter.
enum Verdict {
    /// The filter matches it.
    Matches,
    /// It does not; the next key that it could match is this one or comes behind it.
    GoOn(Box<str>),
    /// It does not, nor any key behind it.
    Past,
}

fn compare(filter: &[&str], key: &str) -> Verdict {
    // How many bytes of the key the levels before the one at hand take, with their separators.
    let mut start = 0;
    for (depth, wanted) in filter.iter().enumerate() {
        if start > key.len() {
            // The key has ended: only "#" takes that for a match, and else the answer lies below it.
            return if *wanted == "#" { Verdict::Matches } else { Verdict::GoOn(format!("{key}\0").into()) };
        }
        let level = key[start..].split('\0').next().unwrap_or_default();
        let end = start + level.len();
        if depth == 0 && is_wildcard(wanted) && level.starts_with('$') {
            // MQTT 5.0 §4.7.2; behind all that begins with "$" comes "%".
            return Verdict::GoOn("%".into());
        }
        match *wanted {
            "#" => return Verdict::Matches,
            "+" => {}
            wanted if wanted == level => {}
            wanted if level < wanted => return Verdict::GoOn(format!("{}{wanted}", &key[..start]).into()),
            _ => return behind(key, start),
        }
        start = end + 1;
    }
    if start > key.len() { Verdict::Matches } else { behind(key, start) }
}

/// Behind all keys that begin with the levels that end before `start`.
fn behind(key: &str, start: usize) -> Verdict {
    match start.checked_sub(1) {
        // U+0001 is the first that can follow a level without being its separator.
        Some(end) => Verdict::GoOn(format!("{}\u{1}", &key[..end]).into()),
        None => Verdict::Past,
    }
}

fn is_wildcard(level: &str) -> bool {
    level == "+" || level == "#"
}

fn key(topic: &str) -> Box<str> {
    topic.replace('/', "\0").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic;
    use proptest::prelude::*;
    use std::time::Duration;

    const WIDE: Limits = Limits { messages_max: usize::MAX, bytes_max: usize::MAX };

    fn all(retained: &Retained<String>, filter: &str, now: Instant) -> Vec<String> {
        let mut found = Vec::new();
        let mut cursor = retained.page(filter, None, now, |message, _| found.push(message.clone()));
        while let Some(from) = cursor {
            cursor = retained.page(filter, Some(from), now, |message, _| found.push(message.clone()));
        }
        found
    }

    #[test]
    fn a_message_is_gone_when_it_has_expired() {
        let now = Instant::now();
        let mut retained = Retained::new(WIDE);
        retained.set("a", "a".to_owned(), 1, Some(now + Duration::from_secs(10)), now);
        assert_eq!(all(&retained, "a", now + Duration::from_millis(9_999)), ["a"]);
        assert_eq!(all(&retained, "a", now + Duration::from_secs(10)), [""; 0]);
    }

    #[test]
    fn a_full_store_makes_room_by_what_has_expired_and_else_keeps_no_more() {
        let now = Instant::now();
        let mut retained = Retained::new(Limits { messages_max: 2, bytes_max: 10_000 });
        let mut set = |topic: &str, bytes, expires| retained.set(topic, topic.to_owned(), bytes, expires, now);
        assert_eq!(set("a", 1, Some(now)), RetainOutcome::Yes);
        assert_eq!(set("b", 1, None), RetainOutcome::Yes);
        assert_eq!(set("c", 1, None), RetainOutcome::Yes);
        assert_eq!(set("d", 1, None), RetainOutcome::Full);
        assert_eq!(set("b", 1, None), RetainOutcome::Yes);
        assert_eq!(set("b", 10_000, None), RetainOutcome::Full);
        assert_eq!(all(&retained, "#", now), ["c"]);
        retained.remove("c");
        assert_eq!((retained.len(), retained.bytes), (0, 0));
    }

    /// A filter for one topic of each device does not look at the devices' other topics.
    #[test]
    fn wildcards_jump_over_what_they_cannot_match() {
        let now = Instant::now();
        let mut retained = Retained::new(WIDE);
        for device in 0..20 {
            for topic in 0..100 {
                retained.set(&format!("d/{device}/{topic:03}/x"), String::new(), 0, None, now);
            }
        }
        let mut found = 0;
        let next = retained.page("d/+/050/+", None, now, |_, _| found += 1);
        assert_eq!((found, next.is_none()), (20, true));
    }

    fn topic_name() -> impl Strategy<Value = String> {
        "(a|b|c|\\$s|)(/(a|b|c|)){0,3}".prop_filter("a name has a character", |name| !name.is_empty())
    }

    proptest! {
        /// The pages of a filter hold what comparing with every topic would find, each once, in order.
        #[test]
        fn pages_agree_with_comparing_every_topic(
            topics in prop::collection::vec(topic_name(), 0..60),
            filter in "(a|b|\\+|\\$s|)(/(a|b|\\+|)){0,3}(/#)?|#",
        ) {
            prop_assume!(!filter.is_empty());
            let now = Instant::now();
            let mut retained = Retained::new(WIDE);
            for topic in &topics {
                retained.set(topic, topic.clone(), 1, None, now);
            }
            let mut expected: Vec<String> = topics.clone();
            expected.retain(|name| topic::matches(&filter, name));
            expected.sort_by_key(|topic| key(topic));
            expected.dedup();
            prop_assert_eq!(all(&retained, &filter, now), expected);
        }
    }
}
