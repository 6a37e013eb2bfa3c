//! The stop signal, the connections that must end before the process does, and how long they may take.
//!
//! Two moments: from [`Drain::begin`] on nothing new is accepted; from [`Drain::end`] on no connection is
//! left that needs the services behind it.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Shared by everything that accepts or runs until the gateway stops.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    begun: CancellationToken,
    ended: CancellationToken,
    tasks: TaskTracker,
}

impl Drain {
    /// Not yet signalled, without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that the gateway stops accepting. Cannot be taken back.
    pub fn begin(&self) {
        self.begun.cancel();
        self.tasks.close();
    }

    /// Returns once [`Drain::begin`] was called.
    pub async fn signalled(&self) {
        self.begun.cancelled().await;
    }

    /// Whether [`Drain::begin`] was called.
    pub fn is_signalled(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Says that no connection is left, or that the grace period is over: tasks that still run are dropped.
    pub fn end(&self) {
        self.ended.cancel();
    }

    /// Returns once [`Drain::end`] was called.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Runs a task that [`Drain::finished`] waits for; [`Drain::end`] cuts it off.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let ended = self.ended.clone();
        self.tasks.spawn(async move {
            // Told already, by the number that `finished` gave.
            let _cut_off: Option<()> = ended.run_until_cancelled(task).await;
        });
    }

    /// Waits until all tasks have ended, at most for the grace period.
    ///
    /// Gives the number of tasks that were still running when it was over; 0 is a clean stop.
    pub async fn finished(&self, grace: Duration) -> usize {
        match tokio::time::timeout(grace, self.tasks.wait()).await {
            Ok(()) => 0,
            Err(_) => self.tasks.len(),
        }
    }
}
