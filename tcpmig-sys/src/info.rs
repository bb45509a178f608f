//! The parts of `TCP_INFO` that a move needs.

use std::os::fd::BorrowedFd;

use crate::error::{Error, Result};
use crate::raw;
use crate::sockopt::Scales;
pub use crate::state::State;
use crate::uapi;

/// The first part of `struct tcp_info`, which every kernel since 4.10 fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// The state.
    pub state: State,
    /// The timestamp option is in use.
    pub timestamps: bool,
    /// Timestamps count microseconds (Linux 6.7).
    pub timestamps_in_microseconds: bool,
    /// Selective acknowledgements are in use.
    pub sack: bool,
    /// Shifts of the peer's and of our windows, if the option is in use.
    pub window_scale: Option<Scales>,
    /// Current maximum segment size for sending, in bytes.
    pub snd_mss: u32,
    /// Largest segment that this end told the peer it takes, in bytes.
    pub advmss: u32,
    /// Retransmission timeout in microseconds.
    pub rto: u32,
    /// Smoothed round-trip time in microseconds.
    pub rtt: u32,
    /// Congestion window in segments.
    pub snd_cwnd: u32,
    /// Segments retransmitted since the connection began.
    pub total_retrans: u32,
    /// What the peer has acknowledged since the connection began, in bytes and FIN.
    pub bytes_acked: u64,
    /// What was received in order since the connection began, in bytes and FIN.
    pub bytes_received: u64,
}

/// Counters in `struct tcp_info`, which tell what the state does not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counters {
    /// Both ends have agreed on timestamps, SACK or window scaling.
    pub(crate) options_agreed: bool,
    /// Retransmission timers that ran out since something was acknowledged last.
    pub(crate) retransmits: u8,
    /// How many of those doubled the timeout.
    pub(crate) backoff: u8,
    /// Segments sent and not acknowledged; of a listener, connections that wait to be accepted.
    pub(crate) unacked: u32,
    /// Of a listener, how many may wait.
    pub(crate) sacked: u32,
    /// Segments received.
    pub(crate) segs_in: u32,
    /// Segments with data that were sent.
    pub(crate) data_segs_out: u32,
    /// Segments that the peer has acknowledged, its handshake included.
    pub(crate) delivered: u32,
    /// Milliseconds since the retransmission timer ran out first and nothing was acknowledged. 0 if it has not, or
    /// before Linux 6.7.
    pub(crate) total_rto_time: u32,
}

/// The first bytes of `struct tcp_info` (include/uapi/linux/tcp.h), which only ever grows at its end.
struct Filled<const N: usize>([u8; N]);

impl<const N: usize> Filled<N> {
    /// As many of them as there are, which have to be so many at least; the others are 0.
    fn read(fd: BorrowedFd<'_>, least: usize) -> Result<Self> {
        const CALL: &str = "getsockopt(TCP_INFO)";
        let mut bytes = [0; N];
        let got = raw::get_bytes(fd, libc::IPPROTO_TCP, libc::TCP_INFO, CALL, &mut bytes)?;
        if got < least {
            return Err(Error::Length {
                call: CALL,
                got,
                expected: least,
            });
        }
        Ok(Self(bytes))
    }

    fn word(&self, offset: usize) -> u32 {
        let mut word = [0; 4];
        word.copy_from_slice(&self.0[offset..offset + 4]);
        u32::from_ne_bytes(word)
    }

    fn long(&self, offset: usize) -> u64 {
        let mut long = [0; 8];
        long.copy_from_slice(&self.0[offset..offset + 8]);
        u64::from_ne_bytes(long)
    }
}

/// `getsockopt(fd, TCP_INFO)`, the fields that Linux 4.18 has all of.
pub(crate) fn counters(fd: BorrowedFd<'_>) -> Result<Counters> {
    const FILLED: usize = 196;
    const WITH_RTO_TIME: usize = 248;
    const AGREED: u8 = uapi::TCPI_OPT_TIMESTAMPS | uapi::TCPI_OPT_SACK | uapi::TCPI_OPT_WSCALE;
    // What the kernel does not have stays 0.
    let filled = Filled::<WITH_RTO_TIME>::read(fd, FILLED)?;
    let (bytes, word) = (&filled.0, |offset| filled.word(offset));
    Ok(Counters {
        options_agreed: bytes[5] & AGREED != 0,
        retransmits: bytes[2],
        backoff: bytes[4],
        unacked: word(24),
        sacked: word(28),
        segs_in: word(140),
        data_segs_out: word(156),
        delivered: word(192),
        total_rto_time: word(244),
    })
}

/// `getsockopt(fd, TCP_INFO)`
///
/// # Errors
///
/// [`Error`] of the call; [`Error::Length`] from a kernel that fills less.
#[doc(alias = "TCP_INFO")]
pub fn tcp_info(fd: BorrowedFd<'_>) -> Result<Info> {
    const FILLED: usize = 136;
    let filled = Filled::<FILLED>::read(fd, FILLED)?;
    let (bytes, word) = (&filled.0, |offset| filled.word(offset));
    let long = |offset| filled.long(offset);
    let options = bytes[5];
    let scales = bytes[6];
    // `snd_wscale:4, rcv_wscale:4`: bit-fields fill a byte from its low end on
    // little-endian machines and from its high end on big-endian ones.
    let (low, high) = (scales & 0xf, scales >> 4);
    let (snd, rcv) = if cfg!(target_endian = "little") {
        (low, high)
    } else {
        (high, low)
    };
    let state = State::from_number(bytes[0]).ok_or_else(|| Error::NotAsAsked {
        what: "the state in TCP_INFO",
        asked: "1 to 12".to_owned(),
        got: bytes[0].to_string(),
    })?;
    Ok(Info {
        state,
        timestamps: options & uapi::TCPI_OPT_TIMESTAMPS != 0,
        timestamps_in_microseconds: options & uapi::TCPI_OPT_USEC_TS != 0,
        sack: options & uapi::TCPI_OPT_SACK != 0,
        window_scale: (options & uapi::TCPI_OPT_WSCALE != 0).then_some(Scales { snd, rcv }),
        advmss: word(84),
        rto: word(8),
        snd_mss: word(16),
        rtt: word(68),
        snd_cwnd: word(80),
        total_retrans: word(100),
        bytes_acked: long(120),
        bytes_received: long(128),
    })
}
