//! A device's session: an entry in the table of devices and its subscriptions in the index.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::conn::registry::Mailbox;
use crate::conn::{ClientInfo, CloseReason, PeerAddr, QoS};
use crate::pubsub::Error;
use crate::topic;

use super::message::{Origin, Publication};
use super::router::{Key, Router, Target};
use super::routes::FEW_WILDCARD_FILTERS;

/// A device as the hub knows it.
pub(super) struct Device {
    /// Distinguishes sessions that have one client id, so that the end of one never touches another.
    pub(super) serial: u64,
    pub(super) client_id: Arc<str>,
    pub(super) mailbox: Mailbox,
    /// As they were asked for, sorted; `None` when the session has ended. A change of the index for
    /// this device holds this lock, so that nothing is entered after the end.
    filters: Mutex<Option<Vec<Box<str>>>>,
}

/// A device's client of the embedded broker; [`Session`](crate::pubsub::Session) says what it does.
pub struct Session {
    router: Arc<Router>,
    device: Arc<Device>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("client_id", &self.device.client_id).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn open(
        router: &Arc<Router>,
        client: &ClientInfo,
        peer: PeerAddr,
        mailbox: Mailbox,
    ) -> Result<Self, Error> {
        let device = Arc::new(Device {
            serial: router.next_serial(),
            client_id: client.client_id.as_str().into(),
            mailbox,
            filters: Mutex::new(Some(Vec::new())),
        });
        let replaced = router.enter(device.clone())?;
        if let Some(replaced) = replaced {
            tracing::debug!(client_id = client.client_id, %peer, conn = %replaced.mailbox.conn(), "session taken over");
            replaced.end(router);
            // Its mailbox may be full; the new session does not wait for that. One short task for each
            // connection that ends, and it ends no later than the connection.
            tokio::spawn(async move { replaced.mailbox.end(CloseReason::Replaced).await });
        }
        Ok(Self { router: router.clone(), device })
    }

    pub(in crate::pubsub) fn publish(&self, topic: &str, qos: QoS, payload: Bytes) -> Result<(), Error> {
        self.router.check_publish(topic, &payload)?;
        if self.device.has_ended() {
            return Err(Error::Replaced);
        }
        let origin = Origin::Local(&self.device.client_id);
        self.router.publish(&Publication { origin, topic, qos, retain: false, payload: &payload, properties: None });
        Ok(())
    }

    /// Returns when what was published is as safe as `durability` asks for.
    pub(in crate::pubsub) async fn confirmed(&self) {
        if let Some(journal) = self.router.journal()
            && let Some(batch) = journal.position()
        {
            journal.wait(batch).await;
        }
    }

    pub(in crate::pubsub) async fn subscribe(&self, filter: &str, _qos: QoS) -> Result<(), Error> {
        let parsed = topic::parse_filter(filter)?;
        self.router.check_running()?;
        {
            let mut filters = self.device.filters.lock();
            let filters = filters.as_mut().ok_or(Error::Replaced)?;
            let Err(place) = filters.binary_search_by(|known| (**known).cmp(filter)) else {
                return Ok(());
            };
            let subscriptions_max = self.router.subscriptions_max();
            if filters.len() >= subscriptions_max {
                return Err(Error::TooManySubscriptions { subscriptions_max });
            }
            let has_few = !filter.contains('+')
                || filters.iter().filter(|filter| filter.contains('+')).nth(FEW_WILDCARD_FILTERS - 1).is_none();
            let target = Target::Device(self.device.clone());
            self.router
                .subscribe(&parsed, Key::Device(self.device.serial), target, has_few)
                .map_err(|_| Error::FilterTooCostly)?;
            if filters.is_empty() {
                // Many devices have one subscription and never a second.
                filters.reserve_exact(1);
            }
            filters.insert(place, filter.into());
        }
        // MQTT 5.0 §4.8.2: a share gets no retained messages.
        if parsed.group.is_none() {
            self.router.replay_retained(parsed.filter, &self.device).await;
        }
        Ok(())
    }

    pub(in crate::pubsub) fn unsubscribe(&self, filter: &str) -> Result<(), Error> {
        let parsed = topic::parse_filter(filter)?;
        let mut filters = self.device.filters.lock();
        let filters = filters.as_mut().ok_or(Error::Replaced)?;
        if let Ok(place) = filters.binary_search_by(|known| (**known).cmp(filter)) {
            filters.remove(place);
            self.router.unsubscribe(&parsed, Key::Device(self.device.serial));
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.router.leave(&self.device);
        self.device.end(&self.router);
    }
}

impl Device {
    pub(super) fn has_ended(&self) -> bool {
        self.filters.lock().is_none()
    }

    /// Ends all subscriptions, and with them the session; the second time there is nothing left to do.
    fn end(&self, router: &Router) {
        let mut filters = self.filters.lock();
        for filter in filters.take().unwrap_or_default() {
            if let Ok(parsed) = topic::parse_filter(&filter) {
                router.unsubscribe(&parsed, Key::Device(self.serial));
            }
        }
    }
}
