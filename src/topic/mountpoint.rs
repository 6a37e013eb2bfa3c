//! Mountpoint: the topic prefix that confines a device to its part of the topic tree.

use std::borrow::Cow;

use super::template::{Identity, Placeholder, Template, TemplateError, Unfit};
use super::{Malformed, SHARE, check_name, parse_filter};

const PLACEHOLDERS: &[Placeholder] = &[Placeholder::ClientId, Placeholder::Username, Placeholder::PeerHost];

/// Mountpoint of a listener as configured, with placeholders.
///
/// The prefix of every topic of a device. It ends with `/`: otherwise the device `a` with the mountpoint
/// `m-${clientid}` could publish to `b/x` in the name of the device `ab`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mountpoint(Template);

/// Invalid mountpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountpointError {
    /// Invalid placeholders.
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("{text:?} must end with \"/\"")]
    Open { text: String },
    /// It begins with `$`, the prefix of the broker's own topics and of shared subscriptions.
    #[error("{text:?} must not begin with \"$\"")]
    Dollar { text: String },
    /// It is not a prefix of topic names.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl Mountpoint {
    /// Parses a mountpoint; empty means none. It may use `${clientid}`, `${username}` and `${peerhost}`.
    ///
    /// # Errors
    ///
    /// Unknown placeholders, two of them in one level, a wildcard or U+0000, a leading `$`, no trailing `/`.
    pub fn parse(text: &str) -> Result<Self, MountpointError> {
        let template = Template::parse(text, PLACEHOLDERS)?;
        let shape = template.shape();
        if !shape.is_empty() {
            check_name(&shape).map_err(|malformed| Malformed { text: text.to_owned(), ..malformed })?;
            if shape.starts_with('$') {
                return Err(MountpointError::Dollar { text: text.to_owned() });
            }
            if !shape.ends_with('/') {
                return Err(MountpointError::Open { text: text.to_owned() });
            }
        }
        Ok(Self(template))
    }

    /// The mountpoint of one device.
    ///
    /// # Errors
    ///
    /// A value that could escape the mountpoint: empty, with `/`, `+`, `#` or U+0000, or with a leading `$` at the
    /// start of the topic. Such a device must be rejected; no mountpoint is safe for it.
    pub fn fill(&self, identity: &Identity<'_>) -> Result<Mount, Unfit> {
        Ok(Mount(self.0.fill(identity)?.into()))
    }
}

/// The mountpoint of one device: a prefix that ends with `/`, or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount(Box<str>);

impl Mount {
    /// The broker's topic name of the device's topic `name`.
    ///
    /// # Errors
    ///
    /// `name` is malformed, or too long or too deep with the mountpoint.
    pub fn name<'a>(&self, name: &'a str) -> Result<Cow<'a, str>, Malformed> {
        check_name(name)?;
        if self.0.is_empty() {
            return Ok(name.into());
        }
        let mounted = format!("{}{name}", self.0);
        check_name(&mounted)?;
        Ok(mounted.into())
    }

    /// The broker's topic filter of the device's filter `text`; the group of a shared subscription stays in front.
    ///
    /// # Errors
    ///
    /// `text` is malformed, or too long or too deep with the mountpoint.
    pub fn filter<'a>(&self, text: &'a str) -> Result<Cow<'a, str>, Malformed> {
        let parsed = parse_filter(text)?;
        if self.0.is_empty() {
            return Ok(text.into());
        }
        let mounted = match parsed.group {
            Some(group) => format!("{SHARE}/{group}/{}{}", self.0, parsed.filter),
            None => format!("{}{}", self.0, parsed.filter),
        };
        parse_filter(&mounted)?;
        Ok(mounted.into())
    }

    /// The device's topic of the broker's topic `name`; unchanged outside of the mountpoint.
    pub fn unmount<'a>(&self, name: &'a str) -> &'a str {
        name.strip_prefix(&*self.0).unwrap_or(name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{covers, matches};
    use super::*;
    use proptest::prelude::*;

    fn mount(template: &str, client_id: &str) -> Result<Mount, Unfit> {
        let identity = Identity { client_id, username: "u", peer_host: None };
        Mountpoint::parse(template).unwrap().fill(&identity)
    }

    #[test]
    fn a_mountpoint_goes_in_front_and_behind_the_group() {
        let mount = mount("t/${clientid}/", "a").unwrap();
        assert_eq!(mount.name("up").unwrap(), "t/a/up");
        assert_eq!(mount.filter("dn/#").unwrap(), "t/a/dn/#");
        assert_eq!(mount.filter("$share/g/dn/+").unwrap(), "$share/g/t/a/dn/+");
        assert_eq!(mount.unmount("t/a/dn/1"), "dn/1");
        assert_eq!(mount.unmount("elsewhere"), "elsewhere");
    }

    #[test]
    fn without_a_mountpoint_nothing_changes() {
        let none = mount("", "a").unwrap();
        assert_eq!(none, Mount::default());
        assert_eq!(none.name("up").unwrap(), "up");
        assert_eq!(none.filter("$share/g/#").unwrap(), "$share/g/#");
        assert_eq!(none.unmount("up"), "up");
    }

    #[test]
    fn an_escapable_mountpoint_is_rejected() {
        let error = |text: &str| Mountpoint::parse(text).unwrap_err().to_string();
        assert_eq!(error("m-${clientid}"), r#""m-${clientid}" must end with "/""#);
        assert_eq!(error("$SYS/"), r#""$SYS/" must not begin with "$""#);
        assert_eq!(error("a/+/"), r##"topic name "a/+/": "+" is allowed only in a topic filter"##);
        assert_eq!(
            error("${host}/"),
            r#""${host}" is not known here; there are ${clientid}, ${username} and ${peerhost}"#
        );
    }

    #[test]
    fn a_mounted_topic_keeps_to_the_limits() {
        let mount = mount("mount/", "a").unwrap();
        assert!(mount.name(&"x".repeat(65_530)).is_err());
        assert!(mount.name(&"x".repeat(65_529)).is_ok());
        assert!(mount.filter(&"/".repeat(127)).is_err());
    }

    proptest! {
        /// With any client id and any topic, a device reaches topics under its own mountpoint only.
        #[test]
        fn a_device_stays_in_its_mountpoint(client_id in "[ab/+#$\0]{0,3}", text in "[ab/+#$]{1,6}") {
            if let Ok(mount) = mount("t/${clientid}/", &client_id) {
                let all = format!("t/{client_id}/#");
                if let Ok(name) = mount.name(&text) {
                    prop_assert!(matches(&all, &name));
                    prop_assert_eq!(mount.unmount(&name), &text);
                }
                if let Ok(filter) = mount.filter(&text) {
                    prop_assert!(covers(&all, parse_filter(&filter).unwrap().filter));
                }
            }
        }

        /// Two devices never share a topic.
        #[test]
        fn two_devices_never_share_a_topic(
            (one, other) in ("[ab/$]{0,3}", "[ab/$]{0,3}"),
            (up, down) in ("[ab/]{1,5}", "[ab/]{1,5}"),
        ) {
            if let (Ok(a), Ok(b)) = (mount("${clientid}/", &one), mount("${clientid}/", &other))
                && one != other
            {
                prop_assert_ne!(a.name(&up).unwrap(), b.name(&down).unwrap());
            }
        }
    }
}
