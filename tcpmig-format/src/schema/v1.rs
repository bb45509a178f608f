//! Format version 1, as FORMAT.md describes it. Octets and texts are borrowed
//! on both ways: what is encoded is copied once, and what is decoded is held
//! against the limits before anything is copied.

mod critical;
mod decode;
mod encode;

pub(crate) use decode::read;
pub(crate) use encode::write;

use critical::Critical;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Image<'a> {
    #[serde(borrow)]
    critical: Critical<'a>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    ip: Option<Ip<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    tcp: Option<Tcp<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    app: Option<App<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    listen: Option<Listen<'a>>,
}

#[derive(Serialize, Deserialize)]
struct Listen<'a> {
    #[serde(borrow)]
    local: End<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    v6_only: Option<bool>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    bound_device: Option<&'a str>,
    transparent: Option<bool>,
    freebind: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mark: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u32>,
    backlog: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    defer_accept: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fast_open: Option<u32>,
    #[serde(borrow)]
    socket: Option<Socket<'a>>,
}

#[derive(Serialize, Deserialize)]
struct Ip<'a> {
    family: &'a str,
    #[serde(borrow)]
    local: End<'a>,
    #[serde(borrow)]
    remote: End<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    v6_only: Option<bool>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hop_limit: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tos: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traffic_class: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_label: Option<u32>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    bound_device: Option<&'a str>,
    transparent: Option<bool>,
    freebind: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mark: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_label_share: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_info_send: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_label_reflect: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auto_flow_label: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu_discover: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu_discover_v6: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_ttl: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_hop_limit: Option<u8>,
    #[serde(
        borrow,
        with = "serde_bytes",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    ip_options: Option<&'a [u8]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bind_address_no_port: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_port_range: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_errors: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_packet_info: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_ttl: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_tos: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_errors_v6: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_packet_info_v6: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_hop_limit: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_traffic_class: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_flow_info: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_hop_options: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_routing_header: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_destination_options: Option<bool>,
}

#[derive(Serialize, Deserialize)]
struct End<'a> {
    #[serde(with = "serde_bytes")]
    address: &'a [u8],
    port: u16,
}

#[derive(Serialize, Deserialize)]
struct Tcp<'a> {
    state: u8,
    #[serde(borrow)]
    send: Send<'a>,
    #[serde(borrow)]
    receive: Receive<'a>,
    #[serde(borrow)]
    negotiated: Negotiated<'a>,
    window: Window,
    #[serde(borrow)]
    socket: Option<Socket<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pending_error: Option<PendingError>,
}

#[derive(Serialize, Deserialize)]
struct PendingError {
    errno: u16,
    after_fin: bool,
}

#[derive(Serialize, Deserialize)]
struct Send<'a> {
    snd_una: u32,
    #[serde(with = "serde_bytes")]
    sent: &'a [u8],
    #[serde(with = "serde_bytes")]
    unsent: &'a [u8],
}

#[derive(Serialize, Deserialize)]
struct Receive<'a> {
    rcv_nxt: u32,
    #[serde(with = "serde_bytes")]
    queue: &'a [u8],
}

#[derive(Serialize, Deserialize)]
struct Negotiated<'a> {
    mss_clamp: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    window_scale: Option<WindowScale>,
    sack: Option<bool>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    timestamps: Option<Timestamps<'a>>,
}

#[derive(Serialize, Deserialize)]
struct WindowScale {
    snd: u8,
    rcv: u8,
}

#[derive(Serialize, Deserialize)]
struct Timestamps<'a> {
    value: u32,
    unit: &'a str,
}

#[derive(Serialize, Deserialize)]
struct Window {
    snd_wl1: u32,
    snd_wnd: u32,
    max_window: u32,
    rcv_wnd: u32,
    rcv_wup: u32,
}

#[derive(Serialize, Deserialize)]
struct Socket<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    reuse_addr: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reuse_port: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    no_delay: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cork: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oob_inline: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    non_blocking: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_alive: Option<KeepAlive>,
    #[serde(skip_serializing_if = "Option::is_none")]
    linger: Option<Linger>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_buffer: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    send_buffer: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    buffer_lock: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_low_water: Option<u32>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    congestion: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_timeout: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_sent_low_water: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quick_ack: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    linger2: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    syn_count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    window_clamp: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_pacing_rate: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shut_read: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    close_on_exec: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_timeout: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    send_timeout: Option<u64>,
    #[serde(
        borrow,
        with = "serde_bytes",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    filter: Option<&'a [u8]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lock_filter: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peek_offset: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dont_route: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    busy_poll: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefer_busy_poll: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zero_copy: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    select_error_queue: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp_ns: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamping: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp_new: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tx_rehash: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    defer_accept: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thin_linear_timeouts: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tx_delay: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inq: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rto_max: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rto_min: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delayed_ack_max: Option<u32>,
}

#[derive(Serialize, Deserialize)]
struct KeepAlive {
    on: bool,
    idle: u32,
    interval: u32,
    count: u32,
}

#[derive(Serialize, Deserialize)]
struct Linger {
    on: bool,
    seconds: u32,
}

#[derive(Serialize, Deserialize)]
struct App<'a> {
    kind: &'a str,
    version: u32,
    #[serde(with = "serde_bytes")]
    payload: &'a [u8],
}
