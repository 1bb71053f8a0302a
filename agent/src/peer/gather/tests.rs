use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

use proptest::prelude::*;

use super::*;

/// A socket that keeps what it is given: the lengths of the datagrams of each call.
#[derive(Debug)]
struct Kept {
    calls: Mutex<Vec<(SocketAddr, Vec<usize>)>>,
    bytes: Mutex<Vec<u8>>,
    /// How many calls it still takes.
    room: AtomicUsize,
    segments: usize,
}

impl Kept {
    fn new(room: usize, segments: usize) -> Arc<Self> {
        let (calls, bytes) = (Mutex::default(), Mutex::default());
        Arc::new(Self { calls, bytes, room: AtomicUsize::new(room), segments })
    }

    fn calls(&self) -> Vec<Vec<usize>> {
        self.calls.lock().unwrap().iter().map(|(_, lengths)| lengths.clone()).collect()
    }
}

#[derive(Debug)]
struct Writable(Arc<Kept>);

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.room.load(Ordering::SeqCst) > 0 {
            return Poll::Ready(Ok(()));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl AsyncUdpSocket for Kept {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let taken = self.room.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |room| room.checked_sub(1));
        taken.map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        let lengths: Vec<_> = transmit.contents.chunks(segment).map(<[u8]>::len).collect();
        assert!(
            transmit.contents.len() <= MOST && lengths.len() <= MOST_SEGMENTS,
            "the kernel takes no more"
        );
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push((transmit.destination, lengths));
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(transmit.contents);
        Ok(())
    }

    fn poll_recv(
        &self,
        _: &mut Context<'_>,
        _: &mut [IoSliceMut<'_>],
        _: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([0, 0, 0, 0], 0)))
    }

    fn max_transmit_segments(&self) -> usize {
        self.segments
    }
}

/// What quinn sends at once: to whom, and datagrams of which length, the last of which may be shorter.
type Sent = (u8, Vec<usize>);

fn full(datagrams: usize) -> Sent {
    (1, vec![1472; datagrams])
}

fn send(socket: &Socket, (to, lengths): &Sent, at: &mut u8) -> io::Result<()> {
    let contents: Vec<u8> = lengths.iter().flat_map(|&len| vec![0; len]).collect();
    let contents: Vec<u8> = contents
        .iter()
        .map(|_| {
            *at = at.wrapping_add(1);
            *at
        })
        .collect();
    socket.try_send(&Transmit {
        destination: SocketAddr::from(([10, 0, 0, *to], 6783)),
        ecn: None,
        contents: &contents,
        segment_size: (lengths.len() > 1).then(|| lengths[0]),
        src_ip: None,
    })
}

/// A task that sends so much at each of quinn's turns, as quinn does: it asks for another turn while there is more.
fn task(kept: &Arc<Kept>, turns: Vec<Vec<Sent>>) -> Turns {
    let socket: Arc<dyn AsyncUdpSocket> = Arc::clone(kept) as _;
    let ours = Socket(Arc::clone(&socket));
    let mut turns: VecDeque<_> = turns.into();
    let mut at = 0;
    let driver = std::future::poll_fn(move |cx| {
        for sent in turns.pop_front().unwrap_or_default() {
            send(&ours, &sent, &mut at).unwrap();
        }
        if turns.is_empty() {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    });
    let poller = Arc::clone(&socket).create_io_poller();
    Turns { driver: Some(Box::pin(driver)), left: None, poller, socket }
}

fn finish(task: Turns) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(task);
}

#[test]
fn what_is_sent_in_a_turn_leaves_by_few_calls() {
    let kept = Kept::new(usize::MAX, 64);
    // 44 datagrams fill 64 KiB.
    finish(task(&kept, vec![vec![full(10); 6]]));
    assert_eq!(kept.calls(), [vec![1472; 40], vec![1472; 20]]);
}

#[test]
fn nothing_waits_for_the_next_turn() {
    let kept = Kept::new(usize::MAX, 64);
    let mut task = task(&kept, vec![vec![full(10), full(10)]; 2]);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut task).poll(&mut cx).is_pending());
    assert_eq!(kept.calls(), [vec![1472; 20]]);
    assert!(Pin::new(&mut task).poll(&mut cx).is_ready());
    assert_eq!(kept.calls(), [vec![1472; 20], vec![1472; 20]]);
}

#[test]
fn a_datagram_by_itself_waits_for_nobody() {
    let kept = Kept::new(usize::MAX, 64);
    finish(task(&kept, vec![vec![full(10), (1, vec![50]), full(10)]]));
    assert_eq!(kept.calls(), [vec![1472; 10], vec![50], vec![1472; 10]]);
}

#[test]
fn what_is_sent_outside_of_a_turn_leaves_at_once() {
    let kept = Kept::new(usize::MAX, 64);
    let socket = Socket(Arc::clone(&kept) as _);
    send(&socket, &full(10), &mut 0).unwrap();
    assert_eq!(kept.calls(), [vec![1472; 10]]);
}

#[test]
fn a_socket_that_does_not_segment_is_given_what_quinn_gives() {
    let kept = Kept::new(usize::MAX, 1);
    finish(task(&kept, vec![vec![full(1), full(1), full(1)]]));
    assert_eq!(kept.calls(), vec![vec![1472]; 3]);
}

#[test]
fn a_full_socket_gets_the_rest_when_it_has_room() {
    let kept = Kept::new(1, 64);
    let mut task = task(&kept, vec![vec![full(10), (2, vec![1000, 1000])]]);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut task).poll(&mut cx).is_pending(), "the driver has ended, and something is left");
    assert_eq!(kept.calls(), [vec![1472; 10]]);
    kept.room.store(1, Ordering::SeqCst);
    assert!(Pin::new(&mut task).poll(&mut cx).is_ready());
    assert_eq!(kept.calls(), [vec![1472; 10], vec![1000; 2]]);
}

proptest! {
    #[test]
    fn gathering_changes_neither_bytes_nor_order_nor_lengths(
        turns in proptest::collection::vec(
            proptest::collection::vec(
                (1_u8..3, 1_usize..11, prop_oneof![Just(1472_usize), 100_usize..9000], 1_usize..100),
                0..8,
            ),
            1..8,
        ),
    ) {
        let turns: Vec<Vec<Sent>> = turns.into_iter().map(|turn| {
            turn.into_iter().map(|(to, datagrams, len, last)| {
                let mut lengths = vec![len.min(MOST / datagrams); datagrams];
                if last < 50 {
                    *lengths.last_mut().unwrap() = last;
                }
                (to, lengths)
            }).collect()
        }).collect();
        let kept = Kept::new(usize::MAX, 64);
        finish(task(&kept, turns.clone()));

        let single = |calls: &[(SocketAddr, Vec<usize>)]| -> Vec<(SocketAddr, usize)> {
            calls.iter().flat_map(|(to, lengths)| lengths.iter().map(|&len| (*to, len))).collect()
        };
        let sent: Vec<_> = turns.into_iter().flatten()
            .map(|(to, lengths)| (SocketAddr::from(([10, 0, 0, to], 6783)), lengths)).collect();
        prop_assert_eq!(single(&kept.calls.lock().unwrap()), single(&sent));
        let bytes = kept.bytes.lock().unwrap();
        let all: usize = sent.iter().flat_map(|(_, lengths)| lengths).sum();
        let expected: Vec<u8> = (0..all).map(|at| (at + 1) as u8).collect();
        prop_assert!(*bytes == expected);
    }
}
