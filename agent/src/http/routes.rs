//! What can be asked, and the answers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use serde::Deserialize;
use serde_json::json;
use weave_proto::local::status::Status;

use super::listener::Bounded;
use super::{StatusFeed, metrics};
use crate::render::{self, View};

/// How long `/ring` waits: less than a silent connection is kept.
const RING_PATIENCE: Duration = Duration::from_secs(50);

const PATHS: &str = "\
/status, /status/connections, /status/peers, /status/ipam, /status/targets: as `weave status` prints them, or JSON \
for Accept: application/json
/report: all of it as JSON; /report?format=/ipam/range: one value
/ip: the addresses given out on this node; /ip/CONTAINER: those of one container
/ring: answers once the range is split among the peers
/healthz, /readyz: whether the agent lives, and whether it can attach pods
/metrics: for Prometheus
";

pub(super) async fn serve(listener: Bounded, routes: Router) {
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!(%error, "an HTTP server ended");
    }
}

pub(super) fn status(feed: StatusFeed) -> Router {
    Router::new()
        .route("/status", page(View::Summary))
        .route("/status/connections", page(View::Connections))
        .route("/status/peers", page(View::Peers))
        .route("/status/ipam", page(View::Ipam))
        .route("/status/targets", page(View::Targets))
        .route("/report", get(report))
        .route("/ip", get(addresses))
        .route("/ip/{container}", get(addresses_of))
        .route("/ring", get(ring))
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .route("/metrics", get(metrics))
        .fallback(|request: Request| async move { unknown(&request, PATHS) })
        .layer(middleware::from_fn(only_local_names))
        .layer(middleware::from_fn(only_reading))
        .with_state(feed)
}

pub(super) fn metrics_only(feed: StatusFeed) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .fallback(|request: Request| async move { unknown(&request, "/metrics: for Prometheus\n") })
        .layer(middleware::from_fn(only_reading))
        .with_state(feed)
}

async fn only_reading(request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let message = "this server is read-only: change something with the command line, as root: `weave connect`, \
                   `weave forget`, `weave rmpeer`, `weave reset`\n";
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, message.to_owned());
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

/// A page from elsewhere whose name was made to point here still sends that name.
async fn only_local_names(request: Request, next: Next) -> Response {
    let named = |host: &HeaderValue| host.to_str().is_ok_and(is_local_name);
    let by_uri = request.uri().host().is_none_or(is_local_name);
    if by_uri && request.headers().get_all(HOST).iter().all(named) {
        return next.run(request).await;
    }
    let message =
        "the Host header names neither an address nor localhost: ask http://127.0.0.1:6784 directly\n";
    plain(StatusCode::FORBIDDEN, message.to_owned())
}

/// Whether a host, with a port or without, is an address or `localhost`. What is empty names nobody.
fn is_local_name(host: &str) -> bool {
    if let Some(bracketed) = host.strip_prefix('[') {
        let Some((address, port)) = bracketed.split_once(']') else { return false };
        return address.parse::<IpAddr>().is_ok() && (port.is_empty() || is_port(port));
    }
    let name = match host.split_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) => return false,
        None => host,
    };
    name.is_empty() || name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

fn unknown(request: &Request, paths: &'static str) -> Response {
    plain(StatusCode::NOT_FOUND, format!("there is nothing at {:?}; there is\n{paths}", request.uri().path()))
}

fn page(view: View) -> MethodRouter<StatusFeed> {
    get(move |State(feed): State<StatusFeed>, headers: HeaderMap| async move {
        shown(view, &current(&feed), &headers)
    })
}

fn shown(view: View, status: &Status, headers: &HeaderMap) -> Response {
    // As Weave did: the text is the same, the code tells whether the agent is ready.
    let code = if view == View::Summary && !status.is_ready() {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    let wants_json = headers
        .get_all(ACCEPT)
        .iter()
        .any(|accept| accept.to_str().is_ok_and(|accept| accept.contains("application/json")));
    if wants_json {
        json_text(code, render::json(status, view))
    } else {
        plain(code, render::text(status, view))
    }
}

#[derive(Debug, Deserialize)]
struct ReportQuery {
    format: Option<String>,
}

async fn report(State(feed): State<StatusFeed>, Query(query): Query<ReportQuery>) -> Response {
    let status = current(&feed);
    match query.format.as_deref() {
        None | Some("json") => json_text(StatusCode::OK, render::json(&status, View::Summary)),
        Some(pointer) => match render::value_at(&status, pointer) {
            Ok(text) => plain(StatusCode::OK, text),
            Err(message) => plain(StatusCode::BAD_REQUEST, format!("{message}\n")),
        },
    }
}

/// Weave's shape: `{"owned":[{"containerid":…,"addrs":[…]}]}`.
async fn addresses(State(feed): State<StatusFeed>) -> Response {
    let status = current(&feed);
    let owned: Vec<_> = render::containers(&status, &[])
        .into_iter()
        .map(|(container, allocations)| {
            let addresses: Vec<_> =
                allocations.iter().map(|it| render::with_prefix(&status, it.address)).collect();
            json!({ "containerid": container, "addrs": addresses })
        })
        .collect();
    json_text(StatusCode::OK, serde_json::to_string(&json!({ "owned": owned })).map(|text| text + "\n"))
}

async fn addresses_of(State(feed): State<StatusFeed>, Path(container): Path<String>) -> Response {
    let status = current(&feed);
    let found = render::containers(&status, &[]).into_iter().find(|(id, _)| *id == container);
    match found {
        Some((_, allocations)) => {
            let addresses: Vec<_> =
                allocations.iter().map(|it| render::with_prefix(&status, it.address)).collect();
            plain(StatusCode::OK, addresses.join(" ") + "\n")
        }
        None => plain(
            StatusCode::NOT_FOUND,
            format!("no container {container:?} has an address on this node: /ip lists those that have\n"),
        ),
    }
}

/// Blocks until the range is split, as Weave did, but not for ever.
async fn ring(State(mut feed): State<StatusFeed>) -> Response {
    let split = |status: &Arc<Status>| status.ipam.as_ref().is_some_and(|ipam| !ipam.entries.is_empty());
    if let Ok(Ok(_)) = tokio::time::timeout(RING_PATIENCE, feed.wait_for(split)).await {
        return plain(StatusCode::OK, "the range is split\n".to_owned());
    }
    let state = current(&feed).ipam.as_ref().map_or_else(|| "starting".to_owned(), |ipam| ipam.state.clone());
    let mut response = plain(
        StatusCode::SERVICE_UNAVAILABLE,
        format!("the range is not split yet: {}; ask again\n", render::clean_lines(&state)),
    );
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

async fn health(State(feed): State<StatusFeed>) -> Response {
    // The brain holds the other end.
    match feed.has_changed() {
        Ok(_) => plain(StatusCode::OK, "ok\n".to_owned()),
        Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "the agent ends\n".to_owned()),
    }
}

async fn readiness(State(feed): State<StatusFeed>) -> Response {
    let status = current(&feed);
    if status.is_ready() {
        return plain(StatusCode::OK, "ready\n".to_owned());
    }
    let awaited = render::clean_lines(&status.waiting_for.join("; "));
    plain(StatusCode::SERVICE_UNAVAILABLE, format!("{awaited}\n"))
}

async fn metrics(State(feed): State<StatusFeed>, headers: HeaderMap) -> Response {
    let wants =
        |accept: &HeaderValue| accept.to_str().is_ok_and(|it| it.contains("application/openmetrics-text"));
    let format = if headers.get_all(ACCEPT).iter().any(wants) {
        metrics::Format::OpenMetrics
    } else {
        metrics::Format::Classic
    };
    match metrics::render(current(&feed), format) {
        Ok(text) => {
            let kind = [(CONTENT_TYPE, HeaderValue::from_static(format.content_type()))];
            (kind, text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be written");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n".to_owned())
        }
    }
}

fn current(feed: &StatusFeed) -> Arc<Status> {
    Arc::clone(&feed.borrow())
}

fn plain(code: StatusCode, text: String) -> Response {
    reply(code, "text/plain; charset=utf-8", text)
}

fn json_text(code: StatusCode, text: serde_json::Result<String>) -> Response {
    match text {
        Ok(text) => reply(code, "application/json", text),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written as JSON");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be written as JSON\n".to_owned())
        }
    }
}

fn reply(code: StatusCode, kind: &'static str, text: String) -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (code, headers, text).into_response()
}
