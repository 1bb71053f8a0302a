//! Performs effects in their order, durable ones first.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use weave_ipam::{Answer, RequestError};
use weave_proto::peer::{Hello, Message, Refusal};
use weave_router::{NodeView, StoreOp};
use weave_topology::{DialId, LinkId, Target};

use super::{Caller, Input};
use crate::dataplane::driver::Order;
use crate::peer::PeerNet;
use crate::store::{Store, StoreError};
use crate::task;

/// Something to do outside the brain.
pub enum Effect {
    /// Make durable before anything behind it.
    Persist(Vec<StoreOp>),
    /// Say this on new links.
    Hello(Hello),
    /// Send a message.
    Send(LinkId, Message),
    /// Try to reach an address.
    Dial(DialId, SocketAddr),
    /// Look up a name.
    Resolve(Target),
    /// Tell why, and close.
    Close(LinkId, Refusal),
    /// Make the kernel so.
    Publish(NodeView),
    /// End, and start again as a new peer.
    Rejoin,
    /// Have the data plane do this.
    Tunnel(Order),
    /// Answer a caller.
    Reply(Caller, Box<Result<Answer, RequestError>>),
    /// Tell a caller that everything before this is durable.
    Tell(oneshot::Sender<()>),
}

/// Those who do it.
pub struct Doers {
    /// Keeps what must not be forgotten.
    pub store: Arc<Store>,
    /// Talks to other peers.
    pub peers: PeerNet,
    /// What is said on new links.
    pub hello: watch::Sender<Hello>,
    /// The node as the kernel should see it, newest wins.
    pub view: watch::Sender<Option<NodeView>>,
    /// The data plane in user space.
    pub tunnel: mpsc::UnboundedSender<Order>,
    /// The port of targets that name none.
    pub port: u16,
    /// Has the agent end and start again.
    pub rejoin: mpsc::Sender<()>,
    /// Back to the brain, for names that were looked up.
    pub inputs: mpsc::Sender<Input>,
}

/// Batches that are taken at once, and whose changes are committed together.
const BATCHES: usize = 256;

/// Performs effects until the brain is gone or it is time to say goodbye, and says it.
///
/// # Errors
/// The store cannot be written. Nothing behind the failed transaction has been performed, and nothing ever will be.
pub async fn performer(
    mut effects: mpsc::Receiver<Vec<Effect>>,
    doers: Doers,
    mut goodbye: watch::Receiver<bool>,
) -> Result<(), StoreError> {
    let mut lookups = task::Group::new("resolve");
    let mut batches = Vec::new();
    loop {
        tokio::select! {
            taken = effects.recv_many(&mut batches, BATCHES) => if taken == 0 { break },
            _ = goodbye.changed() => break,
        }
        let (ops, rest) = split(batches.drain(..).flatten());
        if !ops.is_empty() {
            let store = Arc::clone(&doers.store);
            commit(store, ops).await?;
        }
        for effect in rest {
            doers.perform(effect, &mut lookups);
        }
    }
    doers.peers.shutdown().await;
    Ok(())
}

/// All operations of all `Persist` in their order, and everything else in its order.
fn split(effects: impl Iterator<Item = Effect>) -> (Vec<StoreOp>, Vec<Effect>) {
    let (mut ops, mut rest) = (Vec::new(), Vec::new());
    for effect in effects {
        if let Effect::Persist(more) = effect {
            ops.extend(more);
        } else {
            rest.push(effect);
        }
    }
    (ops, rest)
}

async fn commit(store: Arc<Store>, ops: Vec<StoreOp>) -> Result<(), StoreError> {
    let committed = tokio::task::spawn_blocking(move || store.commit(ops)).await;
    match committed {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

impl Doers {
    fn perform(&self, effect: Effect, lookups: &mut task::Group<()>) {
        match effect {
            // `split` has taken these out.
            Effect::Persist(_) => {}
            Effect::Hello(hello) => {
                self.hello.send_replace(hello);
            }
            Effect::Send(link, message) => self.peers.send(link, message),
            Effect::Dial(dial, addr) => self.peers.dial(dial, addr),
            Effect::Resolve(target) => lookups.spawn(resolve(target, self.port, self.inputs.clone())),
            Effect::Close(link, refusal) => self.peers.close(link, refusal),
            // Fails only when the agent ends.
            Effect::Tunnel(order) => drop(self.tunnel.send(order)),
            Effect::Publish(view) => {
                let _ending = self.tunnel.send(Order::Table(view.table.clone()));
                self.view.send_replace(Some(view));
            }
            // A full queue means that it has been asked already.
            Effect::Rejoin => drop(self.rejoin.try_send(())),
            // A caller that has gone away does not want its answer; the brain takes the request back.
            Effect::Reply(caller, result) => drop(caller.send(*result)),
            Effect::Tell(done) => drop(done.send(())),
        }
    }
}

/// Looks a name up, and tells the brain.
async fn resolve(target: Target, port: u16, inputs: mpsc::Sender<Input>) {
    let Some(name) = target.name().map(str::to_owned) else { return };
    let port = target.port().unwrap_or(port);
    let found = tokio::net::lookup_host((name, port)).await;
    let found = found.map(Iterator::collect).map_err(|error| error.to_string());
    // If the brain has ended, nobody wants to know.
    let _ = inputs.send(Input::Resolved(target, found)).await;
}
