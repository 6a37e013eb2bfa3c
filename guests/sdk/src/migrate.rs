//! A handler whose connections outlive a hot swap: its state as bytes, and back.
//!
//! A state that serde can write needs nothing but a number:
//!
//! ```
//! # use polygate_guest::{Adapter, ConnInfo, Handler, Migrate, Result};
//! # use serde::{Deserialize, Serialize};
//! #[derive(Serialize, Deserialize)]
//! struct Counter {
//!     count: u64,
//! }
//! # impl Handler for Counter {
//! #     fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> { Ok(Self { count: 0 }) }
//! #     fn on_received_bytes(&mut self, _: &mut dyn Adapter, _: &[u8]) -> Result { Ok(()) }
//! # }
//!
//! impl Migrate for Counter {
//!     const FORMAT: u32 = 1;
//! }
//!
//! polygate_guest::export!(Counter, migrate);
//! ```
//!
//! The bytes are [postcard](https://postcard.jamesmunns.com)'s: the fields in their order, without their names. So a
//! field that is added, removed or moved makes another format, which takes another number; [`Migrate::upgrade`] reads the older ones.
//! What a framer holds of an unfinished frame ([`crate::framing::Held`]) is state like the rest, and a swap in the middle of a
//! frame is not seen by the device.

use core::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connection::Connection;
use crate::{Adapter, ConnInfo, Error, Handler, Result};

/// The format of a state that could not be written; its bytes say why. No handler's own.
const UNWRITTEN: u32 = u32::MAX;

/// A handler whose connections go on in another version of itself.
pub trait Migrate: Handler + Serialize + DeserializeOwned {
    /// The number of the state's format: any but `u32::MAX`, and another one whenever the fields change.
    const FORMAT: u32;

    /// Reads the state of an older version, or of a newer one when the swap goes back.
    ///
    /// # Errors
    ///
    /// The format is not known, or the bytes are not of it: the connection then stays with the version it has.
    fn upgrade(format: u32, _bytes: &[u8]) -> Result<Self> {
        Err(Unknown { expected: Self::FORMAT, found: format }.into())
    }

    /// The state has arrived. What it does not carry, such as the settings of this version, is read here.
    ///
    /// # Errors
    ///
    /// As for [`Migrate::upgrade`].
    fn on_restored(&mut self, _adapter: &mut dyn Adapter, _info: &ConnInfo) -> Result {
        Ok(())
    }
}

/// The state of one connection, on its way from one version to the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// [`Migrate::FORMAT`] of the version that wrote it.
    pub format: u32,
    /// The state.
    pub bytes: Vec<u8>,
}

/// A state in a format that this version does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The format that it reads.
    pub expected: u32,
    /// The format that came.
    pub found: u32,
}

impl fmt::Display for Unknown {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "expected a state of format {}, found format {}", self.expected, self.found)
    }
}

impl core::error::Error for Unknown {}

/// Reads a state that [`Migrate`] wrote; for [`Migrate::upgrade`], with the type that the older version had.
///
/// # Errors
///
/// The bytes are not those of a `T`, or there are more of them.
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let (state, rest) = postcard::take_from_bytes(bytes)?;
    if rest.is_empty() {
        Ok(state)
    } else {
        Err(Error::new(format!("expected the state's end, found {} more bytes", rest.len())))
    }
}

impl<H: Migrate> Connection<H> {
    /// The state; none when there is no handler that has one.
    #[must_use]
    pub fn snapshot(&self) -> Option<State> {
        let written = postcard::to_allocvec(self.handler()?);
        Some(match written {
            Ok(bytes) => State { format: H::FORMAT, bytes },
            // To say nothing would have the connection begin anew; so it is the next version that refuses.
            Err(error) => State { format: UNWRITTEN, bytes: error.to_string().into_bytes() },
        })
    }

    /// Goes on from a state; without one it begins anew.
    ///
    /// # Errors
    ///
    /// Why this version cannot go on with it.
    pub fn restore(
        adapter: &mut dyn Adapter,
        info: &ConnInfo,
        state: Option<State>,
    ) -> core::result::Result<Self, String> {
        let restored = || {
            let mut handler = match state {
                None => return H::on_socket_created(adapter, info),
                Some(State { format: UNWRITTEN, bytes }) => {
                    let error = String::from_utf8(bytes).unwrap_or_default();
                    return Err(Error::new(format!("the version before could not write its state: {error}")));
                }
                Some(State { format, bytes }) if format == H::FORMAT => read::<H>(&bytes)?,
                Some(State { format, bytes }) => H::upgrade(format, &bytes)?,
            };
            handler.on_restored(adapter, info)?;
            Ok(handler)
        };
        restored().map(Self::with).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::scripted::Scripted;

    /// A state arrives as it left, and its settings are those of the new version.
    #[test]
    fn arrives() {
        let mut adapter = Scripted::new();
        let mut connection = Connection::<Sum>::open(&mut adapter, &ConnInfo::default());
        connection.received_bytes(&mut adapter, &[1, 2, 3]);
        let state = connection.snapshot().unwrap();
        assert_eq!(state, State { format: 2, bytes: vec![6, 3] });
        let mut adapter = Scripted::new().with_setting("unit", "km");
        let restored = Connection::<Sum>::restore(&mut adapter, &ConnInfo::default(), Some(state)).unwrap();
        assert_eq!(restored.handler(), Some(&Sum { sum: 6, events: 3, unit: "km".into() }));
    }

    /// An older format goes through `upgrade`; without a state the connection begins anew.
    #[test]
    fn upgrades() {
        let restore = |state| {
            let restored = Connection::<Sum>::restore(&mut Scripted::new(), &ConnInfo::default(), state)?;
            Ok::<_, String>(restored.handler().unwrap().sum)
        };
        assert_eq!(restore(Some(State { format: 1, bytes: vec![9] })), Ok(9));
        assert_eq!(restore(None), Ok(0));
    }

    /// What this version cannot go on with is refused, with the reason.
    #[test]
    fn refuses() {
        let refusal = |format, bytes: &[u8]| {
            let state = State { format, bytes: bytes.to_vec() };
            Connection::<Sum>::restore(&mut Scripted::new(), &ConnInfo::default(), Some(state)).unwrap_err()
        };
        assert_eq!(refusal(3, &[]), "expected a state of format 2, found format 3");
        assert_eq!(refusal(2, &[1, 2, 3]), "expected the state's end, found 1 more bytes");
        assert_eq!(refusal(2, &[1]), "Hit the end of buffer, expected more data");
        assert_eq!(refusal(UNWRITTEN, b"too large"), "the version before could not write its state: too large");
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Sum {
        sum: u32,
        events: u32,
        #[serde(skip)]
        unit: String,
    }

    impl Handler for Sum {
        fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> {
            Ok(Self::default())
        }

        fn on_received_bytes(&mut self, _: &mut dyn Adapter, bytes: &[u8]) -> Result {
            self.events += bytes.len() as u32;
            self.sum += bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
            Ok(())
        }
    }

    impl Migrate for Sum {
        const FORMAT: u32 = 2;

        fn upgrade(format: u32, bytes: &[u8]) -> Result<Self> {
            match format {
                1 => Ok(Self { sum: read(bytes)?, ..Self::default() }),
                found => Err(Unknown { expected: Self::FORMAT, found }.into()),
            }
        }

        fn on_restored(&mut self, adapter: &mut dyn Adapter, _: &ConnInfo) -> Result {
            self.unit = adapter.setting("unit").unwrap_or_default();
            Ok(())
        }
    }
}
