//! A stream between a server and a client that follows a script.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What the client does when the server has nothing more to do.
#[derive(Clone)]
pub(super) enum Step {
    Send(Vec<u8>),
    /// It ends its side.
    End,
    /// It lets some time pass.
    Wait,
}

#[derive(Default)]
struct State {
    /// What the client has sent and the server has not read.
    sent: Vec<u8>,
    ended: bool,
    /// How many bytes the server can write before the client reads more.
    room: usize,
    written: Vec<u8>,
    /// The server has ended its side.
    closed: bool,
    waker: Option<Waker>,
}

/// The server's end.
pub(super) struct Wire(Arc<Mutex<State>>);

/// The client's.
pub(super) struct Client {
    state: Arc<Mutex<State>>,
    steps: VecDeque<Step>,
    reads: usize,
}

/// What a client has seen.
#[derive(PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) bytes: Vec<u8>,
    pub(super) closed: bool,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let begin = &self.bytes[..self.bytes.len().min(600)];
        let end = &self.bytes[self.bytes.len().saturating_sub(100)..];
        let text = [begin, end].map(|bytes| bytes.escape_ascii().to_string());
        write!(
            f,
            "{} bytes, closed: {}\n{}\n...{}",
            self.bytes.len(),
            self.closed,
            text[0],
            text[1]
        )
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap()
}

/// A client that makes room for so many bytes at a time.
pub(super) fn wire(steps: &[Step], reads: usize) -> (Wire, Client) {
    let state = Arc::new(Mutex::new(State {
        room: reads,
        ..State::default()
    }));
    let client = Client {
        state: state.clone(),
        steps: steps.iter().cloned().collect(),
        reads,
    };
    (Wire(state), client)
}

impl Client {
    /// Reads if the server has written, else goes on with the script. Whether there was anything to do.
    pub(super) fn go_on(&mut self) -> bool {
        let mut state = lock(&self.state);
        let goes_on = if state.room < self.reads {
            state.room = self.reads;
            true
        } else {
            match self.steps.pop_front() {
                Some(Step::Send(bytes)) => state.sent.extend(bytes),
                Some(Step::End) => state.ended = true,
                Some(Step::Wait) => {}
                None => return false,
            }
            true
        };
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        goes_on
    }

    pub(super) fn seen(&self) -> Seen {
        let state = lock(&self.state);
        Seen {
            bytes: state.written.clone(),
            closed: state.closed,
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        lock(&self.0).closed = true;
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = lock(&self.0);
        if state.sent.is_empty() && !state.ended {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let len = buffer.remaining().min(state.sent.len());
        buffer.put_slice(&state.sent[..len]);
        state.sent.drain(..len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.0);
        let len = bytes.len().min(state.room);
        if len == 0 && !bytes.is_empty() {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if state.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        state.room -= len;
        state.written.extend_from_slice(&bytes[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.0).closed = true;
        Poll::Ready(Ok(()))
    }
}
