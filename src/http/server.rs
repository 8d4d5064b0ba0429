//! The listening sockets, from bind to the last byte.
//!
//! In: a [`State`] and addresses. Out: a running server that can be asked to go down in order: not ready,
//! no new connections, open answers finished, ended.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer, web};
use thiserror::Error;
use tokio::task::JoinHandle;

use super::access;
use super::error::ApiError;
use super::routes;
use super::state::State;

/// Connections may stay open between requests for so long.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// After the last answer is complete, its bytes have this long to leave.
const FLUSH: u64 = 5;

/// Where to listen, and how to stop.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// For clients. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// For scrapers, without keys and tenants; none if `None`.
    pub metrics_listen: Option<SocketAddr>,
    /// Threads that speak HTTP.
    pub workers: usize,
    /// How long open answers may go on once the server is asked to stop.
    pub drain_timeout: Duration,
    /// How long the server says that it is not ready before it stops accepting connections.
    pub drain_delay: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            metrics_listen: None,
            workers: 2,
            drain_timeout: Duration::from_secs(60),
            drain_delay: Duration::ZERO,
        }
    }
}

/// Why a server could not listen.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Anybody could use it.
    #[error("{listen} can be reached from elsewhere, which needs API keys")]
    Open {
        /// The address asked for.
        listen: SocketAddr,
    },
    /// The address is taken or not ours.
    #[error("cannot listen on {listen}")]
    Bind {
        /// The address asked for.
        listen: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A running server. It must live in a tokio runtime; dropping it does not stop it, [`Self::stop`] does.
pub struct Server {
    address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    handle: ServerHandle,
    metrics_handle: Option<ServerHandle>,
    task: JoinHandle<io::Result<()>>,
    state: Arc<State>,
    options: ServerOptions,
}

impl Server {
    /// Listens. Requests are answered from now on: with 503, until a service is installed in the state.
    pub fn bind(state: &Arc<State>, options: ServerOptions) -> Result<Self, ServerError> {
        let listen = options.listen;
        if state.keys().is_open() && !listen.ip().is_loopback() {
            return Err(ServerError::Open { listen });
        }
        let data = web::Data::from(Arc::clone(state));
        let server = HttpServer::new(move || {
            App::new()
                .app_data(data.clone())
                .wrap(from_fn(access::guard))
                .configure(routes::configure)
        })
        .workers(options.workers.max(1))
        .keep_alive(KEEP_ALIVE)
        // A client that closes its side has left: its answer is not made to the end.
        .h1_allow_half_closed(false)
        .shutdown_timeout(FLUSH)
        .disable_signals();
        let bind = |listen: SocketAddr| move |source| ServerError::Bind { listen, source };
        let server = server.bind(listen).map_err(bind(listen))?;
        let address = server.addrs().first().copied().unwrap_or(listen);
        let metrics = match options.metrics_listen {
            None => None,
            Some(listen) => {
                let data = web::Data::from(Arc::clone(state));
                let metrics = HttpServer::new(move || {
                    App::new()
                        .app_data(data.clone())
                        .configure(routes::configure_metrics)
                });
                let metrics = metrics.workers(1).shutdown_timeout(FLUSH).disable_signals();
                let metrics = metrics.bind(listen).map_err(bind(listen))?;
                let address = metrics.addrs().first().copied().unwrap_or(listen);
                Some((address, metrics.run()))
            }
        };
        let server = server.run();
        let handle = server.handle();
        let (metrics_address, metrics_handle) = match metrics {
            None => (None, None),
            Some((address, metrics)) => {
                let handle = metrics.handle();
                tokio::spawn(metrics);
                (Some(address), Some(handle))
            }
        };
        let (task, state) = (tokio::spawn(server), Arc::clone(state));
        Ok(Self {
            address,
            metrics_address,
            handle,
            metrics_handle,
            task,
            state,
            options,
        })
    }

    /// Where clients reach it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where scrapers reach it.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// What its workers share.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Goes down in order; gives how many answers were cut off because they took too long.
    pub async fn stop(self) -> usize {
        let Self {
            handle,
            metrics_handle,
            task,
            state,
            options,
            ..
        } = self;
        state.drain();
        tokio::time::sleep(options.drain_delay).await;
        handle.pause().await;
        let cut = state.idle(options.drain_timeout).await;
        if let Some(service) = state.loaded() {
            service.engine().drain();
        }
        handle.stop(cut == 0).await;
        if let Err(error) = task.await {
            tracing::error!(error = %ApiError::internal(&error), "the server's task failed");
        }
        if let Some(handle) = metrics_handle {
            handle.stop(false).await;
        }
        if let Some(service) = state.loaded().cloned() {
            // A step is short; what it computes nobody waits for any more.
            let joined = tokio::task::spawn_blocking(move || service.engine().join()).await;
            if let Err(error) = joined {
                tracing::error!(%error, "waiting for the engine failed");
            }
        }
        cut
    }
}
