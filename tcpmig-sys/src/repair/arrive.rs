//! Bytes that arrive in a rebuilt connection as a segment of the peer.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::numbers::read_numbers;
use super::rebuild::RestoringSocket;
use crate::error::{Error, Result};
use crate::info::tcp_info;
use crate::packet::Segment;
use crate::packet::inject::Injector;
use crate::sockopt;

/// A looped packet is handled before `sendto` returns, or soon after by a kernel thread.
const ARRIVAL: Duration = Duration::from_millis(2);

/// The timestamp option with its padding (RFC 7323, appendix A).
const TIMESTAMP_BYTES: usize = 12;

impl RestoringSocket {
    /// Like [`RestoringSocket::fill_receive_queue`], but the last of the bytes arrive as a full segment of the peer,
    /// injected with the firewall mark `mark`; before the send queue is filled and before
    /// [`RestoringSocket::window`].
    ///
    /// For a receive buffer that the application gave a size: `buffer` bytes, as `SO_RCVBUF` is set, which this sets.
    /// From the first full segment that a socket gets, the kernel derives how
    /// much of its buffer holds bytes, and so how large a window it offers (`tcp_measure_rcv_mss` in
    /// `net/ipv4/tcp_input.c`, Linux 6.6); what is written in repair mode does not count. The first segment
    /// after a move may be a large aggregate, which promises more than single segments keep: the buffer then
    /// overflows inside the window, segments are dropped, and the peer waits for its retransmission timer.
    ///
    /// What cannot be injected, because the local address is not on this host, `CAP_NET_RAW` is missing or a packet
    /// filter drops it, is written in repair mode.
    ///
    /// # Errors
    ///
    /// Those of [`RestoringSocket::fill_receive_queue`].
    pub fn fill_measured_receive_queue(
        &mut self,
        bytes: &[u8],
        buffer: u32,
        mark: u32,
    ) -> Result<()> {
        let info = tcp_info(self.as_fd())?;
        let options = if info.timestamps { TIMESTAMP_BYTES } else { 0 };
        let segment = (info.advmss as usize).saturating_sub(options).max(1);
        let (written, last) = bytes.split_at(bytes.len().saturating_sub(segment));
        self.fill_receive_queue(written)?;
        // It may have grown. The window is promised out of what it is now.
        sockopt::set_receive_buffer(self.as_fd(), buffer)?;
        if last.len() == segment && self.receive_segment(last, mark)? {
            return Ok(());
        }
        self.fill_receive_queue(last)?;
        sockopt::set_receive_buffer(self.as_fd(), buffer)
    }

    /// Whether the bytes arrived.
    fn receive_segment(&mut self, bytes: &[u8], mark: u32) -> Result<bool> {
        if self.injector.is_none() {
            self.injector = self.open_injector().ok();
        }
        // It is no longer as it was connected, whether or not the bytes are seen to arrive.
        self.empty = None;
        match &self.injector {
            Some(injector) => {
                self.with_injected(mark, || self.inject_segment(injector, bytes, mark))
            }
            None => Ok(false),
        }
    }

    fn inject_segment(&self, injector: &Injector, bytes: &[u8], mark: u32) -> Result<bool> {
        let fd = self.as_fd();
        self.room()?;
        let numbers = read_numbers(fd)?;
        let timestamps = tcp_info(fd)?.timestamps;
        let segment = Segment::of_peer(numbers.rcv_nxt, numbers.snd_una, timestamps);
        match injector.inject(&segment, bytes, mark) {
            Ok(()) => {}
            Err(Error::NotLocal { .. } | Error::Call { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        // At most one segment.
        let expected = numbers.rcv_nxt.wrapping_add(bytes.len() as u32);
        let deadline = Instant::now() + ARRIVAL;
        while read_numbers(fd)?.rcv_nxt != expected {
            if Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::yield_now();
        }
        Ok(true)
    }
}
