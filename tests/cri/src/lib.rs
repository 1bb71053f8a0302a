//! A small client of containerd's Container Runtime Interface, for tests.
//!
//! Kubelet makes a pod's network by asking the runtime for a *sandbox*, over gRPC on a unix socket. The tests do the
//! same, so that the plugin is driven by the program that will drive it in a cluster, with its own environment, its own
//! result cache and its own idea of the specification. Only sandboxes are needed, so this is six calls on the `h2` crate
//! and the few fields of the messages that matter ([`messages`]), instead of a generated client of the whole interface.
//!
//! gRPC over HTTP/2, as far as it is used here: a POST to `/runtime.v1.RuntimeService/METHOD`; the body is one byte 0
//! (not compressed), a length of four bytes, the message; the result code comes in the trailers.

pub mod blocking;
pub mod messages;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use tokio::net::UnixStream;

use messages::{
    Empty, PodSandboxConfig, PodSandboxStatusResponse, RunPodSandboxRequest, SandboxId, StatusResponse,
};

/// Longer than any call may take; kubelet gives two minutes.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection to a runtime. Calls may run side by side.
#[derive(Clone)]
pub struct Runtime {
    requests: h2::client::SendRequest<Bytes>,
}

impl Runtime {
    /// Connects to the runtime's socket. The connection ends with the tokio runtime.
    ///
    /// # Errors
    /// Nobody listens there, or it does not speak HTTP/2.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .await
            .with_context(|| format!("cannot connect to {}", socket.display()))?;
        let (requests, connection) = h2::client::handshake(stream).await?;
        #[expect(clippy::disallowed_methods, reason = "a test program without tasks of its own")]
        tokio::spawn(async move {
            // Its end shows as the failure of the call that is under way.
            let _ = connection.await;
        });
        Ok(Self { requests })
    }

    /// Makes a sandbox; answers its id.
    ///
    /// # Errors
    /// The runtime refuses, for instance because ADD failed.
    pub async fn run(&self, config: PodSandboxConfig) -> Result<String> {
        let made: SandboxId =
            self.call("RunPodSandbox", &RunPodSandboxRequest { config: Some(config) }).await?;
        Ok(made.id)
    }

    /// Stops a sandbox, which makes the runtime call DEL.
    ///
    /// # Errors
    /// The runtime refuses, for instance because DEL failed.
    pub async fn stop(&self, id: &str) -> Result<()> {
        let Empty {} = self.call("StopPodSandbox", &named(id)).await?;
        Ok(())
    }

    /// Removes a stopped sandbox.
    ///
    /// # Errors
    /// The runtime refuses.
    pub async fn remove(&self, id: &str) -> Result<()> {
        let Empty {} = self.call("RemovePodSandbox", &named(id)).await?;
        Ok(())
    }

    /// Describes a sandbox.
    ///
    /// # Errors
    /// There is no such sandbox.
    pub async fn status(&self, id: &str) -> Result<PodSandboxStatusResponse> {
        self.call("PodSandboxStatus", &SandboxId { verbose: true, ..named(id) }).await
    }

    /// Whether the runtime's network is ready, and if not, why.
    ///
    /// # Errors
    /// The runtime does not answer.
    pub async fn network_ready(&self) -> Result<Result<(), String>> {
        let answer: StatusResponse = self.call("Status", &Empty {}).await?;
        let conditions = answer.status.context("no status")?.conditions;
        let network =
            conditions.into_iter().find(|it| it.kind == "NetworkReady").context("no NetworkReady")?;
        Ok(if network.status { Ok(()) } else { Err(network.message) })
    }

    async fn call<A: Message + Default>(&self, method: &str, message: &impl Message) -> Result<A> {
        let call = tokio::time::timeout(PATIENCE, self.exchange(method, message));
        call.await.with_context(|| format!("{method} does not answer"))?.with_context(|| method.to_owned())
    }

    async fn exchange<A: Message + Default>(&self, method: &str, message: &impl Message) -> Result<A> {
        let request = http::Request::post(format!("http://runtime/runtime.v1.RuntimeService/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let mut requests = self.requests.clone().ready().await?;
        let (answer, mut body) = requests.send_request(request, false)?;
        body.send_data(framed(message)?, true)?;
        let answer = answer.await?;
        check(answer.headers())?;
        let mut stream = answer.into_body();
        let mut data = BytesMut::new();
        while let Some(chunk) = stream.data().await {
            let chunk = chunk?;
            stream.flow_control().release_capacity(chunk.len())?;
            data.extend_from_slice(&chunk);
        }
        check(&stream.trailers().await?.unwrap_or_default())?;
        ensure!(data.len() >= 5, "answer of {} bytes", data.len());
        data.advance(5);
        Ok(A::decode(data)?)
    }
}

fn named(id: &str) -> SandboxId {
    SandboxId { id: id.to_owned(), verbose: false }
}

fn framed(message: &impl Message) -> Result<Bytes> {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len())?);
    message.encode(&mut frame)?;
    Ok(frame.freeze())
}

/// The result code, if it is there: 0 is success.
fn check(headers: &http::HeaderMap) -> Result<()> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some(code) => bail!("code {code}: {}", text("grpc-message").unwrap_or("no message")),
    }
}
