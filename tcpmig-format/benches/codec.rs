//! What encoding and decoding an image costs, as a table: time and allocations for queues of different lengths, beside
//! plain rmp-serde of the same fields (no envelope, no checksum, nothing checked) and beside copying the queues.
//! `cargo bench -p tcpmig-format`. The rows of a table are measured in turns, and the middle of each is shown.

use std::hint::black_box;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tcpmig_format::{
    ConnectionImage, DecodeError, Envelope, Image, IpImage, Limits, Negotiated, ReceiveSpace,
    SecretBytes, SendSpace, Seq, SocketFamily, SocketOptions, TcpImage, TcpParts, TcpState,
    TimestampUnit, Timestamps, Window, WindowScale,
};

/// Turns for each row.
const TURNS: usize = 401;
/// Bytes in the queues together.
const QUEUES: [usize; 3] = [0, 64 << 10, 1 << 20];

/// A connection as a server has it.
fn image(queues: usize) -> Image {
    let bytes =
        |len: usize| SecretBytes::from((0..len).map(|at| (at * 7) as u8).collect::<Vec<_>>());
    let parts = TcpParts {
        state: TcpState::Established,
        send: SendSpace {
            snd_una: Seq::new(0x1234_5678),
            sent: bytes(queues / 2),
            unsent: bytes(queues / 4),
        },
        receive: ReceiveSpace {
            rcv_nxt: Seq::new(0x8765_4321),
            queue: bytes(queues / 4),
        },
        negotiated: Negotiated {
            mss_clamp: 1460,
            window_scale: Some(WindowScale { snd: 7, rcv: 9 }),
            sack: true,
            timestamps: Some(Timestamps {
                value: 0x0102_0304,
                unit: TimestampUnit::Milliseconds,
            }),
        },
        window: Window {
            snd_wl1: Seq::new(0x8765_4320),
            snd_wnd: 64_128,
            max_window: 65_536,
            rcv_wnd: 131_072,
            rcv_wup: Seq::new(0x8765_4320),
        },
        socket: {
            let mut options = SocketOptions::default();
            options.reuse_addr = Some(true);
            options.no_delay = Some(true);
            options.non_blocking = Some(true);
            options.congestion = Some("cubic".into());
            options
        },
        pending_error: None,
    };
    let flow = "10.0.0.1:80,10.0.0.9:51234".parse().expect("a flow");
    let mut ip = IpImage::new(flow, SocketFamily::Ipv4);
    ip.ttl = Some(64);
    ip.tos = Some(0);
    let tcp = TcpImage::new(parts).expect("a connection");
    let mut image = Image::new(ConnectionImage::new(ip, tcp));
    image.taken = Some(1_795_694_400_500_000);
    image
}

#[derive(Serialize, Deserialize)]
struct Plain {
    critical: Vec<String>,
    taken: u64,
    subject: PlainSubject,
}

#[derive(Serialize, Deserialize)]
struct PlainSubject {
    connection: PlainConnection,
}

#[derive(Serialize, Deserialize)]
struct PlainConnection {
    ip: PlainIp,
    tcp: PlainTcp,
}

#[derive(Serialize, Deserialize)]
struct PlainIp {
    family: String,
    local: PlainEnd,
    remote: PlainEnd,
    ttl: u8,
    tos: u8,
    transparent: bool,
    freebind: bool,
}

#[derive(Serialize, Deserialize)]
struct PlainEnd {
    #[serde(with = "serde_bytes")]
    address: Vec<u8>,
    port: u16,
}

#[derive(Serialize, Deserialize)]
struct PlainTcp {
    state: u8,
    send: PlainSend,
    receive: PlainReceive,
    negotiated: PlainNegotiated,
    window: PlainWindow,
    socket: PlainSocket,
}

#[derive(Serialize, Deserialize)]
struct PlainSend {
    snd_una: u32,
    #[serde(with = "serde_bytes")]
    sent: Vec<u8>,
    #[serde(with = "serde_bytes")]
    unsent: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct PlainReceive {
    rcv_nxt: u32,
    #[serde(with = "serde_bytes")]
    queue: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct PlainNegotiated {
    mss_clamp: u16,
    window_scale: PlainScale,
    sack: bool,
    timestamps: PlainTimestamps,
}

#[derive(Serialize, Deserialize)]
struct PlainScale {
    snd: u8,
    rcv: u8,
}

#[derive(Serialize, Deserialize)]
struct PlainTimestamps {
    value: u32,
    unit: String,
}

#[derive(Serialize, Deserialize)]
struct PlainWindow {
    snd_wl1: u32,
    snd_wnd: u32,
    max_window: u32,
    rcv_wnd: u32,
    rcv_wup: u32,
}

#[derive(Serialize, Deserialize)]
struct PlainSocket {
    reuse_addr: bool,
    no_delay: bool,
    non_blocking: bool,
    congestion: String,
}

/// What a row makes. It is dropped after its time was taken: then queues are zeroed, which is not a part of the work.
#[expect(dead_code, reason = "made to be dropped")]
enum Made {
    SecretBytes(SecretBytes),
    Plain(Vec<u8>),
    Image(Box<Result<Image, DecodeError>>),
    Fields(Box<Plain>),
}

struct Row<'a> {
    name: &'static str,
    run: Box<dyn FnMut() -> Made + 'a>,
    times: Vec<Duration>,
}

fn row<'a>(name: &'static str, run: impl FnMut() -> Made + 'a) -> Row<'a> {
    Row {
        name,
        run: Box::new(run),
        times: Vec::new(),
    }
}

/// Measures the rows in turns and prints them, each beside the last one.
fn table(title: &str, mut rows: Vec<Row<'_>>) {
    for _ in 0..TURNS {
        for row in &mut rows {
            // Once warms the caches that the other rows have filled.
            drop((row.run)());
            let begin = Instant::now();
            let made = black_box((row.run)());
            row.times.push(begin.elapsed());
            drop(made);
        }
    }
    let middle = |row: &mut Row<'_>| {
        row.times.sort_unstable();
        row.times[TURNS / 2].as_nanos()
    };
    let base = rows.last_mut().map_or(1, middle).max(1);
    println!(
        "\n{title:<26} {:>12} {:>12} {:>14} {:>8}",
        "ns", "allocations", "bytes", "ratio"
    );
    for mut row in rows {
        let spent = allocation_counter::measure(|| drop((row.run)()));
        let ns = middle(&mut row);
        println!(
            "{:<26} {ns:>12} {:>12} {:>14} {:>8.2}",
            row.name,
            spent.count_total,
            spent.bytes_total,
            ns as f64 / base as f64
        );
    }
}

fn main() {
    for queues in QUEUES {
        let image = image(queues);
        let bytes = image.encode().expect("a connection");
        let payload = &bytes[Envelope::LEN..];
        let plain: Plain = rmp_serde::from_slice(payload).expect("the same fields");
        let same = rmp_serde::to_vec_named(&plain).expect("the same fields");
        assert_eq!(same, payload, "plain rmp-serde writes something else");
        let limits = Limits::default();
        let tcp = image.tcp().expect("a connection");
        let parts: [&[u8]; 3] = [&tcp.send().sent, &tcp.send().unsent, &tcp.receive().queue];
        let copy = || {
            let mut copied = Vec::with_capacity(queues);
            for part in parts {
                copied.extend_from_slice(black_box(part));
            }
            Made::Plain(copied)
        };
        let len = queues >> 10;
        table(
            &format!("encode, {len} KiB queued"),
            vec![
                row("Image::encode", || {
                    Made::SecretBytes(black_box(&image).encode().expect("a connection"))
                }),
                row("plain rmp-serde", || {
                    let fields = black_box(&plain);
                    Made::Plain(rmp_serde::to_vec_named(fields).expect("a connection"))
                }),
                row("copy of the queues", copy),
            ],
        );
        // The shared image is a handle to the same memory each time, so that its making is not measured.
        let shared = bytes.clone().slice(0..bytes.len());
        table(
            &format!("decode, {len} KiB queued"),
            vec![
                row("Image::decode_shared", || {
                    let shared = black_box(&shared).clone();
                    Made::Image(Box::new(Image::decode_shared(shared, &limits)))
                }),
                row("Image::decode", || {
                    Made::Image(Box::new(Image::decode(black_box(&bytes), &limits)))
                }),
                row("plain rmp-serde", || {
                    let fields = rmp_serde::from_slice(black_box(payload));
                    Made::Fields(Box::new(fields.expect("a map")))
                }),
                row("copy of the queues", copy),
            ],
        );
    }
}
