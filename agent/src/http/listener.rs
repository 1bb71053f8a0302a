//! A listener that bounds what strangers can hold: so many connections, each closed after so much silence.

use std::fs;
use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use crate::config::ListenAddress;

/// Connections at a time: a few people, a few scrapers; more wait in the socket's queue.
pub(super) const MAX_CONNECTIONS: usize = 64;

/// A request on which nothing moves for so long is given up. Longer than any answer is waited for.
pub(super) const SILENCE: Duration = Duration::from_secs(60);

/// How long a caller may take to ask, from its connection or the last answer on: who connects and says nothing, or says
/// it letter by letter, must not keep others from the few places. Callers here are on this machine or a scraper nearby,
/// and ask in one packet.
pub(super) const ASKING: Duration = Duration::from_secs(5);

/// After a failed accept, such as for want of file descriptors, how long to wait before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A bounded listener on a TCP port or a unix socket.
#[derive(Debug)]
pub(super) struct Bounded {
    socket: Socket,
    address: ListenAddress,
    slots: Arc<Semaphore>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Bounded {
    /// Listens; none if the address is off.
    pub(super) fn bind(address: &ListenAddress) -> io::Result<Option<Self>> {
        let (socket, address) = match address {
            ListenAddress::Off => return Ok(None),
            ListenAddress::Tcp(wanted) => {
                let listener = StdTcpListener::bind(wanted)?;
                listener.set_nonblocking(true)?;
                let bound = ListenAddress::Tcp(listener.local_addr()?);
                (Socket::Tcp(TcpListener::from_std(listener)?), bound)
            }
            ListenAddress::Unix(path) => (Socket::Unix(bind_unix(path)?), address.clone()),
        };
        Ok(Some(Self { socket, address, slots: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }))
    }

    /// Where it listens, with the port that the system chose where 0 was asked for.
    pub(super) fn address(&self) -> &ListenAddress {
        &self.address
    }

    async fn accept_any(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match &self.socket {
            Socket::Tcp(listener) => Box::new(listener.accept().await?.0),
            Socket::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// A socket that nobody listens on any more is replaced; anything else of that name is left alone.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket && StdUnixStream::connect(path).is_err() {
        fs::remove_file(path)?;
    }
    let listener = StdUnixListener::bind(path)?;
    // Readable for everybody, as the TCP port would be.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

impl axum::serve::Listener for Bounded {
    type Io = Guarded;
    type Addr = ListenAddress;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
                // The semaphore is never closed.
                std::future::pending::<()>().await;
                continue;
            };
            match self.accept_any().await {
                Ok(stream) => return (Guarded::new(stream, slot), self.address.clone()),
                Err(error) => {
                    tracing::warn!(%error, address = %self.address, "cannot accept an HTTP connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address.clone())
    }
}

/// Either kind of stream.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection with its slot, which fails when its caller takes too long.
///
/// ```text
///   asking (ASKING in all) ---- blank line ----> asked (SILENCE each time something moves)
///      ^---------------- answer written ------------------'
/// ```
pub(super) struct Guarded {
    stream: Box<dyn Stream>,
    stage: Stage,
    patience: Pin<Box<Sleep>>,
    _slot: OwnedSemaphorePermit,
}

/// How far the caller has come.
enum Stage {
    /// Its request is not whole; so many line ends were read in a row.
    Asking { line_ends: u8 },
    /// It waits for the answer.
    Asked,
}

impl Guarded {
    fn new(stream: Box<dyn Stream>, slot: OwnedSemaphorePermit) -> Self {
        let patience = Box::pin(tokio::time::sleep(ASKING));
        Self { stream, stage: Stage::Asking { line_ends: 0 }, patience, _slot: slot }
    }

    /// The caller has said this. A request ends with the blank line behind its header, for there is nothing here that a
    /// body could be sent to.
    fn hear(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match (&mut self.stage, byte) {
                (Stage::Asking { line_ends }, b'\n') => *line_ends += 1,
                (Stage::Asking { .. }, b'\r') | (Stage::Asked, _) => {}
                (Stage::Asking { line_ends }, _) => *line_ends = 0,
            }
            if matches!(self.stage, Stage::Asking { line_ends: 2.. }) {
                self.stage = Stage::Asked;
            }
        }
        if matches!(self.stage, Stage::Asked) {
            self.patience.as_mut().reset(Instant::now() + SILENCE);
        }
    }

    /// Some of the answer has gone out.
    fn answered(&mut self) {
        self.stage = Stage::Asking { line_ends: 0 };
        self.patience.as_mut().reset(Instant::now() + ASKING);
    }

    /// Nothing moves.
    fn wait<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        match self.patience.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let known = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Ready(result) => {
                self.hear(&buffer.filled()[known..]);
                Poll::Ready(result)
            }
            Poll::Pending => self.wait(context),
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Ready(result) => {
                self.answered();
                Poll::Ready(result)
            }
            Poll::Pending => self.wait(context),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
