//! Every option of the tables, on connections that move: it becomes what its row says.

use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use socket2::{Domain, Socket, Type};
use tcpmig::capture::{CaptureError, Plan};
use tcpmig_sys::lab::{accepting_program, option, set_option};
use tcpmig_sys::options::{self, Fate, KnownOption, Level};
use tcpmig_sys::{Error, NotMigratable, netns, sockopt};

use crate::scene::{arrive, leave, locker};
use crate::support::{Family, Net, both_ways, kernel_test};

fn of_this_arch(row: &KnownOption) -> bool {
    row.level != Level::Socket || cfg!(any(target_arch = "x86_64", target_arch = "aarch64"))
}

/// Options that reach tables of the host through any socket, which a test leaves alone.
fn is_of_the_host(level: Level, number: i32) -> bool {
    match level {
        // Netfilter (64 to 99) and multicast routing (200 to 219).
        Level::Ip => (64..220).contains(&number),
        Level::Ipv6 => matches!(number, 64 | 65 | 68 | 69 | 80 | 200..220),
        _ => false,
    }
}

fn is_unknown(error: &Error) -> bool {
    error.errno() == Some(nix::errno::Errno::ENOPROTOOPT as i32)
}

kernel_test!(the_kernel_has_no_option_that_the_tables_lack, || {
    for (domain, levels) in [
        (Domain::IPV4, vec![Level::Socket, Level::Ip, Level::Tcp]),
        (Domain::IPV6, vec![Level::Ip, Level::Ipv6]),
    ] {
        for level in levels {
            let lacks = |number: &i32| {
                if is_of_the_host(level, *number) {
                    return false;
                }
                let socket = Socket::new(domain, Type::STREAM, None).unwrap();
                let (fd, at) = (socket.as_fd(), level.number());
                let read = option(fd, at, *number).map(drop);
                let known = [read, set_option(fd, at, *number, &0_i32.to_ne_bytes())];
                let in_table =
                    options::all().any(|row| row.level == level && row.number == *number);
                !in_table
                    && !known
                        .iter()
                        .all(|result| matches!(result, Err(e) if is_unknown(e)))
            };
            let missing: Vec<_> = (0..1024).filter(lacks).collect();
            assert_eq!(missing, [0; 0], "{level:?} of a socket of {domain:?}");
        }
    }
});

fn number(value: i32) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

fn pair<T: Copy>(values: [T; 2], bytes: fn(T) -> Vec<u8>) -> Vec<u8> {
    values.into_iter().flat_map(bytes).collect()
}

/// `2001:2::ff`.
const ANYCAST: [u8; 16] = [0x20, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff];

/// What a test can do with an option.
enum Change {
    /// It has another value than before, and this is read.
    To(Option<Vec<u8>>),
    /// It was set; nothing tells.
    Unseen,
    /// It cannot be set on a connection, here.
    None,
}

/// Values of which one at least is not what a socket has; the connection works with each.
fn values(row: &KnownOption, device: u32) -> Vec<Vec<u8>> {
    let long = |value: i64| value.to_ne_bytes().to_vec();
    // Eight bytes of padding: the header's next field, its length, an option that fills it.
    let header = vec![0, 0, 1, 4, 0, 0, 0, 0];
    match row.name {
        "SO_LINGER" => vec![pair([1, 13], number)],
        "SO_RCVTIMEO" | "SO_SNDTIMEO" | "SO_RCVTIMEO_NEW" | "SO_SNDTIMEO_NEW" => {
            vec![pair([500, 250_000], long)]
        }
        "SO_TXTIME" => vec![pair([1, 0], number)],
        "SO_BINDTODEVICE" => vec![b"eth0".to_vec()],
        "SO_BINDTOIFINDEX" => vec![number(device.cast_signed())],
        "SO_MAX_PACING_RATE" => vec![long(50_000_000)],
        "SO_SNDBUF" | "SO_RCVBUF" => vec![number(100_000)],
        "SO_RCVLOWAT" => vec![number(3)],
        // The kernel keeps the two low bits to itself.
        "IP_TOS" | "IPV6_TCLASS" => vec![number(0x48)],
        "IP_OPTIONS" => vec![vec![1, 1, 1, 0]],
        "IP_MULTICAST_TTL" | "IP_MTU_DISCOVER" | "IPV6_MTU_DISCOVER" => vec![number(2)],
        "TCP_USER_TIMEOUT" => vec![number(654_321)],
        "TCP_CONGESTION" => vec![b"reno".to_vec(), b"cubic".to_vec()],
        "TCP_WINDOW_CLAMP" => vec![number(30_000)],
        "TCP_RTO_MAX_MS" => vec![number(5000)],
        "TCP_RTO_MIN_US" | "TCP_DELACK_MAX_US" => vec![number(100_000)],
        "IPV6_HOPOPTS" | "IPV6_DSTOPTS" | "IPV6_RTHDRDSTOPTS" => vec![header],
        // Types 2 and 4 with one address, that of the peer.
        "IPV6_RTHDR" => [[0, 2, 2, 1, 0, 0, 0, 0], [0, 2, 4, 0, 0, 0, 0, 0]]
            .into_iter()
            .map(|start| {
                [
                    &start[..],
                    &[0x20, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
                ]
                .concat()
            })
            .collect(),
        "IPV6_2292PKTOPTIONS" => {
            // A control message of `IPV6_2292HOPOPTS`.
            let mut message = (16_u64 + header.len() as u64).to_ne_bytes().to_vec();
            message.extend(pair([Level::Ipv6.number(), 3], number));
            message.extend(header);
            vec![message]
        }
        "IP_UNICAST_IF" | "IPV6_UNICAST_IF" => vec![device.to_be_bytes().to_vec()],
        "IPV6_MTU" => vec![number(1280)],
        "IPV6_PKTINFO" => vec![[&[0; 16][..], &device.to_ne_bytes()].concat()],
        "IPV6_JOIN_ANYCAST" => vec![[&ANYCAST[..], &device.to_ne_bytes()].concat()],
        // `struct group_req` has a `struct sockaddr_storage`.
        "MCAST_JOIN_GROUP" => {
            let mut group = vec![0; 136];
            group[..4].copy_from_slice(&device.to_ne_bytes());
            if row.level == Level::Ip {
                group[8..10].copy_from_slice(&2_u16.to_ne_bytes());
                group[12..16].copy_from_slice(&[239, 1, 2, 3]);
            } else {
                group[8..10].copy_from_slice(&10_u16.to_ne_bytes());
                group[16..18].copy_from_slice(&[0xff, 0x15]);
                group[31] = 9;
            }
            vec![group]
        }
        _ => vec![number(1), number(0)],
    }
}

/// Carried options that a number or a few bytes do not set on a connection, and why.
fn is_set_otherwise(row: &KnownOption) -> bool {
    matches!(
        row.name,
        // They tell what the image has from elsewhere: `addresses`, and the states of connections.
        "SO_ERROR" | "SO_PEERNAME" | "SO_DOMAIN" | "IPV6_ADDRFORM" | "IPV6_V6ONLY" | "TCP_MAXSEG"
        // Of repair mode, without which they are refused.
        | "TCP_QUEUE_SEQ" | "TCP_REPAIR_OPTIONS" | "TCP_REPAIR_WINDOW" | "TCP_TIMESTAMP"
        // Read under another name, and set in the initial user namespace only: `carried`, `extremes`.
        | "SO_SNDBUFFORCE" | "SO_RCVBUFFORCE"
        // A pointer: `carried`.
        | "SO_ATTACH_FILTER"
        // A label of its own: `flow_labels`.
        | "IPV6_FLOWLABEL_MGR"
        // Keys and layers: `tests/states/refused.rs`, `tests/kernels`.
        | "TCP_MD5SIG" | "TCP_MD5SIG_EXT" | "TCP_AO_ADD_KEY" | "TCP_AO_INFO" | "TCP_ULP"
        // A program: below.
        | "SO_ATTACH_BPF"
    )
}

/// What of a row shows whether it was set: what is read, or what other option tells of it.
fn read(fd: BorrowedFd<'_>, row: &KnownOption) -> Option<Vec<u8>> {
    let row = match row.name {
        "IPV6_2292PKTOPTIONS" => KnownOption::named("IPV6_HOPOPTS").unwrap(),
        _ => row,
    };
    option(fd, row.level.number(), row.number).ok()
}

/// Sets a row to another value than it has.
fn change(fd: BorrowedFd<'_>, row: &KnownOption, device: u32) -> Change {
    let before = read(fd, row);
    let mut why = Vec::new();
    let mut done = Change::None;
    for value in values(row, device) {
        match set_option(fd, row.level.number(), row.number, &value) {
            Ok(()) => {
                let now = read(fd, row);
                if now != before {
                    return Change::To(now);
                }
                done = Change::Unseen;
            }
            Err(error) => why.push(error),
        }
    }
    // Older kernels lack some, and ordinary users may not set some.
    let missing = why.iter().any(|error| {
        matches!(
            error,
            Error::Unsupported { .. } | Error::NoPermission { .. }
        )
    });
    let needs_value = matches!(row.fate, Fate::Carried | Fate::Refused);
    assert!(
        !needs_value || missing || is_set_otherwise(row),
        "{} has no other value: {why:?}",
        row.name
    );
    done
}

/// Nothing may be on its way: between the source's end and the new one's beginning there is no lock.
fn moves_on_a(net: &Net, server: TcpStream) -> TcpStream {
    let image = leave(&net.a, server);
    let flow = image.ip().unwrap().flow;
    locker(&net.a).force_unlock(&[flow]).unwrap();
    arrive(&net.a, image)
}

fn is_refused(net: &Net, server: &TcpStream, row: &KnownOption) {
    let error = net.a.run(|| Plan::read(server.as_fd())).unwrap();
    let error = error.expect_err(row.name);
    assert!(error.is_not_migratable(), "{error}");
    let name = match row.name {
        "IPV6_2292PKTOPTIONS" => "IPV6_HOPOPTS",
        name => name,
    };
    assert!(error.to_string().contains(name), "{name}: {error}");
    let CaptureError::Socket(Error::NotMigratable(reason)) = error else {
        panic!("{error}");
    };
    if reason == NotMigratable::InRepairMode {
        sockopt::set_repair(server.as_fd(), sockopt::Repair::OffQuiet).unwrap();
    }
}

fn becomes_what_its_row_says(net: &Net, family: Family, row: &KnownOption) -> bool {
    let (peer, server) = net.connect(family);
    let device = net.a.run(|| netns::device_index("eth0")).unwrap().unwrap();
    let changed = match change(server.as_fd(), row, device) {
        Change::To(changed) => changed,
        Change::Unseen if matches!(row.fate, Fate::DoesNotMatter | Fate::NotSeen) => None,
        Change::Unseen | Change::None => return false,
    };
    match row.fate {
        Fate::Refused => {
            is_refused(net, &server, row);
            if row.name != "TCP_REPAIR" {
                assert_eq!(read(server.as_fd(), row), changed, "{}", row.name);
            }
            // Hosts and routers drop segments with some of these headers, which those of IPv4 do not have.
            if family != Family::V6 {
                both_ways(&peer, &server);
            }
        }
        fate => {
            let moved = moves_on_a(net, server);
            if fate == Fate::Carried {
                assert_eq!(read(moved.as_fd(), row), changed, "{}", row.name);
            }
            // It would keep each answer back for a retransmission timeout.
            sockopt::set_cork(moved.as_fd(), false).unwrap();
            both_ways(&peer, &moved);
        }
    }
    true
}

fn all_become_what_their_rows_say(family: Family, levels: &[Level], at_least: usize) {
    let net = Net::new();
    let rows = options::all()
        .filter(|row| levels.contains(&row.level) && of_this_arch(row))
        .filter(|row| !is_of_the_host(row.level, row.number));
    let mut tried = 0;
    for row in rows {
        if becomes_what_its_row_says(&net, family, row) {
            tried += 1;
        }
    }
    assert!(tried >= at_least, "{tried} options could be set");
}

kernel_test!(
    every_option_of_an_ipv4_socket_becomes_what_its_row_says,
    || {
        all_become_what_their_rows_say(Family::V4, &[Level::Socket, Level::Ip, Level::Tcp], 55);
    }
);

kernel_test!(
    every_option_of_an_ipv6_socket_becomes_what_its_row_says,
    || {
        all_become_what_their_rows_say(Family::V6, &[Level::Ipv6], 30);
    }
);

kernel_test!(
    every_option_of_a_mapped_socket_becomes_what_its_row_says,
    || {
        all_become_what_their_rows_say(Family::Mapped, &[Level::Ip, Level::Ipv6], 30);
    }
);

kernel_test!(an_ebpf_filter_is_refused_by_its_name, || {
    let net = Net::new();
    let (peer, server) = net.connect(Family::V4);
    let program = match accepting_program() {
        Ok(program) => program,
        // Ordinary users may load none on many hosts.
        Err(error) => {
            assert!(
                matches!(
                    error,
                    Error::NoPermission { .. } | Error::Unsupported { .. }
                ),
                "{error}"
            );
            return;
        }
    };
    let row = KnownOption::named("SO_ATTACH_BPF").unwrap();
    let descriptor = number(program.as_raw_fd());
    set_option(server.as_fd(), row.level.number(), row.number, &descriptor).unwrap();
    is_refused(&net, &server, row);
    both_ways(&peer, &server);
});
