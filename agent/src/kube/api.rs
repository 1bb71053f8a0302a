//! The requests that this room makes, each with a time limit and an error that says what was wanted.
//!
//! The `kube` crate brings the connection: TLS with the cluster's authority, the token that is read again when it is
//! renewed, the addresses of requests. Its retries are switched off, because who asks here knows better how long to
//! wait ([`super::backoff`]), and its object types are not used, because they would hold whole Nodes.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use axum::http::Request as HttpRequest;
use futures_util::{Stream, StreamExt};
use kube::core::Request;
use kube::core::params::{GetParams, ListParams, Patch, PatchParams, PostParams, WatchParams};
use kube::core::watch::WatchEvent;
use kube::{Client, Config};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::objects::{Object, Page};

/// How long one request may take. An API server that needs longer is as good as down, and is asked again later.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a connection may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Objects a page. A Node has some ten kilobytes, and a page is in memory as text while it is read.
const PAGE: u32 = 50;

/// Where the API server is and who this agent is to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Access {
    /// As `https://host:port`.
    pub(super) server: String,
    /// A folder with `token`, `ca.crt` and `namespace`, as a pod finds one.
    pub(super) account: std::path::PathBuf,
}

/// Why a request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) kind: Kind,
    wanted: String,
    text: String,
}

/// What the asker does about it depends on this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// There is no such object.
    NotFound,
    /// Somebody else was first.
    Conflict,
    /// The version asked for is no longer known: begin anew.
    Gone,
    /// This agent may not.
    Forbidden,
    /// The server has too much to do, and may have said for how long.
    Busy(Option<Duration>),
    /// No answer, or not from an API server.
    Unreachable,
    /// Anything else.
    Other,
}

impl Kind {
    /// How long the server asked to be left alone.
    pub(super) const fn asked(self) -> Option<Duration> {
        match self {
            Self::Busy(asked) => asked,
            Self::NotFound
            | Self::Conflict
            | Self::Gone
            | Self::Forbidden
            | Self::Unreachable
            | Self::Other => None,
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.wanted, self.text)?;
        match self.kind {
            Kind::Forbidden => f.write_str("; apply the ClusterRole and Role of weave-daemonset.yaml again"),
            Kind::Unreachable => f.write_str(
                "; if kube-proxy is not there yet, set KUBERNETES_SERVICE_HOST and _PORT of the DaemonSet to the API \
                 server's own address",
            ),
            Kind::NotFound | Kind::Conflict | Kind::Gone | Kind::Busy(_) | Kind::Other => Ok(()),
        }
    }
}

impl std::error::Error for ApiError {}

/// Why there is no connection to be had at all.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The folder of the service account is not as it should be.
    #[error(
        "cannot use the service account in {path}: {reason}; in a pod it is there by itself, elsewhere give \
         --service-account a folder with token, ca.crt and namespace"
    )]
    Account {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The server's address is not one.
    #[error("{server:?} is no address of an API server: write https://HOST:PORT")]
    Server {
        /// As it was given.
        server: String,
    },
    /// TLS could not be set up.
    #[error("cannot set up TLS for the API server: {0}")]
    Tls(String),
}

/// The API server.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
}

/// A kind of object, and in which namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    path: String,
    word: &'static str,
}

impl Place {
    pub(super) fn nodes() -> Self {
        Self { path: "/api/v1/nodes".to_owned(), word: "the Nodes" }
    }

    pub(super) fn secrets(namespace: &str) -> Self {
        Self { path: format!("/api/v1/namespaces/{namespace}/secrets"), word: "the Secret" }
    }

    pub(super) fn config_maps(namespace: &str) -> Self {
        Self { path: format!("/api/v1/namespaces/{namespace}/configmaps"), word: "the ConfigMap" }
    }

    pub(super) fn services(namespace: &str) -> Self {
        Self { path: format!("/api/v1/namespaces/{namespace}/services"), word: "the Service" }
    }

    pub(super) fn events(namespace: &str) -> Self {
        Self { path: format!("/api/v1/namespaces/{namespace}/events"), word: "an Event" }
    }

    pub(super) fn service_cidrs() -> Self {
        Self { path: "/apis/networking.k8s.io/v1/servicecidrs".to_owned(), word: "the ServiceCIDRs" }
    }
}

/// How an object is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The `status` of it, lists merged by their keys: only so does one condition leave the others alone.
    Status,
    /// Single fields of it.
    Fields,
}

impl Api {
    pub(super) fn new(access: &Access) -> Result<Self, AccessError> {
        let server =
            access.server.parse().map_err(|_| AccessError::Server { server: access.server.clone() })?;
        let ca = access.account.join("ca.crt");
        let failed = |reason: String| AccessError::Account { path: ca.clone(), reason };
        let pem = std::fs::read(&ca).map_err(|error| failed(error.to_string()))?;
        let roots = certificates(&pem).map_err(failed)?;
        let mut config = Config::new(server);
        config.root_cert = Some(roots);
        config.root_cert_file = Some(ca);
        config.auth_info.token_file = Some(access.account.join("token").display().to_string());
        config.connect_timeout = Some(CONNECT_PATIENCE);
        config.default_retry = false;
        let client = Client::try_from(config).map_err(|error| AccessError::Tls(error.to_string()))?;
        Ok(Self { client })
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        wanted: impl Fn() -> String,
        request: Result<HttpRequest<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<T, ApiError> {
        let request = request.map_err(|error| ApiError::other(wanted(), error.to_string()))?;
        match timeout(PATIENCE, self.client.request(request)).await {
            Ok(answer) => answer.map_err(|error| explain(wanted(), &error)),
            Err(_) => Err(slow(wanted())),
        }
    }

    /// The object; none if there is none.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        place: &Place,
        name: &str,
    ) -> Result<Option<T>, ApiError> {
        let wanted = || format!("read {} {name}", place.word);
        let request = Request::new(place.path.as_str()).get(name, &GetParams::default());
        match self.ask(wanted, request).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the object, unless there is one of that name: then it fails with [`Kind::Conflict`].
    pub(super) async fn create<T: DeserializeOwned>(
        &self,
        place: &Place,
        object: &Value,
    ) -> Result<T, ApiError> {
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let wanted = || format!("create {} {name}", place.word);
        let body = object.to_string().into_bytes();
        self.ask(wanted, Request::new(place.path.as_str()).create(&PostParams::default(), body)).await
    }

    /// Changes parts of the object.
    pub(super) async fn patch<T: DeserializeOwned>(
        &self,
        place: &Place,
        name: &str,
        change: Change,
        patch: &(impl Serialize + fmt::Debug),
    ) -> Result<T, ApiError> {
        let wanted = || format!("change {} {name}", place.word);
        let (request, params) = (Request::new(place.path.as_str()), PatchParams::default());
        let request = match change {
            Change::Status => request.patch_subresource("status", name, &params, &Patch::Strategic(patch)),
            Change::Fields => request.patch(name, &params, &Patch::Merge(patch)),
        };
        self.ask(wanted, request).await
    }

    /// One page of objects, those of one name if a name is given.
    pub(super) async fn page<T: Object>(
        &self,
        place: &Place,
        name: Option<&str>,
        next: Option<&str>,
    ) -> Result<Page<T>, ApiError> {
        let params = ListParams {
            field_selector: name.map(by_name),
            limit: Some(PAGE),
            continue_token: next.map(str::to_owned),
            ..ListParams::default()
        };
        self.ask(|| format!("list {}", place.word), Request::new(place.path.as_str()).list(&params)).await
    }

    /// What happens to the objects after `version`, for at most `seconds`. The stream ends with the connection.
    pub(super) async fn watch<T: Object>(
        &self,
        place: &Place,
        name: Option<&str>,
        version: &str,
        seconds: u32,
    ) -> Result<impl Stream<Item = Result<WatchEvent<T>, ApiError>> + use<T>, ApiError> {
        let word = place.word;
        let wanted = move || format!("watch {word}");
        let params = WatchParams {
            field_selector: name.map(by_name),
            timeout: Some(seconds),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = Request::new(place.path.as_str())
            .watch(&params, version)
            .map_err(|error| ApiError::other(wanted(), error.to_string()))?;
        match timeout(PATIENCE, self.client.request_events::<T>(request)).await {
            Ok(events) => {
                let events = events.map_err(|error| explain(wanted(), &error))?;
                Ok(events.map(move |event| event.map_err(|error| explain(wanted(), &error))))
            }
            Err(_) => Err(slow(wanted())),
        }
    }
}

fn by_name(name: &str) -> String {
    format!("metadata.name={name}")
}

impl ApiError {
    pub(super) const fn new(kind: Kind, wanted: String, text: String) -> Self {
        Self { kind, wanted, text }
    }

    const fn other(wanted: String, text: String) -> Self {
        Self::new(Kind::Other, wanted, text)
    }
}

fn slow(wanted: String) -> ApiError {
    let text = format!("the API server has not answered for {} s", PATIENCE.as_secs());
    ApiError::new(Kind::Unreachable, wanted, text)
}

/// What a failed request means.
fn explain(wanted: String, error: &kube::Error) -> ApiError {
    let kube::Error::Api(status) = error else {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(deeper) = cause {
            let deeper_text = deeper.to_string();
            if !text.contains(&deeper_text) {
                text = format!("{text}: {deeper_text}");
            }
            cause = deeper.source();
        }
        return ApiError::new(Kind::Unreachable, wanted, text);
    };
    let kind = refusal(status.code, status.details.as_ref().map_or(0, |details| details.retry_after_seconds));
    ApiError::new(kind, wanted, format!("{} ({})", status.message, status.code))
}

/// What the server's code means.
pub(super) fn refusal(code: u16, retry_after_seconds: u32) -> Kind {
    let asked = (retry_after_seconds > 0).then(|| Duration::from_secs(u64::from(retry_after_seconds)));
    match code {
        404 => Kind::NotFound,
        409 => Kind::Conflict,
        410 => Kind::Gone,
        401 | 403 => Kind::Forbidden,
        429 | 500..=599 => Kind::Busy(asked),
        _ => Kind::Other,
    }
}

/// The certificates of a PEM file.
fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| error.to_string())?;
    if found.is_empty() {
        return Err("it holds no certificate".to_owned());
    }
    Ok(found.into_iter().map(|certificate| certificate.to_vec()).collect())
}

/// The namespace of the service account.
pub(super) fn namespace(account: &Path) -> Result<String, AccessError> {
    let path = account.join("namespace");
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Ok(_) => Err(AccessError::Account { path, reason: "it is empty".to_owned() }),
        Err(error) => Err(AccessError::Account { path, reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests;
