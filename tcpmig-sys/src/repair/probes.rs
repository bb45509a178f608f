//! What makes a connection go on at once when its repair ends, here or on the host that it moved to.

use std::os::fd::BorrowedFd;

use super::numbers::{Stood, read_numbers_in};
use crate::error::{Error, Result};
use crate::info::{State, tcp_info};
use crate::netns::Namespace;
use crate::packet::inject::Injector;
use crate::packet::{Ip, Segment};
use crate::sockopt::{self, Repair};
use crate::uapi::RepairWindow;

/// A segment of the send queue.
#[derive(Debug)]
pub(crate) struct Retransmit {
    /// Its sequence number. Taken when the queue is filled: at activation the peer's acknowledgement
    /// may have come and moved `snd_una`.
    pub(crate) seq: u32,
    pub(crate) bytes: Vec<u8>,
}

/// What a connection needs when repair is off.
pub(crate) struct Probes {
    /// Tells the peer where this end stands.
    announce: Option<Segment>,
    /// Make the peer tell where it stands, with their data.
    questions: Vec<(Segment, Vec<u8>)>,
    nudge: bool,
    mark: u32,
}

impl Probes {
    /// What is sent for the connection of this socket, which is in repair mode and has this injector; `retransmit` are segments of its send
    /// queue, and `before` is where it stood when it was rebuilt, with which windows: then nothing is unsent in ESTABLISHED.
    ///
    /// The kernel's own probe, in ESTABLISHED only, asks the peer for its acknowledgement, but the peer takes
    /// nothing from it, because its sequence number is old, and Linux answers one such segment without data in 500 ms only
    /// (`tcp_invalid_ratelimit`). So in ESTABLISHED one segment tells the peer what was received, which it may be
    /// waiting for, and others with data that it has, or that was lost, make it tell what it has.
    pub(crate) fn read(
        fd: BorrowedFd<'_>,
        injector: &Injector,
        retransmit: &[Retransmit],
        before: Option<(&Stood, Option<RepairWindow>)>,
    ) -> Result<Self> {
        let info = tcp_info(fd)?;
        let established = info.state == State::Established;
        let numbers = match before {
            Some((stood, _)) => stood.now(&info),
            None => read_numbers_in(fd, info.state)?,
        };
        let window = match before {
            // Windows change with what arrives, and not by themselves.
            Some((stood, Some(window))) if stood.is_still_there(&numbers) => window,
            _ => sockopt::repair_window(fd)?,
        };
        let open = window
            .rcv_wup
            .wrapping_add(window.rcv_wnd)
            .wrapping_sub(numbers.rcv_nxt);
        let scale = info.window_scale.map_or(0, |scales| scales.rcv);
        let unsent = match before {
            Some(_) if established => 0,
            _ => sockopt::unsent_len(fd)?,
        };
        let fin = info.state.fin_unacknowledged() && unsent == 0;
        let seq = if fin {
            numbers.write_seq.wrapping_sub(1)
        } else {
            // Older than what the peer expects: it answers, and acts on nothing in it.
            numbers.snd_una.wrapping_sub(1)
        };
        let (hops, class) = if injector.is_ipv4() {
            (sockopt::ttl(fd), sockopt::tos(fd))
        } else {
            (sockopt::hop_limit(fd), sockopt::traffic_class(fd))
        };
        let byte = |value: Result<i32>| value.ok().and_then(|value| u8::try_from(value).ok());
        let ip = Ip {
            hops: byte(hops).unwrap_or(64),
            class: byte(class).unwrap_or(0),
        };
        let ask = Segment {
            seq,
            ack: numbers.rcv_nxt,
            fin,
            rst: false,
            // Of the FIN the peer takes the window: the one that it knows.
            window: u16::try_from(open >> scale).unwrap_or(u16::MAX),
            timestamp: info
                .timestamps
                .then(|| sockopt::timestamp(fd).map(|value| (value & !1, 0)))
                .transpose()?,
            ip,
        };
        let mut questions = Vec::new();
        if !established {
            // The peer's acknowledgement was taken: nothing is left to ask for.
            if info.state != State::FinWait2 {
                questions.push((ask, Vec::new()));
            }
        } else if retransmit.is_empty() {
            // A byte that the peer had long ago, and does not look at.
            questions.push((ask, vec![0]));
        } else {
            questions.extend(retransmit.iter().map(|lost| {
                let seq = lost.seq;
                (Segment { seq, ..ask }, lost.bytes.clone())
            }));
        }
        Ok(Probes {
            announce: established.then_some(Segment {
                seq: numbers.write_seq.wrapping_sub(unsent),
                ..ask
            }),
            questions,
            nudge: unsent > 0,
            mark: sockopt::mark(fd)?,
        })
    }

    /// Failures cost the peer a retransmission timer, no more.
    pub(crate) fn run(&self, fd: BorrowedFd<'_>, injector: &Injector) {
        if self.nudge
            && let Ok(no_delay) = sockopt::no_delay(fd)
        {
            // It makes the kernel look at what waits.
            let _ = sockopt::set_no_delay(fd, true);
            let _ = sockopt::set_no_delay(fd, no_delay);
        }
        if let Some(announce) = &self.announce {
            let _ = injector.send(announce, &[], self.mark);
        }
        for (question, data) in &self.questions {
            let _ = injector.send(question, data, self.mark);
        }
    }
}

/// Ends repair with the kernel's own probe.
///
/// The kernel counts the window in it as advertised, which the peer does not take: were that so, a peer that waits
/// for a closed window to open would not be told. So it is forgotten again.
pub(super) fn end_repair(fd: BorrowedFd<'_>) -> Result<()> {
    if tcp_info(fd)?.state != State::Established {
        // No probe leaves.
        return sockopt::set_repair(fd, Repair::Off);
    }
    let window = sockopt::repair_window(fd)?;
    sockopt::set_repair(fd, Repair::Off)?;
    // The connection lives: without this the peer may have to wait for its timer, no more.
    if sockopt::set_repair(fd, Repair::On).is_ok() {
        let _ = sockopt::set_repair_window(fd, window);
        return sockopt::set_repair(fd, Repair::OffQuiet);
    }
    Ok(())
}

/// Ends repair, and makes the connection go on at once: it may have stood still for long, and its retransmission timer has
/// backed off. What makes the kernel send again what was lost is the peer's next acknowledgement.
pub(super) fn wake_up(fd: BorrowedFd<'_>) -> Result<()> {
    let is_probed = tcp_info(fd)?.state.is_movable()
        && Namespace::of_socket(fd).is_ok_and(|own| own.is_current().unwrap_or(false));
    let probed = is_probed
        .then(|| {
            let injector = Injector::open(fd)?;
            let probes = Probes::read(fd, &injector, &[], None)?;
            Ok::<_, Error>((injector, probes))
        })
        .and_then(Result::ok);
    end_repair(fd)?;
    if let Some((injector, probes)) = probed {
        probes.run(fd, &injector);
    }
    Ok(())
}
