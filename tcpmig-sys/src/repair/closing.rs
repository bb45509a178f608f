//! Rebuilding a connection that one end or both have closed.
//!
//! A rebuilt socket begins in ESTABLISHED, and only what happens to a connection leads the kernel to another
//! state: this end's FIN, which `shutdown` makes, and the peer's FIN and its acknowledgement of ours, which are
//! injected as packets. Everything happens in repair mode, so that the connection can be read back
//! before anything of it can be seen from outside.

use std::cell::Cell;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::numbers::Numbers;
use super::queue;
use super::rebuild::{RestoringSocket, check_complete};
use crate::error::{Error, NotMigratable, Result};
use crate::info::{State, tcp_info};
use crate::packet::Segment;
use crate::packet::inject::Injector;
use crate::seam;
use crate::sockopt::{self, Queue, Repair};
use crate::uapi::RepairWindow;

/// A looped packet is handled before `sendto` returns, or soon after by a kernel thread.
const ARRIVAL: Duration = Duration::from_millis(20);

/// How often a segment is injected that does not arrive.
const TRIES: u32 = 10;

/// How segments of the peer are injected.
#[derive(Clone, Copy)]
pub(super) struct Tries {
    /// Their firewall mark.
    pub(super) mark: u32,
    /// No lock stops what the socket sends: nothing is done at first that it answers.
    pub(super) quiet_first: bool,
}

impl Tries {
    /// With the packets of the connection locked, but for this mark.
    pub(super) fn locked(mark: u32) -> Self {
        Self {
            mark,
            quiet_first: false,
        }
    }
}

/// What leads from one state to the next.
#[derive(Clone, Copy)]
pub(super) enum Step {
    /// This end's FIN.
    Fin,
    /// The peer's FIN arrives.
    PeerFin(State),
    /// The peer's acknowledgement of this end's FIN arrives.
    PeerAck(State),
    /// The peer's RST arrives.
    PeerReset,
}

fn steps(state: State) -> Result<&'static [Step]> {
    use State::{CloseWait, Closing, Established, FinWait1, FinWait2, LastAck};
    use Step::{Fin, PeerAck, PeerFin};

    Ok(match state {
        Established => &[],
        FinWait1 => &[Fin],
        FinWait2 => &[Fin, PeerAck(FinWait2)],
        CloseWait => &[PeerFin(CloseWait)],
        Closing => &[Fin, PeerFin(Closing)],
        LastAck => &[PeerFin(CloseWait), Fin],
        other => return Err(NotMigratable::State(other).into()),
    })
}

impl RestoringSocket {
    /// Leads the connection from ESTABLISHED to `state`, after both queues are filled and before
    /// [`RestoringSocket::window`].
    ///
    /// For a state in which this end has closed, `unsent` are the bytes that were written before and never
    /// sent: they and the FIN behind them are in the socket then, unsent, and [`RestoringSocket::activate`] sends
    /// them. Without such bytes the FIN counts as sent, so that the peer's acknowledgement of it is taken
    /// whenever it comes, and activation sends it once more. In other states `unsent` has to be empty.
    ///
    /// `mark` is the firewall mark of the segments injected in the peer's name: the lock of the connection must
    /// let it pass. States other than ESTABLISHED and `FIN_WAIT1` need the local address on this host. The thread has
    /// to be in the network namespace of the socket.
    ///
    /// # Errors
    ///
    /// [`Error::NotDelivered`] if a segment did not arrive, because the lock or a packet filter of this host drops it;
    /// [`Error::NotLocal`]; [`Error::NotMigratable`] for a state that no connection can be rebuilt in;
    /// [`Error::Length`] if the unsent bytes do not fit; [`Error::Call`], with EPERM for want of `CAP_NET_RAW`.
    pub fn enter_state(&mut self, state: State, unsent: &[u8], mark: u32) -> Result<()> {
        let steps = steps(state)?;
        if steps.is_empty() {
            // Without it the peer may have to wait for its timers after activation, no more.
            if self.injector.is_none() {
                self.injector = self.open_injector().ok();
            }
            return Ok(());
        }
        self.injector = Some(self.walk(steps, unsent, Tries::locked(mark))?);
        Ok(())
    }

    /// Goes from ESTABLISHED from one state to the next.
    pub(super) fn walk(&self, steps: &[Step], unsent: &[u8], tries: Tries) -> Result<Injector> {
        let injector = self.open_injector()?;
        self.room()?;
        self.with_injected(tries.mark, || self.step(&injector, steps, unsent, tries))?;
        Ok(injector)
    }

    fn step(&self, injector: &Injector, steps: &[Step], unsent: &[u8], tries: Tries) -> Result<()> {
        let mark = tries.mark;
        for step in steps {
            match *step {
                Step::Fin if unsent.is_empty() => self.fin_as_sent()?,
                Step::Fin => self.fin_behind(unsent)?,
                Step::PeerFin(next) => self.peer_fin(injector, next, tries)?,
                Step::PeerAck(next) => self.peer_ack(injector, next, mark)?,
                Step::PeerReset => self.peer_reset(injector, mark)?,
            }
        }
        Ok(())
    }

    /// Windows to work with: nothing can be sent, and a segment of the peer is in order.
    pub(super) fn room(&self) -> Result<()> {
        let rcv_nxt = self.numbers()?.rcv_nxt;
        sockopt::set_repair_window(
            self.as_fd(),
            RepairWindow {
                snd_wl1: rcv_nxt,
                snd_wnd: 0,
                max_window: 0xffff,
                rcv_wnd: 0xffff,
                rcv_wup: rcv_nxt,
            },
        )
    }

    /// A FIN written into the send queue in repair mode counts as sent, as its bytes do.
    fn fin_as_sent(&self) -> Result<()> {
        let fd = self.as_fd();
        sockopt::set_repair_queue(fd, Queue::Send)?;
        self.shut_down()?;
        sockopt::set_repair_queue(fd, Queue::None)
    }

    /// Bytes and a FIN that stay unsent: the window is closed. In repair mode they would count as sent.
    fn fin_behind(&self, unsent: &[u8]) -> Result<()> {
        const CALL: &str = "send(unsent bytes)";
        let fd = self.as_fd();
        sockopt::set_repair(fd, Repair::OffQuiet)?;
        let done = queue::append(fd, CALL, unsent).and_then(|done| {
            check_complete(CALL, done, unsent.len())?;
            self.shut_down()
        });
        // Also after an error: dropping it is silent only in repair mode.
        sockopt::set_repair(fd, Repair::On).and(done)
    }

    fn shut_down(&self) -> Result<()> {
        seam::enter("shutdown(SHUT_WR)")?;
        SockRef::from(&self.as_fd())
            .shutdown(Shutdown::Write)
            .map_err(|e| Error::new("shutdown(SHUT_WR)", e))
    }

    fn peer_fin(&self, injector: &Injector, next: State, tries: Tries) -> Result<()> {
        let mark = tries.mark;
        let quiet = Cell::new(tries.quiet_first);
        let numbers = self.numbers()?;
        let fin = Segment {
            fin: true,
            // What was sent stays unacknowledged.
            ..self.of_peer(&numbers, numbers.snd_una)?
        };
        // A stateful firewall that has not seen the connection takes it up at an ACK, and calls a FIN
        // invalid. This one is older than the window: the socket does nothing but acknowledge again.
        let before = Segment {
            seq: fin.seq.wrapping_sub(1),
            fin: false,
            ..fin
        };
        self.delivered(next, "FIN", mark, || {
            if !quiet.replace(false) {
                injector.inject(&before, &[], mark)?;
            }
            injector.inject(&fin, &[], mark)
        })
    }

    fn peer_ack(&self, injector: &Injector, next: State, mark: u32) -> Result<()> {
        let numbers = self.numbers()?;
        let ack = self.of_peer(&numbers, numbers.write_seq)?;
        self.delivered(next, "acknowledgement of the FIN", mark, || {
            injector.inject(&ack, &[], mark)
        })
    }

    fn of_peer(&self, numbers: &Numbers, ack: u32) -> Result<Segment> {
        let timestamps = tcp_info(self.as_fd())?.timestamps;
        Ok(Segment::of_peer(numbers.rcv_nxt, ack, timestamps))
    }

    fn peer_reset(&self, injector: &Injector, mark: u32) -> Result<()> {
        let numbers = self.numbers()?;
        let reset = Segment {
            rst: true,
            ..self.of_peer(&numbers, numbers.snd_una)?
        };
        self.delivered(State::Close, "RST", mark, || {
            injector.inject(&reset, &[], mark)
        })
    }

    /// Injects until the state is the next one.
    fn delivered(
        &self,
        next: State,
        segment: &'static str,
        mark: u32,
        inject: impl Fn() -> Result<()>,
    ) -> Result<()> {
        for _ in 0..TRIES {
            inject()?;
            let deadline = Instant::now() + ARRIVAL;
            while Instant::now() < deadline {
                if tcp_info(self.as_fd())?.state == next {
                    return Ok(());
                }
                std::thread::yield_now();
            }
        }
        Err(Error::NotDelivered {
            segment,
            asked: next,
            got: tcp_info(self.as_fd())?.state,
            mark,
        })
    }
}
