//! Format version 1, as FORMAT.md describes it. Octets and texts are borrowed
//! on both ways.

use serde::{Deserialize, Serialize};

use super::critical::Critical;

#[derive(Serialize, Deserialize)]
pub(super) struct Image<'a> {
    #[serde(borrow)]
    pub(super) critical: Critical<'a>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) ip: Option<Ip<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) tcp: Option<Tcp<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) app: Option<App<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) listen: Option<Listen<'a>>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Listen<'a> {
    #[serde(borrow)]
    pub(super) local: End<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) v6_only: Option<bool>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) scope: Option<&'a str>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) bound_device: Option<&'a str>,
    pub(super) transparent: Option<bool>,
    pub(super) freebind: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mark: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) priority: Option<u32>,
    pub(super) backlog: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) defer_accept: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fast_open: Option<u32>,
    #[serde(borrow)]
    pub(super) socket: Option<Socket<'a>>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Ip<'a> {
    pub(super) family: &'a str,
    #[serde(borrow)]
    pub(super) local: End<'a>,
    #[serde(borrow)]
    pub(super) remote: End<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) v6_only: Option<bool>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) scope: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ttl: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hop_limit: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tos: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) traffic_class: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) flow_label: Option<u32>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) bound_device: Option<&'a str>,
    pub(super) transparent: Option<bool>,
    pub(super) freebind: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mark: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) priority: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) flow_label_share: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) flow_info_send: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) flow_label_reflect: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) auto_flow_label: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mtu_discover: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mtu_discover_v6: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) min_ttl: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) min_hop_limit: Option<u8>,
    #[serde(
        borrow,
        with = "serde_bytes",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub(super) ip_options: Option<&'a [u8]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bind_address_no_port: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) local_port_range: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receive_errors: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receive_packet_info: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receive_ttl: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receive_tos: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receive_errors_v6: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receive_packet_info_v6: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receive_hop_limit: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receive_traffic_class: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receive_flow_info: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receive_hop_options: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receive_routing_header: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receive_destination_options: Option<bool>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct End<'a> {
    #[serde(with = "serde_bytes")]
    pub(super) address: &'a [u8],
    pub(super) port: u16,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Tcp<'a> {
    pub(super) state: u8,
    #[serde(borrow)]
    pub(super) send: Send<'a>,
    #[serde(borrow)]
    pub(super) receive: Receive<'a>,
    #[serde(borrow)]
    pub(super) negotiated: Negotiated<'a>,
    pub(super) window: Window,
    #[serde(borrow)]
    pub(super) socket: Option<Socket<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pending_error: Option<PendingError>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct PendingError {
    pub(super) errno: u16,
    pub(super) after_fin: bool,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Send<'a> {
    pub(super) snd_una: u32,
    #[serde(with = "serde_bytes")]
    pub(super) sent: &'a [u8],
    #[serde(with = "serde_bytes")]
    pub(super) unsent: &'a [u8],
}

#[derive(Serialize, Deserialize)]
pub(super) struct Receive<'a> {
    pub(super) rcv_nxt: u32,
    #[serde(with = "serde_bytes")]
    pub(super) queue: &'a [u8],
}

#[derive(Serialize, Deserialize)]
pub(super) struct Negotiated<'a> {
    pub(super) mss_clamp: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) window_scale: Option<WindowScale>,
    pub(super) sack: Option<bool>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) timestamps: Option<Timestamps<'a>>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct WindowScale {
    pub(super) snd: u8,
    pub(super) rcv: u8,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Timestamps<'a> {
    pub(super) value: u32,
    pub(super) unit: &'a str,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Window {
    pub(super) snd_wl1: u32,
    pub(super) snd_wnd: u32,
    pub(super) max_window: u32,
    pub(super) rcv_wnd: u32,
    pub(super) rcv_wup: u32,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Socket<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reuse_addr: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reuse_port: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) no_delay: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cork: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) oob_inline: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) non_blocking: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) keep_alive: Option<KeepAlive>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) linger: Option<Linger>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receive_buffer: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) send_buffer: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) buffer_lock: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receive_low_water: Option<u32>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) congestion: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user_timeout: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) not_sent_low_water: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) quick_ack: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) linger2: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) syn_count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) window_clamp: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_pacing_rate: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) shut_read: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) close_on_exec: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receive_timeout: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) send_timeout: Option<u64>,
    #[serde(
        borrow,
        with = "serde_bytes",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub(super) filter: Option<&'a [u8]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lock_filter: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) peek_offset: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dont_route: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) busy_poll: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prefer_busy_poll: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) zero_copy: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) select_error_queue: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timestamp: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timestamp_ns: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timestamping: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timestamp_new: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tx_rehash: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) defer_accept: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) thin_linear_timeouts: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tx_delay: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) inq: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rto_max: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rto_min: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) delayed_ack_max: Option<u32>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct KeepAlive {
    pub(super) on: bool,
    pub(super) idle: u32,
    pub(super) interval: u32,
    pub(super) count: u32,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Linger {
    pub(super) on: bool,
    pub(super) seconds: u32,
}

#[derive(Serialize, Deserialize)]
pub(super) struct App<'a> {
    pub(super) kind: &'a str,
    pub(super) version: u32,
    #[serde(with = "serde_bytes")]
    pub(super) payload: &'a [u8],
}
