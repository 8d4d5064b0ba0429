//! What all workers of a server share.
//!
//! It exists before the base is loaded, so that the server can say that it is loading, and outlives the
//! last request.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;

use super::error::{ApiError, Kind};
use super::keys::Keys;
use super::metrics::Metrics;
use super::service::Service;

/// See the module.
#[derive(Debug)]
pub struct State {
    keys: Keys,
    metrics: Metrics,
    service: OnceLock<Arc<Service>>,
    draining: AtomicBool,
    in_flight: AtomicUsize,
    left: Notify,
}

impl State {
    /// A server that is loading. `base_name`: the name by which clients know the base.
    pub fn new(keys: Keys, base_name: &str) -> Result<Self, prometheus::Error> {
        Ok(Self {
            keys,
            metrics: Metrics::new(base_name)?,
            service: OnceLock::new(),
            draining: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            left: Notify::new(),
        })
    }

    /// Puts the loaded base in place; from now on the server is ready. A second one is ignored.
    pub fn install(&self, service: Arc<Service>) {
        self.metrics.describe(&service);
        drop(self.service.set(service));
    }

    /// The API keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The service, once it is loaded.
    pub fn loaded(&self) -> Option<&Arc<Service>> {
        self.service.get()
    }

    /// The service, or 503.
    pub fn service(&self) -> Result<Arc<Service>, ApiError> {
        let loading = || ApiError::new(Kind::Unavailable, "the base is still loading");
        self.service
            .get()
            .cloned()
            .ok_or_else(|| loading().with_code("loading"))
    }

    /// From now on nothing new is begun.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Whether the server is going down.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Why the server should get no requests now, if so.
    pub fn unready(&self) -> Option<&'static str> {
        if self.is_draining() {
            Some("draining")
        } else if self.service.get().is_none() {
            Some("loading")
        } else {
            None
        }
    }

    /// Counts a request in.
    pub fn enter(&self) {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
    }

    /// Counts a request out.
    pub fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        self.left.notify_waiters();
    }

    /// Requests whose answer is not complete.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Waits until every answer is complete, for `limit` at most; gives how many are not.
    pub async fn idle(&self, limit: Duration) -> usize {
        let all_left = async {
            loop {
                let left = self.left.notified();
                tokio::pin!(left);
                left.as_mut().enable();
                if self.in_flight() == 0 {
                    return;
                }
                left.await;
            }
        };
        match tokio::time::timeout(limit, all_left).await {
            Ok(()) => 0,
            Err(_) => self.in_flight(),
        }
    }
}
