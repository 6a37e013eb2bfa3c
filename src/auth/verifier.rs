//! Password verification with bounded concurrency.
//!
//! A hash is made to cost a core and memory for tens of milliseconds, and anyone may ask for one. Devices and MQTT
//! clients have places of their own, so neither delays the other; the wait for a place is bounded; sources that keep
//! failing do not wait at all.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::attempts::{Attempt, Attempts};
use super::hash::PasswordHash;
use super::verified::{Digest, DigestKey, Verified};
use crate::conn::Password;
use crate::telemetry::LoginMetrics;

/// Maximum wait for a place.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Maximum number of clients that wait for a place of one origin; further ones are refused at once. Each holds its
/// password.
const WAITING_MAX: usize = 256;

/// Origin of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A device of a listener, by its handler.
    Device,
    /// An MQTT client of the embedded broker.
    Mqtt,
}

/// No place became free in time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overloaded;

pub(super) struct Verifier {
    devices: Places,
    mqtt: Places,
    key: DigestKey,
    verified: Mutex<Verified>,
    counters: LoginMetrics,
}

struct Places {
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    attempts: Mutex<Attempts>,
}

/// Counts a waiting client, also if its task is dropped while it waits.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Places {
    fn new(count: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(count)),
            waiting: AtomicUsize::new(0),
            attempts: Mutex::new(Attempts::default()),
        }
    }

    async fn permit(&self, attempt: &Attempt) -> Result<OwnedSemaphorePermit, Overloaded> {
        let free = Arc::clone(&self.permits).try_acquire_owned();
        if free.is_ok() || !attempt.is_allowed {
            return free.map_err(|_| Overloaded);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= WAITING_MAX {
            return Err(Overloaded);
        }
        match tokio::time::timeout(WAIT_MAX, Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(Overloaded),
        }
    }
}

impl Verifier {
    /// # Errors
    ///
    /// The operating system's random generator failed.
    pub(super) fn new() -> Result<Self, getrandom::Error> {
        // Together as many as there are cores, and one of each at least.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let places = cores.div_ceil(2);
        Ok(Self {
            devices: Places::new(places),
            mqtt: Places::new(places),
            key: DigestKey::new()?,
            verified: Mutex::new(Verified::new(Instant::now())),
            counters: LoginMetrics::default(),
        })
    }

    pub(super) fn counters(&self) -> &LoginMetrics {
        &self.counters
    }

    /// Whether the password is that of `hash`, and the user is `known`. For an unknown one, `hash` is another user's.
    ///
    /// # Errors
    ///
    /// [`Overloaded`]: it was not verified.
    pub(super) async fn verify(
        &self,
        (origin, address): (Origin, Option<IpAddr>),
        username: &str,
        (hash, known): (Arc<PasswordHash>, bool),
        password: Password,
    ) -> Result<bool, Overloaded> {
        let digest: Option<Digest> = known.then(|| self.key.digest(username, &hash.text(), password.expose()));
        if let Some(digest) = &digest
            && self.verified.lock().contains(digest, Instant::now())
        {
            self.counters.cached.inc();
            return Ok(true);
        }
        let places = match origin {
            Origin::Device => &self.devices,
            Origin::Mqtt => &self.mqtt,
        };
        let attempt = places.attempts.lock().begin(address, Instant::now());
        let result = match places.permit(&attempt).await {
            Err(overloaded) => Err(overloaded),
            Ok(permit) => {
                // The place is in use until the hash is computed, also if the client's task is dropped before.
                let verified = tokio::task::spawn_blocking(move || {
                    let verified = hash.verify(password.expose());
                    drop(permit);
                    verified
                });
                verified.await.map_err(|error| {
                    tracing::error!(%error, "cannot verify a password");
                    Overloaded
                })
            }
        };
        match (&result, digest) {
            (Ok(true), Some(digest)) => {
                self.counters.verified.inc();
                places.attempts.lock().refund(&attempt);
                self.verified.lock().insert(digest, Instant::now());
                Ok(true)
            }
            (Ok(_), _) => {
                self.counters.wrong.inc();
                Ok(false)
            }
            (Err(Overloaded), _) => {
                self.counters.overloaded.inc();
                places.attempts.lock().refund(&attempt);
                Err(Overloaded)
            }
        }
    }
}
