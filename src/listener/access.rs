//! Access control by address: ordered allow and deny rules, and a deny list.
//!
//! Pure: the configuration reads the file of the list. An IPv4 peer of a dual-stack socket, whose address is
//! written `::ffff:10.0.0.1` there, is an IPv4 peer.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

/// A network, or one address. A network of IPv4-mapped IPv6 addresses is the IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

/// The text is not a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedNetwork {
    /// Neither an address nor a network.
    #[error("is not an address or a network such as \"10.1.0.0/16\" or \"2001:db8::/32\"")]
    Form,
    /// An address with bits behind the prefix: whether the address or the network is meant is ambiguous.
    #[error("has bits behind its prefix; expected the network \"{network}\", or the address alone")]
    HostBits {
        /// The network that contains it.
        network: Network,
    },
}

impl Network {
    /// Whether the address is in the network.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }

    /// First and last address.
    fn range(&self) -> Range {
        match self.0 {
            IpNet::V4(net) => Range::V4(net.network().to_bits()..=net.broadcast().to_bits()),
            IpNet::V6(net) => Range::V6(net.network().to_bits()..=net.broadcast().to_bits()),
        }
    }
}

enum Range {
    V4(RangeInclusive<u32>),
    V6(RangeInclusive<u128>),
}

impl FromStr for Network {
    type Err = MalformedNetwork;

    fn from_str(text: &str) -> Result<Self, MalformedNetwork> {
        let written: IpNet = match text.contains('/') {
            true => text.parse().map_err(|_| MalformedNetwork::Form)?,
            false => IpNet::from(text.parse::<IpAddr>().map_err(|_| MalformedNetwork::Form)?),
        };
        let network = canonical(written.trunc());
        match written.addr() == written.network() {
            true => Ok(Self(network)),
            false => Err(MalformedNetwork::HostBits { network: Self(network) }),
        }
    }
}

/// The IPv4 network that a network of mapped addresses means.
fn canonical(network: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    if let IpNet::V6(mapped) = network
        && let Some(address) = mapped.network().to_ipv4_mapped()
        && let Some(prefix) = mapped.prefix_len().checked_sub(MAPPED_BITS)
        && let Ok(network) = Ipv4Net::new(address, prefix)
    {
        return IpNet::V4(network);
    }
    network
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.prefix_len() == self.0.max_prefix_len() {
            true => fmt::Display::fmt(&self.0.addr(), f),
            false => fmt::Display::fmt(&self.0, f),
        }
    }
}

/// The decision about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It may connect.
    Allow,
    /// It may not.
    Deny,
}

/// An access rule: `deny 10.1.0.0/16`, `allow all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The decision about matching addresses.
    pub effect: Effect,
    /// The matching addresses; `None` is all of IPv4 and IPv6.
    pub network: Option<Network>,
}

/// The text is not a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedRule {
    /// Not two words with a known first one.
    #[error("is not a rule such as \"deny 10.1.0.0/16\" or \"allow all\"")]
    Form,
    /// The network is malformed.
    #[error(transparent)]
    Network(#[from] MalformedNetwork),
}

impl FromStr for Rule {
    type Err = MalformedRule;

    fn from_str(text: &str) -> Result<Self, MalformedRule> {
        let mut words = text.split_ascii_whitespace();
        let (Some(effect), Some(addresses), None) = (words.next(), words.next(), words.next()) else {
            return Err(MalformedRule::Form);
        };
        let effect = match effect {
            "allow" => Effect::Allow,
            "deny" => Effect::Deny,
            _ => return Err(MalformedRule::Form),
        };
        let network = match addresses {
            "all" => None,
            network => Some(network.parse()?),
        };
        Ok(Self { effect, network })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.effect {
            Effect::Allow => "allow ",
            Effect::Deny => "deny ",
        })?;
        match self.network {
            Some(network) => network.fmt(f),
            None => f.write_str("all"),
        }
    }
}

/// A set of networks with binary search.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Networks {
    /// Sorted; ranges neither touch nor overlap.
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

// Without the networks: there may be a hundred thousand.
impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Networks").field("v4", &self.v4.len()).field("v6", &self.v6.len()).finish()
    }
}

impl Networks {
    /// Whether the address is in one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => find(&self.v4, address.to_bits()),
            IpAddr::V6(address) => find(&self.v6, address.to_bits()),
        }
    }
}

impl FromIterator<Network> for Networks {
    fn from_iter<I: IntoIterator<Item = Network>>(networks: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match network.range() {
                Range::V4(range) => v4.push(range.into_inner()),
                Range::V6(range) => v6.push(range.into_inner()),
            }
        }
        Self { v4: merge(v4, |last| last.checked_add(1)), v6: merge(v6, |last| last.checked_add(1)) }
    }
}

/// Sorts ranges and merges those that touch or overlap.
fn merge<T: Ord + Copy>(mut ranges: Vec<(T, T)>, next: impl Fn(T) -> Option<T>) -> Vec<(T, T)> {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            // Without a successor of its last number, no range can begin behind this one.
            Some(before) if next(before.1).is_none_or(|next| first <= next) => before.1 = before.1.max(last),
            Some(_) | None => merged.push((first, last)),
        }
    }
    merged.shrink_to_fit();
    merged
}

fn find<T: Ord + Copy>(ranges: &[(T, T)], wanted: T) -> bool {
    let behind = ranges.partition_point(|(first, _)| *first <= wanted);
    behind.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, last)| wanted <= *last)
}

/// A malformed line of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// From 1.
    pub line: usize,
    /// The text of the line.
    pub found: String,
    /// The error.
    pub why: MalformedNetwork,
}

impl Networks {
    /// Parses a list with one address or network a line. `#` begins a comment; empty lines are ignored.
    ///
    /// # Errors
    ///
    /// The malformed lines, at least one and at most `bad_max`, which is `1..`.
    pub fn parse_list(text: &str, bad_max: usize) -> Result<Self, Vec<BadLine>> {
        let mut bad = Vec::new();
        let lines = text.lines().enumerate().filter_map(|(index, line)| {
            let found = line.split_once('#').map_or(line, |(before, _)| before).trim();
            (!found.is_empty()).then_some((index + 1, found))
        });
        let networks: Self = lines
            .map_while(|(line, found)| match found.parse::<Network>() {
                Ok(network) => Some(Some(network)),
                Err(why) => {
                    bad.push(BadLine { line, found: found.to_owned(), why });
                    (bad.len() < bad_max).then_some(None)
                }
            })
            .flatten()
            .collect();
        if bad.is_empty() { Ok(networks) } else { Err(bad) }
    }
}

/// The access control of a listener; cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The deny list; it precedes the rules.
    pub denied: Arc<Networks>,
    /// In order: the first match decides. Addresses without a match may connect.
    pub rules: Arc<[Rule]>,
}

impl Access {
    /// The decision about this address.
    pub fn decide(&self, address: IpAddr) -> Effect {
        if self.denied.contains(address) {
            return Effect::Deny;
        }
        let fits = |rule: &&Rule| rule.network.is_none_or(|network| network.contains(address));
        self.rules.iter().find(fits).map_or(Effect::Allow, |rule| rule.effect)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use proptest::prelude::*;

    fn access(rules: &[&str], denied: &str) -> Access {
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        Access { rules, denied: Arc::new(Networks::parse_list(denied, 1).unwrap()) }
    }

    fn allows(access: &Access, address: &str) -> bool {
        access.decide(address.parse().unwrap()) == Effect::Allow
    }

    /// The first match decides; addresses without a match may connect.
    #[test]
    fn the_first_rule_that_fits_decides() {
        let access = access(&["allow 10.1.2.3", "deny 10.1.0.0/16", "deny 2001:db8::/32", "allow all", "deny all"], "");
        for (address, allowed) in [
            ("10.1.2.3", true),
            ("10.1.2.4", false),
            ("10.2.0.0", true),
            ("::ffff:10.1.2.3", true),
            ("::ffff:10.1.2.4", false),
            ("2001:db8::1", false),
            ("2001:db9::1", true),
        ] {
            assert_eq!(allows(&access, address), allowed, "{address}");
        }
        assert!(allows(&Access::default(), "10.1.2.3"));
    }

    /// `all` is both families; `0.0.0.0/0` and `::/0` are one each.
    #[test]
    fn families_are_kept_apart() {
        let v4 = access(&["deny 0.0.0.0/0"], "");
        assert!(!allows(&v4, "1.2.3.4") && !allows(&v4, "::ffff:1.2.3.4") && allows(&v4, "::1"));
        let v6 = access(&["deny ::/0"], "");
        assert!(allows(&v6, "1.2.3.4") && allows(&v6, "::ffff:1.2.3.4") && !allows(&v6, "::1"));
        let all = access(&["deny all"], "");
        assert!(!allows(&all, "1.2.3.4") && !allows(&all, "::1"));
        let mapped = access(&["deny ::ffff:10.0.0.0/104"], "");
        assert!(!allows(&mapped, "10.9.9.9") && !allows(&mapped, "::ffff:10.9.9.9") && allows(&mapped, "11.0.0.0"));
    }

    /// The deny list precedes the rules. A line may end in a comment, and in CR LF.
    #[test]
    fn a_list_denies() {
        let access = access(&["allow all"], "# scanners\r\n10.0.0.1 # one\r\n\r\n  2001:db8::/32\n192.0.2.0/24");
        for address in ["10.0.0.1", "::ffff:10.0.0.1", "2001:db8:1::1", "192.0.2.255"] {
            assert!(!allows(&access, address), "{address}");
        }
        for address in ["10.0.0.2", "2001:db9::", "192.0.3.0"] {
            assert!(allows(&access, address), "{address}");
        }
    }

    /// Each malformed line is reported with its number, up to a bound.
    #[test]
    fn bad_lines_have_numbers() {
        let text = "10.0.0.1\nlocalhost # here\n10.0.0.1/8\n1.2.3.4/33\n";
        let malformed = |bad_max| Networks::parse_list(text, bad_max).unwrap_err();
        let lines: Vec<_> = malformed(9).into_iter().map(|bad| (bad.line, bad.found, bad.why.to_string())).collect();
        let form = "is not an address or a network such as \"10.1.0.0/16\" or \"2001:db8::/32\"";
        let bits = "has bits behind its prefix; expected the network \"10.0.0.0/8\", or the address alone";
        let line = |line, found: &str, why: &str| (line, found.to_owned(), why.to_owned());
        assert_eq!(lines, [line(2, "localhost", form), line(3, "10.0.0.1/8", bits), line(4, "1.2.3.4/33", form)]);
        assert_eq!(malformed(2).len(), 2);
    }

    /// The printed form is parsed back; malformed rules are refused.
    #[test]
    fn rules_have_a_written_form() {
        for text in ["allow all", "deny 10.1.0.0/16", "allow 10.1.2.3", "deny 2001:db8::/32", "deny ::1"] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
        assert_eq!(" deny\t10.1.2.3/32 ".parse::<Rule>().unwrap().to_string(), "deny 10.1.2.3");
        for text in ["", "deny", "deny all all", "Deny all", "reject all", "10.0.0.0/8"] {
            assert_eq!(text.parse::<Rule>(), Err(MalformedRule::Form), "{text:?}");
        }
        for text in ["deny any", "deny 10.1", "deny 10.1.0.0/", "deny 10.1.0.0/-1", "deny /8", "deny fe80::1%eth0"] {
            assert_eq!(text.parse::<Rule>(), Err(MalformedRule::Network(MalformedNetwork::Form)), "{text:?}");
        }
    }

    /// Networks of few neighbouring addresses, so that they touch and overlap.
    fn networks() -> impl Strategy<Value = Vec<Network>> {
        let network = (any::<bool>(), 0u8..3, 0u8..=16, any::<u16>()).prop_map(|(v6, high, bits, low)| {
            // The last address is among them.
            let high = if high == 2 { 255 } else { high };
            let net = match v6 {
                false => IpNet::new(IpAddr::V4(v4(high, low)), 16 + bits),
                true => IpNet::new(IpAddr::V6(v6_of(high, low)), 112 + bits),
            };
            Network(net.unwrap().trunc())
        });
        prop::collection::vec(network, 0..40)
    }

    fn v4(high: u8, low: u16) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::from(high) << 24 | if high == 255 { 0xff_0000 } else { 0 } | u32::from(low))
    }

    fn v6_of(high: u8, low: u16) -> Ipv6Addr {
        let high = if high == 255 { u128::MAX << 16 } else { u128::from(high) << 120 };
        Ipv6Addr::from_bits(high | u128::from(low))
    }

    proptest! {
        /// The set agrees with a linear search of the networks for each address.
        #[test]
        fn sets_agree_with_asking_each(networks in networks(), high in 0u8..3, low in any::<u16>()) {
            let set: Networks = networks.iter().copied().collect();
            let high = if high == 2 { 255 } else { high };
            let edges = networks.iter().flat_map(|network| [network.0.network(), network.0.broadcast()]);
            let others = [IpAddr::V4(v4(high, low)), IpAddr::V6(v6_of(high, low))];
            for address in edges.chain(others) {
                let expected = networks.iter().any(|network| network.contains(address));
                prop_assert_eq!(set.contains(address), expected, "{}", address);
            }
        }

        /// No text panics, and the printed form of a rule is parsed back.
        #[test]
        fn no_text_panics(text in "(allow|deny)? ?[0-9a-f:./ #]{0,24}", any in any::<String>()) {
            for text in [text, any] {
                if let Ok(rule) = text.parse::<Rule>() {
                    prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
                }
                let _set_or_faults = Networks::parse_list(&text, 3);
            }
        }
    }
}
