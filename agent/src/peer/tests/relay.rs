//! A road between two peers that a test can block: it passes datagrams on, both ways, until told otherwise.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;

use crate::task::{self, Task};

pub(super) struct Relay {
    addr: SocketAddr,
    blocked: Arc<AtomicBool>,
    _task: Task,
}

impl Relay {
    /// A road to `target`, for one traveller.
    pub(super) async fn start(target: SocketAddr) -> Self {
        let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = near.local_addr().unwrap();
        let blocked = Arc::new(AtomicBool::new(false));
        let task = task::spawn("relay", carry(near, far, target, Arc::clone(&blocked)));
        Self { addr, blocked, _task: task }
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(super) fn swallow_everything(&self) {
        self.blocked.store(true, Ordering::SeqCst);
    }

    pub(super) fn pass_everything(&self) {
        self.blocked.store(false, Ordering::SeqCst);
    }
}

async fn carry(near: UdpSocket, far: UdpSocket, target: SocketAddr, blocked: Arc<AtomicBool>) {
    let (mut up, mut down) = ([0; 65_536], [0; 65_536]);
    let mut traveller = None;
    loop {
        tokio::select! {
            Ok((len, from)) = near.recv_from(&mut up) => {
                traveller = Some(from);
                if !blocked.load(Ordering::SeqCst) {
                    far.send_to(&up[..len], target).await.unwrap();
                }
            }
            Ok((len, _)) = far.recv_from(&mut down) => {
                if let Some(traveller) = traveller.filter(|_| !blocked.load(Ordering::SeqCst)) {
                    near.send_to(&down[..len], traveller).await.unwrap();
                }
            }
        }
    }
}
