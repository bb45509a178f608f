use super::*;
use crate::{ReceiveSpace, SecretBytes, SendSpace, TcpImage, WindowScale};

fn parts() -> TcpParts {
    TcpParts {
        state: TcpState::Established,
        send: SendSpace {
            snd_una: Seq::new(u32::MAX - 2),
            sent: SecretBytes::from(&b"sent"[..]),
            unsent: SecretBytes::from(&b"unsent"[..]),
        },
        receive: ReceiveSpace {
            rcv_nxt: Seq::new(2),
            queue: SecretBytes::from(&b"received"[..]),
        },
        negotiated: Negotiated {
            mss_clamp: 1460,
            window_scale: Some(WindowScale { snd: 14, rcv: 14 }),
            ..Negotiated::default()
        },
        window: Window {
            snd_wl1: Seq::new(u32::MAX),
            snd_wnd: 1000,
            max_window: 2000,
            rcv_wnd: 65535,
            rcv_wup: Seq::new(u32::MAX),
        },
        socket: SocketOptions::default(),
        pending_error: None,
    }
}

/// A connection that a reset has ended.
fn ended(errno: u16, after_fin: bool) -> TcpParts {
    let mut parts = parts();
    parts.state = TcpState::Close;
    parts.send.sent = SecretBytes::default();
    parts.send.unsent = SecretBytes::default();
    parts.pending_error = Some(PendingError { errno, after_fin });
    parts
}

fn with(change: impl FnOnce(&mut TcpParts)) -> Result<(), InvalidTcp> {
    let mut parts = parts();
    change(&mut parts);
    TcpImage::new(parts).map(drop)
}

#[test]
fn spaces_are_derived_across_the_wrap() {
    let tcp = TcpImage::new(parts()).unwrap();
    assert_eq!(tcp.send().snd_nxt(), Seq::new(1));
    assert_eq!(tcp.send().write_seq(), Seq::new(7));
    assert_eq!(tcp.receive().copied_seq(), Seq::new(u32::MAX - 5));
}

#[test]
fn what_real_connections_have_passes() {
    let largest = 0xffff << 14;
    with(|p| {
        p.window.snd_wnd = largest;
        p.window.max_window = largest;
        p.window.rcv_wnd = 1 << 30;
    })
    .unwrap();
    with(|p| {
        p.window.snd_wnd = 0;
        p.window.rcv_wnd = 0;
        p.window.snd_wl1 = p.receive.rcv_nxt;
    })
    .unwrap();
    // Bytes merged into the receive queue move rcv_nxt past the window.
    with(|p| {
        p.window.rcv_wnd = 10;
        p.receive.rcv_nxt = p.window.rcv_wup + 4000;
    })
    .unwrap();
    // No scale, and a receive window that only autotuning reaches.
    with(|p| {
        p.negotiated.window_scale = None;
        p.window.rcv_wnd = 70_000;
    })
    .unwrap();
}

#[test]
fn windows_follow_the_kernel() {
    assert_eq!(
        with(|p| p.window.max_window = 999),
        Err(InvalidTcp::MaxWindow {
            max_window: 999,
            snd_wnd: 1000
        })
    );
    assert!(matches!(
        with(|p| p.window.rcv_wup = p.receive.rcv_nxt + 1),
        Err(InvalidTcp::RcvWup { .. })
    ));
    assert!(matches!(
        with(|p| p.window.snd_wl1 = p.receive.rcv_nxt + p.window.rcv_wnd + 1),
        Err(InvalidTcp::SndWl1 { .. })
    ));
    with(|p| p.window.snd_wl1 = p.receive.rcv_nxt + p.window.rcv_wnd).unwrap();
    assert_eq!(
        with(|p| p.window.rcv_wnd = (1 << 30) + 1),
        Err(InvalidTcp::RcvWnd((1 << 30) + 1))
    );
    assert!(matches!(
        with(|p| {
            p.negotiated.window_scale = None;
            p.window.max_window = 65536;
        }),
        Err(InvalidTcp::WindowAboveScale {
            what: "max_window",
            limit: 65535,
            ..
        })
    ));
    assert!(matches!(
        with(|p| {
            p.window.snd_wnd = u32::MAX;
            p.window.max_window = u32::MAX;
        }),
        Err(InvalidTcp::WindowAboveScale {
            what: "snd_wnd",
            ..
        })
    ));
}

#[test]
fn windows_outside_a_connection_are_left_alone() {
    let mut parts = ended(PendingError::CONNECTION_RESET, false);
    parts.window.max_window = 0;
    parts.window.rcv_wup = parts.receive.rcv_nxt + 1;
    TcpImage::new(parts).unwrap();
}

#[test]
fn an_error_waits_where_a_connection_has_ended() {
    let check = |parts| TcpImage::new(parts).map(drop);
    for (errno, after_fin) in [(104, false), (104, true), (32, true), (110, false)] {
        check(ended(errno, after_fin)).unwrap();
    }
    for state in TcpState::ALL {
        let mut parts = ended(PendingError::CONNECTION_RESET, false);
        parts.state = state;
        parts.receive.queue = SecretBytes::default();
        let expected = match state {
            TcpState::Close => Ok(()),
            other => Err(InvalidTcp::PendingErrorInState(other)),
        };
        assert_eq!(check(parts), expected);
    }
    for errno in [0, 4096, u16::MAX] {
        assert_eq!(
            check(ended(errno, false)),
            Err(InvalidTcp::PendingErrno(errno))
        );
    }
    assert_eq!(
        check(ended(PendingError::BROKEN_PIPE, false)),
        Err(InvalidTcp::PendingPipe)
    );
}

#[test]
fn negotiated_values_have_limits() {
    assert_eq!(
        with(|p| p.negotiated.mss_clamp = 0),
        Err(InvalidTcp::MssClamp)
    );
    for scale in [
        WindowScale { snd: 15, rcv: 0 },
        WindowScale { snd: 0, rcv: 15 },
    ] {
        assert_eq!(
            with(|p| p.negotiated.window_scale = Some(scale)),
            Err(InvalidTcp::WindowScale(15))
        );
    }
}

#[test]
fn queues_agree_with_the_state() {
    use TcpState::*;
    let lengths = |sent, unsent, receive| Lengths {
        sent,
        unsent,
        receive,
    };
    for state in TcpState::ALL {
        check_queues(state, Lengths::default()).unwrap();
        let sent = check_queues(state, lengths(1, 0, 0)).is_ok();
        let unsent = check_queues(state, lengths(0, 1, 0)).is_ok();
        let receive = check_queues(state, lengths(0, 0, 1)).is_ok();
        let expected = match state {
            Listen => (false, false, false),
            SynSent => (false, false, false),
            SynRecv => (false, true, false),
            FinWait2 | TimeWait | Close => (false, false, true),
            _ => (true, true, true),
        };
        assert_eq!((sent, unsent, receive), expected, "{state}");
    }
}

#[test]
fn queues_are_limited() {
    let lengths = |sent, unsent, receive| Lengths {
        sent,
        unsent,
        receive,
    };
    let check = |lengths| check_queues(TcpState::Established, lengths);
    check(lengths(MAX_BYTES, 0, MAX_BYTES)).unwrap();
    for (lengths, name) in [
        (lengths(MAX_BYTES, 1, 0), "send"),
        (lengths(usize::MAX, usize::MAX, 0), "send"),
        (lengths(0, 0, MAX_BYTES + 1), "receive"),
    ] {
        assert!(
            matches!(check(lengths), Err(InvalidTcp::QueueLength { queue, .. }) if queue == name)
        );
    }
}

#[test]
fn options_have_limits() {
    assert_eq!(
        with(|p| p.socket.buffer_lock = Some(4)),
        Err(InvalidTcp::BufferLock(4))
    );
    with(|p| p.socket.buffer_lock = Some(3)).unwrap();
    let instruction = crate::FilterInstruction {
        code: 6,
        jt: 0,
        jf: 0,
        k: 1,
    };
    with(|p| p.socket.filter = Some(vec![instruction; 4096])).unwrap();
    for len in [0, 4097] {
        assert_eq!(
            with(|p| p.socket.filter = Some(vec![instruction; len])),
            Err(InvalidTcp::Filter(len))
        );
    }
    with(|p| p.socket.congestion = Some("cubic".into())).unwrap();
    for name in ["", "a b", "bbr\0", "abcdefghijklmnop"] {
        assert_eq!(
            with(|p| p.socket.congestion = Some(name.into())),
            Err(InvalidTcp::Congestion(name.into()))
        );
    }
}
