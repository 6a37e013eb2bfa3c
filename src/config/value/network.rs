//! Who may connect: addresses, networks, rules; who may send PROXY headers.

use super::ValueType;
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::Item;
use crate::config::schema::listener::proxy;
use crate::config::value::Located;
use crate::listener::access::{MalformedRule, Network, Rule};
use crate::listener::proxy::Options;

/// An address or a network.
#[derive(Debug)]
pub(in crate::config) struct NetworkForm;

impl ValueType for NetworkForm {
    type Value = Network;

    fn expected(&self) -> String {
        "an address or a network such as \"10.1.0.0/16\" or \"2001:db8::/32\"".to_owned()
    }

    fn name(&self) -> String {
        "IP address or network".to_owned()
    }

    fn show(&self, value: &Network) -> String {
        format!("\"{value}\"")
    }

    fn read(&self, item: &Item<'_>) -> Result<Network, ErrorReported> {
        let text = item.text(&self.expected())?;
        let why = |why| item.fault(Fault::Network { found: text.to_owned(), why: MalformedRule::Network(why) });
        text.parse().map_err(why)
    }
}

/// `allow` or `deny`, and whom.
#[derive(Debug)]
pub(in crate::config) struct AccessForm;

impl ValueType for AccessForm {
    type Value = Rule;

    fn expected(&self) -> String {
        "a rule such as \"deny 10.1.0.0/16\" or \"allow all\"".to_owned()
    }

    fn name(&self) -> String {
        "rule".to_owned()
    }

    fn range(&self) -> String {
        "`allow` or `deny`, and an IP address, a network or `all`".to_owned()
    }

    fn show(&self, value: &Rule) -> String {
        format!("\"{value}\"")
    }

    fn read(&self, item: &Item<'_>) -> Result<Rule, ErrorReported> {
        let text = item.text(&self.expected())?;
        text.parse().map_err(|why| item.fault(Fault::Network { found: text.to_owned(), why }))
    }
}

/// Yes, no, or a table that says more.
#[derive(Debug)]
pub(in crate::config) struct ProxyForm;

impl ValueType for ProxyForm {
    type Value = Option<Options>;

    fn expected(&self) -> String {
        "true, false or { trusted = [\"10.0.0.0/8\"] }".to_owned()
    }

    fn name(&self) -> String {
        "boolean or table".to_owned()
    }

    fn range(&self) -> String {
        format!("see {}", proxy::SECTION.title)
    }

    fn show(&self, value: &Option<Options>) -> String {
        value.is_some().to_string()
    }

    fn read(&self, item: &Item<'_>) -> Result<Option<Options>, ErrorReported> {
        if let Some(wanted) = item.value().as_bool() {
            return Ok(wanted.then(|| Options { trusted: None, timeout: proxy::TIMEOUT.presence.0() }));
        }
        if !item.value().is_table() {
            return Err(item.wrong_type(self.expected()));
        }
        let table = item.section(&proxy::SECTION)?;
        let (trusted, timeout) = (table.get(&proxy::TRUSTED), table.get(&proxy::TIMEOUT));
        let values = |list: Vec<Located<Network>>| list.into_iter().map(|placed| placed.value).collect();
        Ok(Some(Options { trusted: trusted?.map(values), timeout: timeout? }))
    }
}
