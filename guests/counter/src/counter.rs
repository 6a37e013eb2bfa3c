//! The counter itself, which two guests share.

use polygate_guest::{Adapter, ConnInfo, Handler, Result};
use serde::{Deserialize, Serialize};

/// One connection.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// How many times bytes have arrived.
    count: u64,
    /// What the setting `version` said when the connection came to this version of the handler.
    #[serde(skip)]
    version: String,
}

impl Counter {
    /// Learns which version it is.
    pub fn read_version(&mut self, adapter: &mut dyn Adapter) {
        self.version = adapter.setting("version").unwrap_or_else(|| "1".to_owned());
    }
}

impl Handler for Counter {
    fn on_socket_created(adapter: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> {
        let mut counter = Self { count: 0, version: String::new() };
        counter.read_version(adapter);
        Ok(counter)
    }

    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, _: &[u8]) -> Result {
        self.count += 1;
        Ok(adapter.send(format!("{}:{}\n", self.version, self.count).as_bytes())?)
    }
}
