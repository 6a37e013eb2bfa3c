use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

/// What [`Options::from_args`] understands.
pub(crate) const USAGE: &str = "\
usage: PROGRAM [OPTION ...]
  --listen ADDRESS:PORT   where the gateway calls (`url` of the handler in its configuration); port 0 takes a free one
                          [127.0.0.1:9001]
  --adapter URL           where the gateway is called (`bind` of `[adapter]` in its configuration)
                          [http://127.0.0.1:9100]
  --setting NAME=VALUE    what a guest finds in its `settings` table; may be repeated. Others on this machine can see it
                          in the list of processes
  --connections-max N     connections that are remembered; over it the one that was quiet longest is forgotten [100000]";

/// How a handler is served.
#[derive(Clone)]
pub struct Options {
    /// `--listen`: where the gateway calls.
    pub listen: SocketAddr,
    /// `--adapter`: the url of the gateway's adapter, `http` only.
    pub adapter: String,
    /// `--setting`: what `Adapter::setting` finds. May hold secrets, so the type has no `Debug`.
    pub settings: BTreeMap<String, String>,
    /// `--connections-max`, from 1: so many connections are remembered. A gateway that was restarted never says that its
    /// connections have ended; this bounds what they leave behind.
    pub connections_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9001)),
            adapter: "http://127.0.0.1:9100".to_owned(),
            settings: BTreeMap::new(),
            connections_max: 100_000,
        }
    }
}

/// An argument that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    argument: String,
    expected: &'static str,
    found: Option<String>,
}

impl fmt::Display for Wrong {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { argument, expected, found } = self;
        match found {
            Some(found) => write!(out, "{argument}: expected {expected}, found {found:?}"),
            None => write!(out, "{argument}: expected {expected}"),
        }
    }
}

impl std::error::Error for Wrong {}

impl Options {
    /// Reads a program's arguments, its own name not among them.
    ///
    /// # Errors
    ///
    /// The first argument that is wrong. A setting's value is not repeated, since it may be a secret.
    pub fn from_args(args: impl IntoIterator<Item = String>) -> Result<Self, Wrong> {
        let mut options = Self::default();
        let mut args = args.into_iter();
        while let Some(argument) = args.next() {
            let wrong = |expected, found: Option<&str>| Wrong {
                argument: argument.clone(),
                expected,
                found: found.map(str::to_owned),
            };
            let expected = match argument.as_str() {
                "--listen" => "an address and a port",
                "--adapter" => "a url that begins with http://",
                "--setting" => "NAME=VALUE",
                "--connections-max" => "a number from 1",
                _ => return Err(wrong("--listen, --adapter, --setting or --connections-max", None)),
            };
            let value = args.next().ok_or_else(|| wrong(expected, None))?;
            match argument.as_str() {
                "--listen" => options.listen = value.parse().map_err(|_| wrong(expected, Some(&value)))?,
                "--adapter" if value.starts_with("http://") => options.adapter = value,
                "--setting" => {
                    let (name, value) = value.split_once('=').ok_or_else(|| wrong(expected, None))?;
                    options.settings.insert(name.to_owned(), value.to_owned());
                }
                "--connections-max" => {
                    let number = value.parse().ok().filter(|number| *number > 0);
                    options.connections_max = number.ok_or_else(|| wrong(expected, Some(&value)))?;
                }
                _ => return Err(wrong(expected, Some(&value))),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        Options::from_args(args.iter().map(|arg| (*arg).to_owned())).map_err(|wrong| wrong.to_string())
    }

    /// Each argument has its place, and a default.
    #[test]
    fn arguments() {
        let options =
            parse(&["--listen", "[::1]:0", "--setting", "a=b=c", "--setting", "d=", "--connections-max", "7"]);
        let options = options.unwrap();
        assert_eq!(options.listen.to_string(), "[::1]:0");
        assert_eq!(options.adapter, "http://127.0.0.1:9100");
        assert_eq!(options.settings, BTreeMap::from([("a".into(), "b=c".into()), ("d".into(), String::new())]));
        assert_eq!(options.connections_max, 7);
    }

    /// What is wrong is named, and a setting's value is not repeated.
    #[test]
    fn wrong_arguments() {
        for (args, words) in [
            (&["--listen", "9001"][..], "--listen: expected an address and a port, found \"9001\""),
            (&["--adapter", "https://x"], "--adapter: expected a url that begins with http://, found \"https://x\""),
            (&["--setting", "secret"], "--setting: expected NAME=VALUE"),
            (&["--connections-max", "0"], "--connections-max: expected a number from 1, found \"0\""),
            (&["--adapter"], "--adapter: expected a url that begins with http://"),
            (&["serve"], "serve: expected --listen, --adapter, --setting or --connections-max"),
        ] {
            assert_eq!(parse(args).err().as_deref(), Some(words));
        }
    }
}
