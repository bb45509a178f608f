//! Files that are written here field by field, from the numbers of CRIU's `.proto` files and not from the structs.

use proptest::prelude::*;

use super::written::{Wire, files_file, stream_file};
use super::*;
use tcpmig_format::{FilterInstruction, KeepAlive, Linger, Seq, SocketFamily};

const INODE: u32 = 0x1f;
const ESTABLISHED: u8 = 1;

/// The fields that every version of CRIU writes for a socket of IPv4.
fn socket(state: u8) -> Wire {
    let options = Wire::default()
        .number(1, 87_040_u32)
        .number(2, 131_072_u32)
        .number(3, 1_u32)
        .number(4, 500_000_u32)
        .number(5, 0_u32)
        .number(6, 0_u32);
    socket_with(state, &options)
}

fn socket_with(state: u8, options: &Wire) -> Wire {
    Wire::default()
        .number(1, 2_u32)
        .number(2, INODE)
        .number(3, 2_u32)
        .number(4, 1_u32)
        .number(5, 6_u32)
        .number(6, state)
        .number(7, 80_u32)
        .number(8, 51234_u32)
        .number(9, 0o4002_u32)
        .number(10, 0_u32)
        .number(11, u32::from_le_bytes([10, 0, 0, 1]))
        .number(12, u32::from_le_bytes([10, 0, 0, 9]))
        .bytes(13, &[])
        .bytes(14, &options.0)
}

/// What `stream` has of a connection with 4 bytes to read, 6 that were sent and 3 that were not.
#[derive(Clone)]
struct Numbers {
    inq_seq: u32,
    outq_seq: u32,
    opt_mask: u32,
    timestamp: u32,
    lengths: (u32, u32, u32),
    rcv_wup: u32,
}

const UNREAD: &[u8] = b"read";
const WRITTEN: &[u8] = b"sent..new";

impl Numbers {
    fn new() -> Self {
        Self {
            inq_seq: 5004,
            outq_seq: 2009,
            opt_mask: 7,
            timestamp: 1000,
            lengths: (4, 9, 3),
            rcv_wup: 5004,
        }
    }

    fn message(&self) -> Wire {
        let (inq_len, outq_len, unsq_len) = self.lengths;
        Wire::default()
            .number(1, inq_len)
            .number(2, self.inq_seq)
            .number(3, outq_len)
            .number(4, self.outq_seq)
            .number(5, self.opt_mask)
            .number(6, 2_u32)
            .number(7, 1448_u32)
            .number(8, 7_u32)
            .number(9, self.timestamp)
            .number(12, unsq_len)
            .number(13, 5000_u32)
            .number(14, 60_000_u32)
            .number(15, 64_000_u32)
            .number(16, 65_536_u32)
            .number(17, self.rcv_wup)
    }

    fn file(&self) -> Vec<u8> {
        let (inq_len, outq_len, _) = self.lengths;
        let (unread, written) = (&UNREAD[..inq_len as usize], &WRITTEN[..outq_len as usize]);
        stream_file(&self.message(), unread, written)
    }
}

fn imported(stream: &[u8], socket: Wire) -> Result<Imported, CriuError> {
    let sockets = sockets(&files_file(&[socket]))?;
    import(Stream::read(stream, &Limits::default())?, &sockets[0])
}

#[test]
fn a_connection_is_imported() {
    let read = imported(&Numbers::new().file(), socket(ESTABLISHED)).unwrap();
    let ip = read.image.ip().unwrap();
    assert_eq!(ip.flow.to_string(), "10.0.0.1:80,10.0.0.9:51234");
    assert_eq!(ip.family, SocketFamily::Ipv4);
    let tcp = read.image.tcp().unwrap();
    assert_eq!(tcp.state(), TcpState::Established);
    assert_eq!(tcp.send().snd_una, Seq::new(2000));
    assert_eq!(tcp.send().sent, *b"sent..");
    assert_eq!(tcp.send().unsent, *b"new");
    assert_eq!(tcp.receive().rcv_nxt, Seq::new(5004));
    assert_eq!(tcp.receive().queue, *b"read");
    let negotiated = tcp.negotiated();
    assert_eq!(negotiated.mss_clamp, 1448);
    assert_eq!(
        negotiated.window_scale,
        Some(WindowScale { snd: 2, rcv: 7 })
    );
    assert!(negotiated.sack);
    let window = tcp.window();
    assert_eq!(
        (window.snd_wnd, window.max_window, window.rcv_wnd),
        (60_000, 64_000, 65_536)
    );
    assert_eq!(
        (window.snd_wl1, window.rcv_wup),
        (Seq::new(5000), Seq::new(5004))
    );
    let options = tcp.socket();
    assert_eq!(options.send_timeout, Some(1_500_000));
    assert_eq!(options.send_buffer, Some(87_040));
    assert_eq!(options.non_blocking, Some(true));
    // What is not there is told, and nothing is made up for it.
    assert_eq!(read.image.taken, None);
    assert_eq!(options.congestion, None);
    assert!(read.lacks.contains(&Lack::Taken) && read.lacks.contains(&Lack::Hops));
    // And it is an image as others are.
    let bytes = read.image.encode().unwrap();
    assert_eq!(
        Image::decode(&bytes, &Limits::default()).unwrap(),
        read.image
    );
}

/// Numbers of the kernel count FINs, lengths and numbers of an image do not.
#[test]
fn fins_count_in_no_number_of_the_image() {
    const FIN_WAIT1: u8 = 4;
    const FIN_WAIT2: u8 = 5;
    const CLOSE_WAIT: u8 = 8;
    const LAST_ACK: u8 = 9;
    const CLOSING: u8 = 11;
    for (state, sent, received) in [
        (ESTABLISHED, false, false),
        (FIN_WAIT1, true, false),
        (FIN_WAIT2, true, false),
        (CLOSE_WAIT, false, true),
        (LAST_ACK, true, true),
        (CLOSING, true, true),
    ] {
        let mut numbers = Numbers::new();
        numbers.inq_seq += u32::from(received);
        numbers.rcv_wup = numbers.inq_seq;
        numbers.outq_seq += u32::from(sent);
        if state == FIN_WAIT2 {
            numbers.lengths = (4, 0, 0);
        }
        let read = imported(&numbers.file(), socket(state)).unwrap();
        let tcp = read.image.tcp().unwrap();
        assert_eq!(tcp.state().number(), state);
        assert_eq!(tcp.send().write_seq(), Seq::new(2009), "{state}");
        let snd_una = if state == FIN_WAIT2 { 2009 } else { 2000 };
        assert_eq!(tcp.send().snd_una, Seq::new(snd_una), "{state}");
        assert_eq!(tcp.receive().rcv_nxt, Seq::new(5004), "{state}");
        assert_eq!(tcp.window().rcv_wup, Seq::new(5004), "{state}");
    }
}

#[test]
fn what_cannot_go_on_is_refused_by_its_state() {
    for state in [2, 3, 6, 7] {
        let refused = imported(&Numbers::new().file(), socket(state)).unwrap_err();
        let state = TcpState::from_number(state).unwrap();
        assert_eq!(refused, CriuError::State(state));
    }
    // A listener is no connection, nor is a socket that has no peer.
    assert_eq!(sockets(&files_file(&[socket(10)])).unwrap(), []);
    let udp = socket(7).number(4, 2_u32);
    assert_eq!(sockets(&files_file(&[udp])).unwrap(), []);
}

#[test]
fn the_clock_of_timestamps_has_its_unit_and_never_goes_back() {
    let clock = |opt_mask, timestamp| {
        let mut numbers = Numbers::new();
        (numbers.opt_mask, numbers.timestamp) = (opt_mask, timestamp);
        let read = imported(&numbers.file(), socket(ESTABLISHED)).unwrap();
        let clock = read.image.tcp().unwrap().negotiated().timestamps;
        clock.map(|clock| (clock.value, clock.unit))
    };
    let (ms, us) = (TimestampUnit::Milliseconds, TimestampUnit::Microseconds);
    assert_eq!(clock(7, 1000), Some((1000, ms)));
    assert_eq!(clock(7, 1001), Some((1002, ms)));
    assert_eq!(clock(7, u32::MAX), Some((0, ms)));
    assert_eq!(clock(7 | 64, 1001), Some((1000, us)));
    assert_eq!(clock(6, 1000), None);
}

#[test]
fn options_of_earlier_and_of_later_versions_are_read() {
    let of_socket = Wire::default()
        .number(1, 1_u32)
        .number(2, 1_u32)
        .number(7, 1_u32)
        .number(8, 6_u32)
        .number(9, 64_u32)
        .number(10, 42_u32)
        .number(13, 0_u32)
        .bytes(15, b"eth0")
        .fixed64(16, 0x0006_0102_8000_0003)
        .number(17, 1_u32)
        .number(19, 1_u32)
        .number(20, 9_u32)
        .number(21, 60_u32)
        .number(22, 5_u32);
    let mut stream = Numbers::new().message().number(10, 1_u32).number(11, 1_u32);
    let file = stream_file(&stream, UNREAD, WRITTEN);
    let read = imported(&file, socket_with(ESTABLISHED, &of_socket)).unwrap();
    let options = read.image.tcp().unwrap().socket();
    assert_eq!((options.cork, options.no_delay), (Some(true), Some(true)));
    assert_eq!(
        (options.reuse_addr, options.reuse_port),
        (Some(true), Some(true))
    );
    assert_eq!(options.receive_low_water, Some(64));
    let times = KeepAlive {
        on: true,
        idle: 60,
        interval: 5,
        count: 9,
    };
    assert_eq!(options.keep_alive, Some(times));
    let instruction = FilterInstruction {
        code: 6,
        jt: 1,
        jf: 2,
        k: 0x8000_0003,
    };
    assert_eq!(options.filter, Some(vec![instruction]));
    let ip = read.image.ip().unwrap();
    assert_eq!((ip.mark, ip.priority), (Some(42), Some(6)));
    assert_eq!(ip.bound_device.as_deref(), Some("eth0"));
    assert!(!read.lacks.contains(&Lack::KeepAlive));

    // Later versions have these in messages of their own.
    stream = Numbers::new().message();
    let of_tcp = Wire::default()
        .number(1, 0_u32)
        .number(2, 1_u32)
        .number(3, 3_u32)
        .number(4, 30_u32)
        .number(5, 4_u32);
    let of_ip = Wire::default()
        .number(1, 1_u32)
        .number(6, 16_u32)
        .number(7, 63_u32);
    let of_socket = of_socket
        .number(23, 1_u32)
        .number(24, 11_u32)
        .number(25, 3_u32);
    let socket = socket_with(ESTABLISHED, &of_socket)
        .bytes(16, &of_ip.0)
        .number(19, 1_u32)
        .bytes(20, &of_tcp.0);
    let file = stream_file(&stream, UNREAD, WRITTEN);
    let read = imported(&file, socket).unwrap();
    let options = read.image.tcp().unwrap().socket();
    assert_eq!((options.cork, options.no_delay), (Some(false), Some(true)));
    assert_eq!(
        options
            .keep_alive
            .map(|times| (times.idle, times.interval, times.count)),
        Some((30, 4, 3))
    );
    assert_eq!(options.oob_inline, Some(true));
    let linger = Linger {
        on: true,
        seconds: 11,
    };
    assert_eq!(
        (options.linger, options.buffer_lock),
        (Some(linger), Some(3))
    );
    assert_eq!(options.shut_read, Some(true));
    let ip = read.image.ip().unwrap();
    assert_eq!((ip.ttl, ip.tos, ip.freebind), (Some(63), Some(16), true));
    let lacks = [Lack::Taken, Lack::CongestionControl, Lack::OtherOptions];
    assert_eq!(read.lacks, lacks);
}

#[test]
fn addresses_of_ipv6_are_read_and_mapped_ones_are_ipv4() {
    let socket = |local: [u8; 16], remote: [u8; 16]| {
        let mut socket = Wire::default()
            .number(2, INODE)
            .number(3, 10_u32)
            .number(4, 1_u32)
            .number(5, 6_u32)
            .number(6, ESTABLISHED)
            .number(7, 443_u32)
            .number(8, 9_u32);
        for (tag, address) in [(11, local), (12, remote)] {
            for word in address.chunks(4) {
                let word: [u8; 4] = word.try_into().unwrap();
                socket = socket.number(tag, u32::from_le_bytes(word));
            }
        }
        socket.number(15, 0_u32).bytes(17, b"eth0")
    };
    let v6 = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let files = files_file(&[socket(v6("fe80::1"), v6("2001:db8::9"))]);
    let [v6_socket] = &sockets(&files).unwrap()[..] else {
        panic!("there is one");
    };
    assert_eq!(v6_socket.flow.to_string(), "[fe80::1]:443,[2001:db8::9]:9");
    let ip = v6_socket.ip();
    assert_eq!(ip.scope.as_deref(), Some("eth0"));
    assert_eq!((ip.family, ip.v6_only), (SocketFamily::Ipv6, Some(false)));
    let mapped = files_file(&[socket(v6("::ffff:10.0.0.1"), v6("::ffff:10.0.0.9"))]);
    let socket = &sockets(&mapped).unwrap()[0];
    assert_eq!(socket.flow.to_string(), "10.0.0.1:443,10.0.0.9:9");
    assert_eq!(socket.ip().family, SocketFamily::Ipv4Mapped);
}

#[test]
fn what_is_missing_is_named() {
    let names = [
        "inq_len",
        "inq_seq",
        "outq_len",
        "outq_seq",
        "opt_mask",
        "snd_wscale",
        "mss_clamp",
        "rcv_wscale",
        "timestamp",
        "unsq_len",
        "snd_wl1",
        "snd_wnd",
        "max_window",
        "rcv_wnd",
        "rcv_wup",
    ];
    let tags = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17];
    for (name, left_out) in names.into_iter().zip(tags) {
        let mut message = Wire::default();
        for tag in tags.into_iter().filter(|tag| *tag != left_out) {
            // Options that need all of them; queues that are empty.
            message = message.number(tag, if tag == 5 { 7_u32 } else { 0 });
        }
        let found = imported(&stream_file(&message, b"", b""), socket(ESTABLISHED));
        let file = STREAM_FILE;
        assert_eq!(found, Err(CriuError::Missing { file, field: name }));
    }
}

#[test]
fn damaged_files_are_refused_by_what_is_wrong() {
    let good = Numbers::new().file();
    for length in 0..good.len() {
        let found = Stream::read(&good[..length], &Limits::default());
        let expected = if length < Kind::BEGINNING {
            CriuError::NotThat { file: STREAM_FILE }
        } else {
            CriuError::CutOff { file: STREAM_FILE }
        };
        assert_eq!(found, Err(expected), "{length}");
    }
    let longer = [&good[..], b"!"].concat();
    let found = Stream::read(&longer, &Limits::default());
    let (file, bytes) = (STREAM_FILE, 1);
    assert_eq!(found, Err(CriuError::Trailing { file, bytes }));
    let found = Stream::read(&files_file(&[]), &Limits::default());
    assert_eq!(found, Err(CriuError::NotThat { file }));

    let mut limits = Limits::default();
    limits.max_queue = 8;
    let (bytes, limit) = (9, 8);
    let found = Stream::read(&good, &limits);
    assert_eq!(found, Err(CriuError::TooLong { bytes, limit }));

    let mut numbers = Numbers::new();
    numbers.lengths.2 = 10;
    let found = imported(&numbers.file(), socket(ESTABLISHED)).unwrap_err();
    let expected = CriuError::Value {
        file,
        field: "unsq_len",
        value: 10,
    };
    assert_eq!(found, expected);

    for (tag, value, field) in [
        (7, 70_000_u32, "src_port"),
        (6, 12, "state"),
        (8, 65_536, "dst_port"),
    ] {
        let found = sockets(&files_file(&[socket(ESTABLISHED).number(tag, value)]));
        let file = read::FILES_FILE;
        assert_eq!(found.unwrap_err(), CriuError::Value { file, field, value });
    }
    let two_words = socket(ESTABLISHED).number(11, 1_u32);
    let (words, family) = (2, 2);
    let found = sockets(&files_file(&[two_words])).unwrap_err();
    assert_eq!(found, CriuError::Address { words, family });
}

proptest! {
    /// Whatever is in the files, the answer is an image that is valid, or an error.
    #[test]
    fn any_files_are_imported_or_refused(
        stream in proptest::collection::vec((1_u64..20, any::<u64>()), 0..24),
        socket in proptest::collection::vec((1_u64..24, any::<u32>()), 0..24),
        queues in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut message = Numbers::new().message();
        for (tag, value) in stream {
            message = message.number(tag, value);
        }
        let mut connection = self::socket(ESTABLISHED);
        for (tag, value) in socket {
            connection = connection.number(tag, value);
        }
        let stream = Stream::read(&stream_file(&message, b"", &queues), &Limits::default());
        let sockets = sockets(&files_file(&[connection]));
        if let (Ok(stream), Ok(sockets)) = (stream, sockets)
            && let [socket] = &sockets[..]
            && let Ok(read) = import(stream, socket)
        {
            let bytes = read.image.encode().expect("it is valid");
            prop_assert_eq!(Image::decode(&bytes, &Limits::default()).unwrap(), read.image);
        }
    }
}
