//! The agent seen from outside: status and report on a loopback port, metrics for Prometheus on another.
//!
//! Read-only by construction: the servers are handed the newest status document and nothing else. Whoever wants to
//! change something uses the command line, whose socket only root can open. A web page that a person on this
//! machine looks at must not read the document either (DNS rebinding), so a request must name its host by address
//! or as `localhost`.
//!
//! Each server is one future that accepts until it is dropped. Every connection is a task of axum's own: there are at
//! most `listener::MAX_CONNECTIONS` of them, each ends when its caller leaves, takes longer than `listener::ASKING` to
//! ask, or does not take its answer for `listener::SILENCE`, and none holds anything but the status feed, so that nobody can use up the agent's memory or
//! file descriptors and nothing is lost when they are cut off.

mod listener;
pub mod metrics;
mod routes;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use tokio::sync::watch;
use weave_proto::local::status::Status;

use crate::config::ListenAddress;

use listener::Bounded;

/// The newest status document, as the brain publishes it.
pub type StatusFeed = watch::Receiver<Arc<Status>>;

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {purpose}: {error}; choose another with {flag}, or `off`")]
pub struct BindError {
    address: ListenAddress,
    purpose: &'static str,
    flag: &'static str,
    error: io::Error,
}

/// The server of status and report, listening.
#[derive(Debug)]
pub struct StatusServer(Bounded);

/// The server of metrics, listening.
#[derive(Debug)]
pub struct MetricsServer(Bounded);

impl StatusServer {
    /// Listens; none if it is off.
    ///
    /// # Errors
    /// The address is taken, not of this machine, or not allowed.
    pub fn bind(address: &ListenAddress) -> Result<Option<Self>, BindError> {
        let failed = |error| BindError {
            address: address.clone(),
            purpose: "status and report",
            flag: "--http-addr",
            error,
        };
        Ok(Bounded::bind(address).map_err(failed)?.map(Self))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        self.0.address()
    }

    /// Answers until it is dropped.
    pub async fn serve(self, status: StatusFeed) {
        tracing::info!("Listening for HTTP requests on {}", self.address());
        if matches!(self.address(), ListenAddress::Tcp(address) if !address.ip().is_loopback()) {
            tracing::warn!(
                "Status and report can be read by everybody who reaches {}: they tell of all peers and addresses",
                self.address()
            );
        }
        routes::serve(self.0, routes::status(status)).await;
    }
}

impl MetricsServer {
    /// Listens; none if it is off.
    ///
    /// # Errors
    /// The address is taken, not of this machine, or not allowed.
    pub fn bind(address: &ListenAddress) -> Result<Option<Self>, BindError> {
        let failed =
            |error| BindError { address: address.clone(), purpose: "metrics", flag: "--metrics-addr", error };
        Ok(Bounded::bind(address).map_err(failed)?.map(Self))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        self.0.address()
    }

    /// Answers until it is dropped.
    pub async fn serve(self, status: StatusFeed) {
        tracing::info!("Listening for metrics requests on {}", self.address());
        routes::serve(self.0, routes::metrics_only(status)).await;
    }
}
