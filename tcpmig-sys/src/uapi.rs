//! Constants and structs of `linux/tcp.h`, `linux/in.h` and `asm-generic/socket.h` that
//! `libc` does not have.

use std::mem::size_of;

pub(crate) const TCP_REPAIR_ON: i32 = 1;
pub(crate) const TCP_REPAIR_OFF: i32 = 0;
pub(crate) const TCP_REPAIR_OFF_NO_WP: i32 = -1;

pub(crate) const TCP_NO_QUEUE: i32 = 0;
pub(crate) const TCP_RECV_QUEUE: i32 = 1;
pub(crate) const TCP_SEND_QUEUE: i32 = 2;

pub(crate) const TCPOPT_MSS: u32 = 2;
pub(crate) const TCPOPT_WINDOW: u32 = 3;
pub(crate) const TCPOPT_SACK_PERMITTED: u32 = 4;
pub(crate) const TCPOPT_TIMESTAMP: u32 = 8;

pub(crate) const TCPI_OPT_TIMESTAMPS: u8 = 1;
pub(crate) const TCPI_OPT_SACK: u8 = 2;
pub(crate) const TCPI_OPT_WSCALE: u8 = 4;
pub(crate) const TCPI_OPT_USEC_TS: u8 = 64;

pub(crate) const SO_LOCK_FILTER: i32 = 44;
pub(crate) const SO_SELECT_ERR_QUEUE: i32 = 45;
pub(crate) const SO_MAX_PACING_RATE: i32 = 47;
pub(crate) const SO_INCOMING_CPU: i32 = 49;
pub(crate) const SO_ZEROCOPY: i32 = 60;
pub(crate) const SO_PREFER_BUSY_POLL: i32 = 69;
pub(crate) const SO_BUF_LOCK: i32 = 72;
pub(crate) const SO_TXREHASH: i32 = 74;

pub(crate) const IP_LOCAL_PORT_RANGE: i32 = 51;

pub(crate) const IP_XFRM_POLICY: i32 = 17;
pub(crate) const IPV6_XFRM_POLICY: i32 = 35;
pub(crate) const XFRM_POLICY_IN: u8 = 0;
pub(crate) const XFRM_POLICY_OUT: u8 = 1;
pub(crate) const XFRM_POLICY_ALLOW: u8 = 0;
pub(crate) const XFRM_POLICY_BLOCK: u8 = 1;

pub(crate) const TCP_TX_DELAY: i32 = 37;
pub(crate) const TCP_RTO_MAX_MS: i32 = 44;
pub(crate) const TCP_RTO_MIN_US: i32 = 45;
pub(crate) const TCP_DELACK_MAX_US: i32 = 46;

/// `struct tcp_repair_opt`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RepairOption {
    pub(crate) opt_code: u32,
    pub(crate) opt_val: u32,
}

/// `struct tcp_repair_window`: the windows of a connection in repair mode.
///
/// Windows are in bytes, unscaled; sequence numbers are as on the wire.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RepairWindow {
    /// Sequence number of the segment that last updated the send window.
    pub snd_wl1: u32,
    /// Send window: what the peer said it would take, counted from `snd_una`.
    pub snd_wnd: u32,
    /// Largest window that the peer ever offered.
    pub max_window: u32,
    /// Receive window that was last advertised, counted from `rcv_wup`.
    pub rcv_wnd: u32,
    /// `rcv_nxt` at the last window update that was sent.
    pub rcv_wup: u32,
}

/// `struct xfrm_userpolicy_info` of `linux/xfrm.h`: a policy of a socket.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct XfrmUserPolicy {
    // `struct xfrm_selector`; prefixes of no length match every address.
    daddr: [u8; 16],
    saddr: [u8; 16],
    ports_and_masks: [u16; 4],
    family: u16,
    prefixes_and_protocol: [u8; 3],
    padding: [u8; 3],
    ifindex: i32,
    user: u32,
    // `struct xfrm_lifetime_cfg`: four limits, four times to live.
    limits: [u64; 4],
    expires: [u64; 4],
    // `struct xfrm_lifetime_cur`.
    current: [u64; 4],
    priority: u32,
    index: u32,
    direction: u8,
    action: u8,
    flags: u8,
    share: u8,
    end: [u8; 4],
}

impl XfrmUserPolicy {
    /// For all packets of a family, for as long as the socket has it.
    pub(crate) fn for_all(family: u16, direction: u8, action: u8) -> Self {
        Self {
            daddr: [0; 16],
            saddr: [0; 16],
            ports_and_masks: [0; 4],
            family,
            prefixes_and_protocol: [0; 3],
            padding: [0; 3],
            ifindex: 0,
            user: 0,
            // XFRM_INF.
            limits: [u64::MAX; 4],
            expires: [0; 4],
            current: [0; 4],
            priority: 0,
            index: 0,
            direction,
            action,
            flags: 0,
            share: 0,
            end: [0; 4],
        }
    }
}

const _: () = assert!(size_of::<XfrmUserPolicy>() == 168);
const _: () = assert!(size_of::<RepairOption>() == 8);
const _: () = assert!(size_of::<RepairWindow>() == 20);
