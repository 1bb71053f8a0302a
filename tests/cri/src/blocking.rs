//! The same calls for programs without an asynchronous runtime: one connection a call, made on the calling thread.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::Runtime;
use crate::messages::{PodSandboxConfig, PodSandboxStatusResponse};

/// A runtime's socket. Calls from several threads run side by side.
#[derive(Debug, Clone)]
pub struct Socket(PathBuf);

impl Socket {
    /// The runtime at `path`; nothing is connected yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// See [`Runtime::run`].
    ///
    /// # Errors
    /// The runtime refuses or does not answer.
    pub fn run(&self, config: PodSandboxConfig) -> Result<String> {
        self.call(async |runtime| runtime.run(config).await)
    }

    /// See [`Runtime::stop`].
    ///
    /// # Errors
    /// The runtime refuses or does not answer.
    pub fn stop(&self, id: &str) -> Result<()> {
        self.call(async |runtime| runtime.stop(id).await)
    }

    /// See [`Runtime::remove`].
    ///
    /// # Errors
    /// The runtime refuses or does not answer.
    pub fn remove(&self, id: &str) -> Result<()> {
        self.call(async |runtime| runtime.remove(id).await)
    }

    /// See [`Runtime::status`].
    ///
    /// # Errors
    /// There is no such sandbox, or the runtime does not answer.
    pub fn status(&self, id: &str) -> Result<PodSandboxStatusResponse> {
        self.call(async |runtime| runtime.status(id).await)
    }

    /// See [`Runtime::network_ready`].
    ///
    /// # Errors
    /// The runtime does not answer.
    pub fn network_ready(&self) -> Result<Result<(), String>> {
        self.call(async |runtime| runtime.network_ready().await)
    }

    fn call<T>(&self, work: impl AsyncFnOnce(Runtime) -> Result<T>) -> Result<T> {
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
        executor.context("starting a runtime")?.block_on(async {
            let runtime = Runtime::connect(&self.0).await?;
            work(runtime).await
        })
    }
}
