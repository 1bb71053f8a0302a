//! An agent in memory, for tests of what asks it.

use std::sync::{Arc, Mutex};

use tokio::sync::{oneshot, watch};
use weave_proto::PeerName;
use weave_proto::local::control::{Failure, FailureCode};
use weave_proto::local::status::{Status, TargetStatus};

use super::Control;
use crate::config::Target;

/// Does what it is told to its own status document, and remembers it.
#[derive(Debug, Clone)]
pub(crate) struct FakeAgent {
    status: Arc<watch::Sender<Arc<Status>>>,
    heard: Arc<Mutex<Vec<String>>>,
    hangs: bool,
    end: Arc<Mutex<Option<oneshot::Sender<()>>>>,
}

impl FakeAgent {
    pub(crate) fn new(status: Status) -> Self {
        let (status, _) = watch::channel(Arc::new(status));
        Self { status: Arc::new(status), heard: Arc::default(), hangs: false, end: Arc::default() }
    }

    /// An agent whose brain never answers.
    pub(crate) fn hanging(status: Status) -> Self {
        Self { hangs: true, ..Self::new(status) }
    }

    pub(crate) fn feed(&self) -> watch::Receiver<Arc<Status>> {
        self.status.subscribe()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(|status| change(Arc::make_mut(status)));
    }

    /// Whom to tell when it is told to end.
    pub(crate) fn on_shutdown(&self, end: oneshot::Sender<()>) {
        *self.end.lock().unwrap() = Some(end);
    }

    /// What it was told, a line each.
    pub(crate) fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    async fn hear(&self, line: String) {
        self.heard.lock().unwrap().push(line);
        if self.hangs {
            std::future::pending::<()>().await;
        }
    }
}

impl Control for FakeAgent {
    async fn connect(&self, targets: Vec<Target>, replace: bool) -> Result<(), Failure> {
        self.hear(format!("connect {targets:?} {replace}")).await;
        self.change(|status| {
            if replace {
                status.router.targets.clear();
            }
            let new = targets.iter().map(|it| TargetStatus { target: it.to_string(), problem: None });
            status.router.targets.extend(new);
        });
        Ok(())
    }

    async fn forget(&self, targets: Vec<Target>) -> Result<(), Failure> {
        self.hear(format!("forget {targets:?}")).await;
        let names: Vec<_> = targets.iter().map(ToString::to_string).collect();
        self.change(|status| status.router.targets.retain(|it| !names.contains(&it.target)));
        Ok(())
    }

    async fn remove_peer(&self, peer: PeerName, force: bool) -> Result<u64, Failure> {
        self.hear(format!("remove {peer} {force}")).await;
        let status = Arc::clone(&self.status.borrow());
        let is_alive = status.router.peers.iter().any(|it| it.name == peer && it.reachable);
        if is_alive && !force {
            let message = format!("{peer} is alive: stop it first, or use --force");
            return Err(Failure::new(FailureCode::Refused, message));
        }
        let shares = status.ipam.iter().flat_map(|ipam| &ipam.shares);
        Ok(shares.filter(|share| share.peer == peer).map(|share| share.addresses).sum())
    }

    async fn shutdown(&self) -> Result<(), Failure> {
        self.hear("shutdown".to_owned()).await;
        if let Some(end) = self.end.lock().unwrap().take() {
            let _ = end.send(());
        }
        Ok(())
    }
}
