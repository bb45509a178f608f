//! Images of CRIU: connections that were dumped with the processes that had them.
//!
//! `criu dump --tcp-established` writes a `tcp-stream-INODE.img` for each connection, and the addresses and options of all
//! sockets into `files.img`. From the two comes an image that any restore of this crate takes: on a host that has the address,
//! without the process. What they do not have is named ([`Imported::lacks`]): there the target's defaults hold.
//!
//! CRIU leaves rules behind that keep the packets of dumped connections away, on the host of the dump; they are not looked at here.
//!
//! ```no_run
//! use tcpmig::criu::{self, Stream};
//! use tcpmig_format::Limits;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let sockets = criu::sockets(&std::fs::read("dump/files.img")?)?;
//! let stream = Stream::read(&std::fs::read("dump/tcp-stream-1f.img")?, &Limits::default())?;
//! let socket = sockets.iter().find(|socket| socket.inode == 0x1f).ok_or("no such socket")?;
//! let imported = criu::import(stream, socket)?;
//! for lack in &imported.lacks {
//!     eprintln!("not in the image: {lack}");
//! }
//! std::fs::write("connection.tcpmig", imported.image.encode()?)?;
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "arbitrary")]
pub(crate) mod fuzz;
mod messages;
mod read;
mod socket;
#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "arbitrary"))]
mod written;

use std::fmt;

use tcpmig_format::{
    ConnectionImage, FlowError, Image, InvalidIp, InvalidTcp, Limits, Negotiated, ReceiveSpace,
    SecretBytes, SendSpace, TcpImage, TcpParts, TcpState, TimestampUnit, Timestamps, WindowScale,
};
use tcpmig_sys::repair::RepairWindow;

use crate::convert;
use messages::TcpStreamEntry;
use read::STREAM_FILE;

pub use read::Kind;
pub use socket::{Socket, sockets};

/// `TCPI_OPT_*` of `linux/tcp.h`: what `opt_mask` has, as the kernel tells it.
const TIMESTAMPS: u32 = 1;
const SACK: u32 = 2;
const WINDOW_SCALE: u32 = 4;
const MICROSECONDS: u32 = 64;

/// The contents of a `tcp-stream-INODE.img`.
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    entry: TcpStreamEntry,
    unread: SecretBytes,
    written: SecretBytes,
}

impl Stream {
    /// Reads a file that ends with the connection. Its queues are copied, and wiped when they are dropped; the bytes are the
    /// caller's to wipe.
    ///
    /// # Errors
    ///
    /// [`CriuError`] if it is another file, cut off, damaged, or has longer queues than the limits allow.
    pub fn read(bytes: &[u8], limits: &Limits) -> Result<Self, CriuError> {
        let (entry, unread, written) = read::stream(bytes)?;
        for queue in [unread, written] {
            if queue.len() > limits.max_queue {
                return Err(CriuError::TooLong {
                    bytes: queue.len(),
                    limit: limits.max_queue,
                });
            }
        }
        Ok(Self {
            entry,
            unread: unread.into(),
            written: written.into(),
        })
    }
}

/// An image made of CRIU's.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Imported {
    /// The connection, whole.
    pub image: Image,
    /// What an image of this crate's own has and this one has not.
    pub lacks: Vec<Lack>,
}

/// What images of CRIU do not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lack {
    /// When it was taken: the timestamp clock goes on from there, as if no time had passed.
    Taken,
    /// The congestion control.
    CongestionControl,
    /// `IP_TTL`, or `IPV6_UNICAST_HOPS` and the traffic class.
    Hops,
    /// `SO_KEEPALIVE` and its times.
    KeepAlive,
    /// `SO_LINGER`: it was off, or the version of CRIU does not note it.
    Linger,
    /// Whether the application chose the sizes of the buffers.
    BufferLock,
    /// The options that no version of CRIU notes.
    OtherOptions,
}

impl Lack {
    /// Its name for programs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::CongestionControl => "congestion_control",
            Self::Hops => "hops",
            Self::KeepAlive => "keep_alive",
            Self::Linger => "linger",
            Self::BufferLock => "buffer_lock",
            Self::OtherOptions => "other_options",
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Taken => "when it was taken (its timestamps go on as if no time had passed)",
            Self::CongestionControl => "the congestion control (TCP_CONGESTION)",
            Self::Hops => "the time to live of its packets (IP_TTL, IPV6_UNICAST_HOPS)",
            Self::KeepAlive => "keep-alive and its times (SO_KEEPALIVE)",
            Self::Linger => "SO_LINGER",
            Self::BufferLock => "who chose the sizes of the buffers (SO_BUF_LOCK)",
            Self::OtherOptions => {
                "options such as TCP_USER_TIMEOUT, TCP_NOTSENT_LOWAT, SO_MAX_PACING_RATE"
            }
        })
    }
}

/// Why there is no connection in images of CRIU.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CriuError {
    /// The file does not begin as this kind of image does.
    #[error("this is not a {file} of CRIU")]
    NotThat {
        /// Which kind.
        file: &'static str,
    },
    /// The file ends too early.
    #[error("the {file} is cut off")]
    CutOff {
        /// Which kind.
        file: &'static str,
    },
    /// The file goes on behind its end.
    #[error("the {file} has {bytes} bytes behind its end")]
    Trailing {
        /// Which kind.
        file: &'static str,
        /// How many.
        bytes: usize,
    },
    /// A message is not one.
    #[error("the {file} is damaged: {reason}")]
    Malformed {
        /// Which kind.
        file: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A field that every version writes, or without which the connection cannot go on, is not there.
    #[error("the {file} has no {field}")]
    Missing {
        /// Which kind.
        file: &'static str,
        /// The field, as CRIU calls it.
        field: &'static str,
    },
    /// A field has a value that it cannot have.
    #[error("the {file} has {field} {value}, which cannot be")]
    Value {
        /// Which kind.
        file: &'static str,
        /// The field, as CRIU calls it.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// An address does not fit its family.
    #[error("an address of {words} words in a socket of family {family}")]
    Address {
        /// How many words of 32 bits it has.
        words: usize,
        /// `AF_INET` is 2, `AF_INET6` 10.
        family: u32,
    },
    /// A queue is longer than the limit.
    #[error("a queue of {bytes} bytes, more than the {limit} that are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// In this state the files do not tell enough: what a SYN offered, or how the connection ended.
    #[error("a connection in {0}, of which CRIU's images do not tell enough to go on with it")]
    State(TcpState),
    /// The two ends are not those of a connection.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// Addresses and options contradict each other.
    #[error(transparent)]
    Ip(#[from] InvalidIp),
    /// The numbers contradict each other.
    #[error(transparent)]
    Tcp(#[from] InvalidTcp),
}

/// The image of a connection: that of the file whose name has the socket's [inode](Socket::inode).
///
/// # Errors
///
/// [`CriuError`] if the files contradict themselves, or lack what the connection cannot go on without: the windows, which
/// CRIU notes since Linux 4.8, and the times of its opening and its end ([`CriuError::State`]).
pub fn import(stream: Stream, socket: &Socket) -> Result<Imported, CriuError> {
    let Stream {
        entry,
        unread,
        written,
    } = stream;
    let state = socket.state;
    if matches!(
        state,
        TcpState::SynSent | TcpState::SynRecv | TcpState::TimeWait | TcpState::Close
    ) {
        return Err(CriuError::State(state));
    }
    let ip = socket.ip();
    ip.check()?;
    let options = socket.options(&entry);
    let lacks = Socket::lacks(&ip, &options);
    let (write_seq, rcv_nxt, window) = convert::up_to(
        state,
        need(entry.outq_seq, "outq_seq")?,
        need(entry.inq_seq, "inq_seq")?,
        &windows(&entry)?,
    );
    // Both are parts of what was written, and nothing of it is copied.
    let unsent_length = need(entry.unsq_len, "unsq_len")?;
    let value = CriuError::Value {
        file: STREAM_FILE,
        field: "unsq_len",
        value: unsent_length,
    };
    let sent_length = written
        .len()
        .checked_sub(unsent_length as usize)
        .ok_or(value)?;
    // At most the limit of queues, as it was read.
    let snd_una = write_seq - written.len() as u32;
    let mut unsent = written;
    let sent = unsent.split_to(sent_length);
    let tcp = TcpImage::new(TcpParts {
        state,
        send: SendSpace {
            snd_una,
            sent,
            unsent,
        },
        receive: ReceiveSpace {
            rcv_nxt,
            queue: unread,
        },
        negotiated: negotiated(&entry)?,
        window,
        socket: options,
        pending_error: None,
    })?;
    let image = Image::new(ConnectionImage::new(ip, tcp));
    Ok(Imported { image, lacks })
}

fn need(value: Option<u32>, field: &'static str) -> Result<u32, CriuError> {
    value.ok_or(CriuError::Missing {
        file: STREAM_FILE,
        field,
    })
}

fn windows(entry: &TcpStreamEntry) -> Result<RepairWindow, CriuError> {
    Ok(RepairWindow {
        snd_wl1: need(entry.snd_wl1, "snd_wl1")?,
        snd_wnd: need(entry.snd_wnd, "snd_wnd")?,
        max_window: need(entry.max_window, "max_window")?,
        rcv_wnd: need(entry.rcv_wnd, "rcv_wnd")?,
        rcv_wup: need(entry.rcv_wup, "rcv_wup")?,
    })
}

fn negotiated(entry: &TcpStreamEntry) -> Result<Negotiated, CriuError> {
    let value = |field, value| CriuError::Value {
        file: STREAM_FILE,
        field,
        value,
    };
    let mask = need(entry.opt_mask, "opt_mask")?;
    let scale = |scale: Option<u32>, field| {
        let scale = need(scale, field)?;
        u8::try_from(scale).map_err(|_| value(field, scale))
    };
    let window_scale = if mask & WINDOW_SCALE == 0 {
        None
    } else {
        Some(WindowScale {
            snd: scale(entry.snd_wscale, "snd_wscale")?,
            rcv: scale(entry.rcv_wscale, "rcv_wscale")?,
        })
    };
    let timestamps = if mask & TIMESTAMPS == 0 {
        None
    } else {
        let (unit, value) = (mask & MICROSECONDS, need(entry.timestamp, "timestamp")?);
        Some(if unit != 0 {
            Timestamps {
                // Bit 0 only says that these are microseconds.
                value: value & !1,
                unit: TimestampUnit::Microseconds,
            }
        } else {
            Timestamps {
                // Bit 0 counts before Linux 6.7, where it would be taken for that. The clock never goes back.
                value: value.wrapping_add(value & 1),
                unit: TimestampUnit::Milliseconds,
            }
        })
    };
    let mss = need(entry.mss_clamp, "mss_clamp")?;
    Ok(Negotiated {
        mss_clamp: u16::try_from(mss).map_err(|_| value("mss_clamp", mss))?,
        window_scale,
        sack: mask & SACK != 0,
        timestamps,
    })
}
