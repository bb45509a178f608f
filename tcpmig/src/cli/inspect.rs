//! `tcpmig inspect`: what an image holds.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::bail;
use clap::Args;
use serde_json::{Map, Value, json};
use tcpmig::criu::Kind;
use tcpmig_format::{
    FilterInstruction, Image, IpImage, KeepAlive, Linger, ListenImage, SecretBytes, SocketOptions,
    Subject, TcpImage, ip_fields, socket_fields,
};

use super::print::{say, to_output};
use super::{Output, files, import};

/// Show what an image holds.
///
/// Queues and the payloads of layers show as lengths only, because they are the users' data; --payload shows them too. Images
/// of CRIU are shown as well: of a files.img the connections, of a tcp-stream-INODE.img what `tcpmig import` makes of it.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The image
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// For a tcp-stream-INODE.img of CRIU: the files.img of the same dump [default: the one in its folder]
    #[arg(long, value_name = "FILE")]
    files: Option<PathBuf>,

    /// Show the bytes of queues and layers, in hexadecimal
    #[arg(long)]
    payload: bool,
}

pub(crate) fn main(args: &InspectArgs, output: Output) -> anyhow::Result<ExitCode> {
    let value = match import::kind(&args.file)? {
        None => {
            let (image, envelope) = files::read(&args.file)?;
            let about = json!({
                "format_version": envelope.version,
                "bytes": envelope.image_length(),
            });
            describe(&image, about, args.payload)
        }
        Some(Kind::TcpStream) => {
            let read = import::read_connection(&args.file, args.files.as_deref())?;
            let lacks: Vec<_> = read.lacks.iter().map(|lack| lack.name()).collect();
            let about = json!({ "written_by": "CRIU", "lacks": lacks.join(", ") });
            describe(&read.image, about, args.payload)
        }
        Some(Kind::Files) => return import::show_sockets(&args.file, output),
        Some(_) => bail!(
            "{} is an image of CRIU that says nothing about connections: tcp-stream-INODE.img and files.img do",
            args.file.display()
        ),
    };
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

/// Everything of an image, from the bottom up. `about` is what is known of the file.
fn describe(image: &Image, mut about: Value, payload: bool) -> Value {
    let queue = |queue: &SecretBytes| bytes_value(queue, payload);
    let mut all = Map::new();
    about["taken_us"] = json!(image.taken);
    about["taken"] = json!(image.taken.and_then(utc));
    about["subject"] = json!(match image.subject {
        Subject::Connection(_) => "connection",
        Subject::Listener(_) => "listener",
        // A later one, of which nothing else would be shown.
        _ => "unknown",
    });
    all.insert("image".to_owned(), present(about));
    if let Some(image) = image.ip() {
        all.insert("ip".to_owned(), ip(image));
    }
    if let Some(image) = image.tcp() {
        all.insert("tcp".to_owned(), tcp(image, &queue));
        all.insert("options".to_owned(), options(image.socket()));
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

fn bytes_value(bytes: &SecretBytes, payload: bool) -> Value {
    if !payload {
        return json!({ "bytes": bytes.len() });
    }
    let mut hex = String::with_capacity(bytes.len() * 2);
    for byte in bytes.iter() {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    json!({ "bytes": bytes.len(), "hex": hex })
}

/// Leaves out what an image does not carry.
fn present(mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value {
        fields.retain(|_, field| !field.is_null());
    }
    value
}

/// The value of an option; nothing if the image does not carry it.
trait Shown {
    fn shown(&self) -> Value;
}

macro_rules! shown {
    ($($ty:ident)*) => {$(
        impl Shown for $ty {
            fn shown(&self) -> Value {
                json!(self)
            }
        }
    )*};
}
shown!(bool u8 u32 u64 i32 String);

impl<T: Shown> Shown for Option<T> {
    fn shown(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::shown)
    }
}

impl Shown for KeepAlive {
    fn shown(&self) -> Value {
        json!({
            "on": self.on,
            "idle_seconds": self.idle,
            "interval_seconds": self.interval,
            "count": self.count,
        })
    }
}

impl Shown for Linger {
    fn shown(&self) -> Value {
        json!({ "on": self.on, "seconds": self.seconds })
    }
}

/// How many instructions a filter has.
impl Shown for Vec<FilterInstruction> {
    fn shown(&self) -> Value {
        json!(self.len())
    }
}

impl Shown for SecretBytes {
    fn shown(&self) -> Value {
        bytes_value(self, true)
    }
}

fn ip(ip: &IpImage) -> Value {
    macro_rules! fields {
        ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= $kind:ident $of:tt)? $unit:literal $restored:tt;)*) => {
            [
                ("local", json!(ip.flow.local().to_string())),
                ("remote", json!(ip.flow.remote().to_string())),
                ("family", json!(ip.family.name())),
                $((concat!(stringify!($name), $unit), ip.$name.shown()),)*
            ]
        };
    }
    object(ip_fields!(fields))
}

fn options(options: &SocketOptions) -> Value {
    macro_rules! fields {
        ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= $kind:ident $of:tt)? $unit:literal $restored:tt;)*) => {
            [$((concat!(stringify!($name), $unit), options.$name.shown()),)*]
        };
    }
    object(socket_fields!(fields))
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    present(Value::Object(fields.into_iter().collect()))
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

fn tcp(tcp: &TcpImage, queue: &impl Fn(&SecretBytes) -> Value) -> Value {
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
                Some(bytes) => writeln!(text, "{:indent$}{name:<20} {bytes} bytes", ""),
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
    (fields.len() == 1).then(|| fields.get("bytes")).flatten()
}
