//! `tcpmig inspect`: what an image holds.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::{Map, Value, json};
use tcpmig_format::{
    Envelope, Image, IpImage, ListenImage, Octets, SocketOptions, Subject, TcpImage,
};

use super::print::{say, to_output};
use super::{Output, files};

/// Show what an image holds.
///
/// Queues and the payloads of layers show as lengths only, because they are the users' data; --payload shows them too.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The image
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Show the octets of queues and layers, in hexadecimal
    #[arg(long)]
    payload: bool,
}

pub(crate) fn main(args: &InspectArgs, output: Output) -> anyhow::Result<ExitCode> {
    let (image, envelope) = files::read(&args.file)?;
    let value = describe(&image, &envelope, args.payload);
    match output {
        Output::Json => say!("{value:#}"),
        Output::Text => {
            let mut text = String::new();
            show(&value, 0, &mut text);
            to_output(format_args!("{text}"), "");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Everything of an image, from the bottom up.
fn describe(image: &Image, envelope: &Envelope, payload: bool) -> Value {
    let queue = |queue: &Octets| octets_value(queue, payload);
    let mut all = Map::new();
    all.insert(
        "image".to_owned(),
        present(json!({
            "format_version": envelope.version,
            "octets": envelope.image_length(),
            "taken_us": image.taken,
            "taken": image.taken.and_then(utc),
            "subject": match image.subject {
                Subject::Connection(_) => "connection",
                Subject::Listener(_) => "listener",
                // A later one, of which nothing else would be shown.
                _ => "unknown",
            },
        })),
    );
    if let Some(image) = image.ip() {
        all.insert("ip".to_owned(), both(ip(image), ip_options(image)));
    }
    if let Some(image) = image.tcp() {
        all.insert("tcp".to_owned(), tcp(image, &queue));
        let socket = image.socket();
        let socket = both(options(socket), rarer_options(socket));
        all.insert("options".to_owned(), socket);
    }
    if let Some(listener) = image.listener() {
        all.insert("listener".to_owned(), listen(listener));
        all.insert("options".to_owned(), options(&listener.socket));
    }
    if !image.layers.is_empty() {
        let layers = image.layers.iter().map(|layer| {
            let payload = queue(&layer.payload);
            json!({ "kind": layer.kind, "version": layer.version, "payload": payload })
        });
        all.insert("layers".to_owned(), layers.collect());
    }
    Value::Object(all)
}

/// A time in microseconds since 1970, for people; `None` if it is past what a calendar shows.
fn utc(taken: u64) -> Option<String> {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(taken))?;
    // Later years have more digits than the standard allows.
    let shown = taken < 253_402_300_800_000_000;
    shown.then(|| humantime::format_rfc3339_seconds(time).to_string())
}

fn octets_value(octets: &Octets, payload: bool) -> Value {
    if !payload {
        return json!({ "octets": octets.len() });
    }
    let mut hex = String::with_capacity(octets.len() * 2);
    for octet in octets.iter() {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{octet:02x}");
    }
    json!({ "octets": octets.len(), "hex": hex })
}

/// The fields of two objects.
fn both(mut first: Value, second: Value) -> Value {
    if let (Value::Object(fields), Value::Object(more)) = (&mut first, second) {
        fields.extend(more);
    }
    first
}

/// Leaves out what an image does not carry.
fn present(mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value {
        fields.retain(|_, field| !field.is_null());
    }
    value
}

fn ip(ip: &IpImage) -> Value {
    present(json!({
        "local": ip.flow.local().to_string(),
        "remote": ip.flow.remote().to_string(),
        "family": ip.family.name(),
        "v6_only": ip.v6_only,
        "scope": ip.scope,
        "ttl": ip.ttl,
        "hop_limit": ip.hop_limit,
        "tos": ip.tos,
        "traffic_class": ip.traffic_class,
        "flow_label": ip.flow_label,
        "bound_device": ip.bound_device,
        "transparent": ip.transparent,
        "freebind": ip.freebind,
        "mark": ip.mark,
        "priority": ip.priority,
    }))
}

fn listen(listen: &ListenImage) -> Value {
    present(json!({
        "local": listen.local.to_string(),
        "v6_only": listen.v6_only,
        "scope": listen.scope,
        "bound_device": listen.bound_device,
        "transparent": listen.transparent,
        "freebind": listen.freebind,
        "mark": listen.mark,
        "priority": listen.priority,
        "backlog": listen.backlog,
        "defer_accept_seconds": listen.defer_accept,
        "fast_open": listen.fast_open,
    }))
}

fn ip_options(ip: &IpImage) -> Value {
    present(json!({
        "flow_label_share": ip.flow_label_share,
        "flow_info_send": ip.flow_info_send,
        "flow_label_reflect": ip.flow_label_reflect,
        "auto_flow_label": ip.auto_flow_label,
        "mtu_discover": ip.mtu_discover,
        "mtu_discover_v6": ip.mtu_discover_v6,
        "min_ttl": ip.min_ttl,
        "min_hop_limit": ip.min_hop_limit,
        "ip_options": ip.ip_options.as_ref().map(|octets| octets_value(octets, true)),
        "bind_address_no_port": ip.bind_address_no_port,
        "local_port_range": ip.local_port_range,
        "receive_errors": ip.receive_errors,
        "receive_packet_info": ip.receive_packet_info,
        "receive_ttl": ip.receive_ttl,
        "receive_tos": ip.receive_tos,
        "receive_errors_v6": ip.receive_errors_v6,
        "receive_packet_info_v6": ip.receive_packet_info_v6,
        "receive_hop_limit": ip.receive_hop_limit,
        "receive_traffic_class": ip.receive_traffic_class,
        "receive_flow_info": ip.receive_flow_info,
        "receive_hop_options": ip.receive_hop_options,
        "receive_routing_header": ip.receive_routing_header,
        "receive_destination_options": ip.receive_destination_options,
    }))
}

fn tcp(tcp: &TcpImage, queue: &impl Fn(&Octets) -> Value) -> Value {
    let (send, receive, window) = (tcp.send(), tcp.receive(), tcp.window());
    let negotiated = tcp.negotiated();
    present(json!({
        "state": tcp.state().name(),
        "pending_error": tcp.pending_error().map(|pending| json!({
            "error": std::io::Error::from_raw_os_error(pending.errno.into()).to_string(),
            "errno": pending.errno,
            "after_fin": pending.after_fin,
        })),
        "send": {
            "snd_una": send.snd_una.get(),
            "snd_nxt": send.snd_nxt().get(),
            "write_seq": send.write_seq().get(),
            "sent": queue(&send.sent),
            "unsent": queue(&send.unsent),
        },
        "receive": {
            "copied_seq": receive.copied_seq().get(),
            "rcv_nxt": receive.rcv_nxt.get(),
            "unread": queue(&receive.queue),
        },
        "window": {
            "snd_wl1": window.snd_wl1.get(),
            "snd_wnd": window.snd_wnd,
            "max_window": window.max_window,
            "rcv_wnd": window.rcv_wnd,
            "rcv_wup": window.rcv_wup.get(),
        },
        "negotiated": present(json!({
            "mss_clamp": negotiated.mss_clamp,
            "snd_wscale": negotiated.window_scale.map(|scale| scale.snd),
            "rcv_wscale": negotiated.window_scale.map(|scale| scale.rcv),
            "sack": negotiated.sack,
            "timestamp": negotiated.timestamps.map(|t| t.value),
            "timestamp_unit": negotiated.timestamps.map(|t| t.unit.name()),
        })),
    }))
}

fn options(options: &SocketOptions) -> Value {
    present(json!({
        "reuse_addr": options.reuse_addr,
        "reuse_port": options.reuse_port,
        "no_delay": options.no_delay,
        "cork": options.cork,
        "oob_inline": options.oob_inline,
        "non_blocking": options.non_blocking,
        "keep_alive": options.keep_alive.map(|keep| json!({
            "on": keep.on,
            "idle_seconds": keep.idle,
            "interval_seconds": keep.interval,
            "count": keep.count,
        })),
        "linger": options.linger.map(|linger| json!({
            "on": linger.on,
            "seconds": linger.seconds,
        })),
        "receive_buffer": options.receive_buffer,
        "send_buffer": options.send_buffer,
        "buffer_lock": options.buffer_lock,
        "receive_low_water": options.receive_low_water,
        "congestion": options.congestion,
        "user_timeout_ms": options.user_timeout,
        "not_sent_low_water": options.not_sent_low_water,
        "quick_ack": options.quick_ack,
        "linger2_seconds": options.linger2,
        "syn_count": options.syn_count,
        "window_clamp": options.window_clamp,
        "max_pacing_rate": options.max_pacing_rate,
        "shut_read": options.shut_read,
    }))
}

fn rarer_options(options: &SocketOptions) -> Value {
    present(json!({
        "close_on_exec": options.close_on_exec,
        "receive_timeout_us": options.receive_timeout,
        "send_timeout_us": options.send_timeout,
        "filter_instructions": options.filter.as_ref().map(Vec::len),
        "lock_filter": options.lock_filter,
        "peek_offset": options.peek_offset,
        "dont_route": options.dont_route,
        "busy_poll_us": options.busy_poll,
        "prefer_busy_poll": options.prefer_busy_poll,
        "zero_copy": options.zero_copy,
        "select_error_queue": options.select_error_queue,
        "timestamp": options.timestamp,
        "timestamp_ns": options.timestamp_ns,
        "timestamping": options.timestamping,
        "timestamp_new": options.timestamp_new,
        "tx_rehash": options.tx_rehash,
        "defer_accept_seconds": options.defer_accept,
        "thin_linear_timeouts": options.thin_linear_timeouts,
        "tx_delay_us": options.tx_delay,
        "inq": options.inq,
        "rto_max_ms": options.rto_max,
        "rto_min_us": options.rto_min,
        "delayed_ack_max_us": options.delayed_ack_max,
    }))
}

/// The same for people: one line a value, indented by layer.
fn show(value: &Value, depth: usize, text: &mut String) {
    let Value::Object(fields) = value else {
        return;
    };
    for (name, field) in fields {
        let indent = depth * 2;
        // Writing to a string cannot fail.
        let _ = match field {
            Value::Object(inner) => match length_only(inner) {
                Some(octets) => writeln!(text, "{:indent$}{name:<20} {octets} octets", ""),
                None => {
                    let written = writeln!(text, "{:indent$}{name}", "");
                    show(field, depth + 1, text);
                    written
                }
            },
            Value::Array(items) => {
                // Layers: the lowest is number 1.
                for (number, item) in (1..).zip(items) {
                    let _ = writeln!(text, "{:indent$}{name} {number}", "");
                    show(item, depth + 1, text);
                }
                Ok(())
            }
            Value::String(string) => writeln!(text, "{:indent$}{name:<20} {string}", ""),
            other => writeln!(text, "{:indent$}{name:<20} {other}", ""),
        };
    }
}

fn length_only(fields: &Map<String, Value>) -> Option<&Value> {
    (fields.len() == 1).then(|| fields.get("octets")).flatten()
}
