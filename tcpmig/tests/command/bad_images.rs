//! Whole images whose numbers contradict each other, and images of what is not a connection.

use std::fs;
use std::process::Command;

use tcpmig_format::{
    ConnectionImage, Envelope, Image, IpImage, Layer, ListenImage, Negotiated, PendingError,
    ReceiveSpace, SecretBytes, SendSpace, Seq, SocketFamily, SocketOptions, TcpImage, TcpParts,
    TcpState, Window, WindowScale,
};
use tcpmig_sys::lab::isolated;

use crate::support::{Net, TCPMIG, fails, succeeds, tcpmig, text};

fn connection() -> Image {
    let parts = TcpParts {
        state: TcpState::Established,
        send: SendSpace {
            snd_una: Seq::new(0x1111_1111),
            sent: SecretBytes::from(&b"sent"[..]),
            unsent: SecretBytes::from(&b"unsent"[..]),
        },
        receive: ReceiveSpace {
            rcv_nxt: Seq::new(0x2222_2222),
            queue: SecretBytes::from(&b"received"[..]),
        },
        negotiated: Negotiated {
            mss_clamp: 1460,
            window_scale: Some(WindowScale { snd: 2, rcv: 7 }),
            ..Negotiated::default()
        },
        window: Window {
            snd_wl1: Seq::new(0x2222_2222),
            snd_wnd: 100_000,
            max_window: 200_000,
            rcv_wnd: 300_000,
            rcv_wup: Seq::new(0x2222_2222),
        },
        socket: SocketOptions::default(),
        pending_error: None,
    };
    let flow = "198.18.0.80:7000,198.18.0.9:7001".parse().unwrap();
    let ip = IpImage::new(flow, SocketFamily::Ipv4);
    Image::new(ConnectionImage::new(ip, TcpImage::new(parts).unwrap()))
}

fn without_tcp() -> Image {
    let mut image = connection();
    image.connection_mut().unwrap().tcp = None;
    image
}

/// The image with another number in a field, which no encoder would write, in a whole envelope.
fn forged(field: &str, number: u32) -> Vec<u8> {
    let image = connection().encode().unwrap();
    let mut key = vec![0xa0 | field.len() as u8];
    key.extend(field.as_bytes());
    let places = image.windows(key.len()).filter(|window| **window == key);
    assert_eq!(places.count(), 1, "{field}");
    let at = image.windows(key.len()).position(|window| window == key);
    let at = at.unwrap() + key.len();
    let old = match image[at] {
        0..=0x7f => 1,
        0xcc => 2,
        0xcd => 3,
        0xce => 5,
        other => panic!("{field} is not a number: {other:#x}"),
    };
    let number = match u8::try_from(number) {
        Ok(small @ 0..=0x7f) => vec![small],
        _ => [&[0xce][..], &number.to_be_bytes()].concat(),
    };
    let payload = [&image[Envelope::LEN..at], &number, &image[at + old..]].concat();
    let mut forged = image[..12].to_vec();
    forged.extend((payload.len() as u64).to_be_bytes());
    let checksum = crc32([&forged[..], &payload].concat());
    forged.extend(checksum.to_be_bytes());
    forged.extend(payload);
    forged
}

/// CRC-32 of IEEE 802.3.
fn crc32(bytes: Vec<u8>) -> u32 {
    !bytes.into_iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            let carry = 0xedb8_8320 & (crc & 1).wrapping_neg();
            crc >> 1 ^ carry
        })
    })
}

#[test]
fn numbers_that_contradict_each_other_are_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("forged");
    let path = path.to_str().unwrap();
    let marker = folder.path().join("ran");
    let marker = marker.to_str().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&*TCPMIG);
        command.args(arguments).output().unwrap()
    };
    // The way of forging itself is sound.
    fs::write(path, forged("snd_wnd", 100_001)).unwrap();
    succeeds(&run(&["inspect", path]));
    for (field, number, reason) in [
        ("snd_wnd", 200_001, "max_window 200000 is less than snd_wnd"),
        ("max_window", 65_535 * 4 + 1, "the window scale allows"),
        ("rcv_wnd", (1 << 30) + 1, "above 1 GiB"),
        ("rcv_wup", 0x2222_2223, "is after rcv_nxt"),
        (
            "snd_wl1",
            0x2222_2223 + 300_000,
            "is after rcv_nxt + rcv_wnd",
        ),
        ("mss_clamp", 0, "mss_clamp is 0"),
        ("mss_clamp", 1 << 16, "u16"),
        ("rcv", 15, "window scale 15"),
        ("state", 2, "cannot be in state SYN-SENT"),
        ("state", 5, "cannot be in state FIN-WAIT-2"),
        ("state", 6, "cannot be in state TIME-WAIT"),
        ("state", 7, "cannot be in state CLOSED"),
        ("state", 10, "cannot be in state LISTEN"),
        ("state", 12, "no meaning"),
    ] {
        fs::write(path, forged(field, number)).unwrap();
        fails(&run(&["inspect", path]), 1, &["forged", reason]);
        // It does not come as far as the namespace, in which the socket would be.
        let restore = [
            "restore",
            path,
            "--netns",
            "no-such-namespace",
            "--",
            "touch",
            marker,
        ];
        let output = run(&restore);
        fails(&output, 1, &["forged", reason]);
        assert!(!text(&output.stderr).contains("no-such-namespace"));
    }
    assert!(!fs::exists(marker).unwrap());
}

#[test]
fn images_of_no_connection_are_refused_with_the_reason() {
    isolated(
        "bad_images::images_of_no_connection_are_refused_with_the_reason",
        || {
            let net = Net::new();
            let path = net.file("image");
            let in_state = |state| {
                let mut image = connection();
                let mut parts = image.tcp().unwrap().parts().clone();
                parts.state = state;
                parts.send = SendSpace::default();
                parts.receive.queue = SecretBytes::default();
                image.connection_mut().unwrap().tcp = Some(TcpImage::new(parts).unwrap());
                image
            };
            let mut nothing = Image::default();
            nothing.layers = vec![Layer::default()];
            let mut encrypted = connection();
            encrypted.layers = vec![Layer::new(tcpmig::tls::KIND, 1, &b"keys"[..])];
            for (image, reason) in [
                (in_state(TcpState::Listen), "LISTEN"),
                (in_state(TcpState::SynRecv), "SYN-RECEIVED"),
                (in_state(TcpState::TimeWait), "TIME-WAIT"),
                (nothing, "no IP layer"),
                (encrypted, "the secrets of a TLS session"),
                (without_tcp(), "no TCP layer"),
            ] {
                fs::write(&path, image.encode().unwrap()).unwrap();
                let restore = ["restore", path.to_str().unwrap(), "--", "true"];
                fails(&tcpmig(&net.b, &restore), 1, &[reason]);
            }
        },
    );
}

#[test]
fn images_of_what_ended_or_listens_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let show = |image: &Image| {
        fs::write(&path, image.encode().unwrap()).unwrap();
        let mut command = Command::new(&*TCPMIG);
        command.arg("inspect").arg(&path);
        succeeds(&command.output().unwrap())
    };
    let mut listen = ListenImage::new("[::]:443".parse().unwrap(), 37);
    listen.v6_only = Some(true);
    let shown = show(&Image::new(listen));
    for part in ["listener", "[::]:443", "v6_only", "backlog              37"] {
        assert!(shown.contains(part), "{shown}");
    }
    let mut image = connection();
    let mut parts = image.tcp().unwrap().parts().clone();
    parts.state = TcpState::Close;
    parts.send = SendSpace::default();
    parts.pending_error = Some(PendingError {
        errno: PendingError::CONNECTION_RESET,
        after_fin: false,
    });
    image.connection_mut().unwrap().tcp = Some(TcpImage::new(parts).unwrap());
    let shown = show(&image);
    assert!(shown.contains("Connection reset by peer"), "{shown}");
}

#[test]
fn layers_are_shown_from_the_bottom_up_and_states_as_they_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let mut image = connection();
    image.layers = vec![
        Layer::new("org.example.tls", 1, &b"secret"[..]),
        Layer::new("org.example.chat", 3, &b"room"[..]),
    ];
    fs::write(&path, image.encode().unwrap()).unwrap();
    let show = |options: &[&str]| {
        let mut command = Command::new(&*TCPMIG);
        command.args(options).arg("inspect").arg(&path);
        succeeds(&command.output().unwrap())
    };
    let shown = show(&[]);
    let words: Vec<_> = shown.split_whitespace().collect();
    for part in [
        "layers 1 kind org.example.tls payload 6 bytes version 1",
        "layers 2 kind org.example.chat payload 4 bytes version 3",
        "state ESTABLISHED",
        "family ipv4",
        "subject connection",
    ] {
        assert!(words.join(" ").contains(part), "{part}: {shown}");
    }
    assert!(!shown.contains("secret"));
    let value: serde_json::Value = serde_json::from_str(&show(&["--json"])).unwrap();
    let layers = serde_json::json!([
        { "kind": "org.example.tls", "version": 1, "payload": { "bytes": 6 } },
        { "kind": "org.example.chat", "version": 3, "payload": { "bytes": 4 } },
    ]);
    assert_eq!(value["layers"], layers);
    assert_eq!(value["image"]["subject"], "connection");
    assert_eq!(value["image"]["format_version"], 3);
    assert_eq!(value["tcp"]["state"], "ESTABLISHED");
    assert_eq!(value["ip"]["family"], "ipv4");
}

#[test]
fn an_image_of_long_ago_is_restored_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    // What it ends with, after the warning, is another matter.
    let mut image = without_tcp();
    let mut restore = |taken| {
        image.taken = taken;
        fs::write(&path, image.encode().unwrap()).unwrap();
        let mut command = Command::new(&*TCPMIG);
        command.arg("restore").arg(&path).args(["--", "true"]);
        let output = command.output().unwrap();
        fails(&output, 1, &["error: "]);
        text(&output.stderr)
    };
    // 2001-09-09 01:46:40 UTC.
    let said = restore(Some(1_000_000_000_000_000));
    let warning = "warning: the image was taken 2";
    assert!(said.contains(warning), "{said}");
    // Unknown, and of a clock that is ahead.
    for taken in [None, Some(u64::MAX)] {
        let said = restore(taken);
        assert!(!said.contains("warning"), "{said}");
    }
}
