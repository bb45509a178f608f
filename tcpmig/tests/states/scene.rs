//! A connection brought into a state on host A, and what has to come out of it in the end.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tcpmig::capture::{Frozen, Plan};
use tcpmig::restore::{INJECT_MARK, Prepared, RestoreError};
use tcpmig_format::{Image, Limits, TcpImage, TcpState};
use tcpmig_lock::Nftables;
use tcpmig_sys::info::{State, tcp_info};
use tcpmig_sys::lab::Host;
use tcpmig_sys::sockopt;

use crate::net::{Family, Net, lives, pattern, until};

pub(crate) const LEASE: Duration = Duration::from_secs(60);

/// What becomes of the packets that host A sends last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The peer gets them and its answers are lost.
    Answers,
    /// They are lost on the way.
    Packets,
}

/// A connection in the state that was asked for.
pub(crate) struct Scene {
    pub(crate) state: State,
    pub(crate) peer: TcpStream,
    pub(crate) server: TcpStream,
    /// What the peer wrote, and the server has not read.
    pub(crate) up: Vec<u8>,
    /// What the server wrote.
    pub(crate) down: Vec<u8>,
    cut: Option<Loss>,
}

fn state(socket: &impl AsFd) -> State {
    tcp_info(socket.as_fd()).unwrap().state
}

fn write_until_full(stream: &TcpStream, bytes: &[u8]) -> usize {
    stream.set_nonblocking(true).unwrap();
    let mut stream = stream;
    let mut done = 0;
    while done < bytes.len() {
        match stream.write(&bytes[done..]) {
            Ok(n) => done += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) => panic!("{e}"),
        }
    }
    stream.set_nonblocking(false).unwrap();
    done
}

impl Scene {
    /// `queued` bytes wait each way, as far as the state allows.
    pub(crate) fn new(net: &Net, family: Family, state: State, queued: usize, loss: Loss) -> Self {
        let (peer, server) = net.connect(family);
        let mut scene = Self {
            state,
            peer,
            server,
            up: Vec::new(),
            down: Vec::new(),
            cut: None,
        };
        scene.upload(queued);
        match state {
            State::Established => {
                scene.cut(net, loss);
                scene.write_down(queued);
            }
            State::CloseWait => {
                scene.peer_closes();
                scene.cut(net, loss);
                scene.write_down(queued);
            }
            State::LastAck => {
                scene.peer_closes();
                scene.cut(net, loss);
                scene.write_down(queued);
                scene.server_closes();
            }
            State::FinWait1 => {
                scene.cut(net, loss);
                scene.write_down(queued);
                scene.server_closes();
            }
            State::FinWait2 => {
                scene.write_down(queued.min(10_000));
                scene.server_closes();
                scene.reaches(State::FinWait2);
            }
            State::Closing => {
                // The peer closes without having heard of this end's FIN.
                scene.cut(net, Loss::Packets);
                scene.write_down(queued);
                scene.server_closes();
                scene.peer.shutdown(Shutdown::Write).unwrap();
            }
            other => panic!("no scene for {other}"),
        }
        scene.reaches(state);
        scene
    }

    fn upload(&mut self, queued: usize) {
        self.up = pattern(1, queued);
        self.peer.write_all(&self.up).unwrap();
        until("the upload arrives and is acknowledged", || {
            sockopt::receive_queue_len(self.server.as_fd()).unwrap() as usize == queued
                && sockopt::send_queue_len(self.peer.as_fd()).unwrap() == 0
        });
    }

    fn write_down(&mut self, queued: usize) {
        self.down = pattern(2, queued);
        let written = write_until_full(&self.server, &self.down);
        self.down.truncate(written);
    }

    fn peer_closes(&self) {
        self.peer.shutdown(Shutdown::Write).unwrap();
        self.reaches(State::CloseWait);
        until("the FIN is acknowledged", || {
            state(&self.peer) == State::FinWait2
        });
    }

    fn server_closes(&self) {
        self.server.shutdown(Shutdown::Write).unwrap();
    }

    fn reaches(&self, wanted: State) {
        until(&format!("{wanted}"), || state(&self.server) == wanted);
    }

    fn cut(&mut self, net: &Net, loss: Loss) {
        let host = match loss {
            Loss::Answers => &net.a,
            Loss::Packets => &net.peer,
        };
        host.cut(&["prerouting"]);
        self.cut = Some(loss);
    }

    /// Captures the connection on host A, ends it there and brings the peer's packets to host B, where nothing
    /// passes until [`mend`].
    pub(crate) fn leave_a(mut self, net: &Net) -> (Image, Ends) {
        let lost = self.cut.take();
        let (ends, server) = self.into_parts();
        let locker = net.a.run(locker).unwrap();
        let (frozen, image) = capture(server, &locker);
        frozen.check_unchanged().unwrap();
        frozen.discard().unwrap();
        net.b.cut(&["prerouting", "output"]);
        net.point_peer_at_b();
        end(net, lost);
        let state = image.tcp().unwrap().state();
        assert_eq!(state.number(), ends.state as u8);
        let bytes = image.encode().unwrap();
        let image = Image::decode(&bytes, &Limits::default()).unwrap();
        (image, ends)
    }

    /// Captures the connection on host A and keeps it there.
    pub(crate) fn stay(mut self, net: &Net) -> (Ends, OwnedFd) {
        let lost = self.cut.take();
        let (ends, server) = self.into_parts();
        let locker = net.a.run(locker).unwrap();
        let (frozen, _) = capture(server, &locker);
        end(net, lost);
        (ends, frozen.keep().unwrap())
    }

    fn into_parts(self) -> (Ends, OwnedFd) {
        let ends = Ends {
            state: self.state,
            peer: self.peer,
            up: self.up,
            down: self.down,
        };
        (ends, self.server.into())
    }
}

fn end(net: &Net, cut: Option<Loss>) {
    match cut {
        Some(Loss::Packets) => net.peer.mend(),
        Some(Loss::Answers) => net.a.mend(),
        None => {}
    }
}

pub(crate) fn locker() -> Nftables {
    Nftables::new().unwrap().exempt_mark(INJECT_MARK)
}

pub(crate) fn capture(socket: OwnedFd, locker: &Nftables) -> (Frozen, Image) {
    let plan = Plan::read(socket.as_fd()).unwrap();
    let mut frozen = Frozen::freeze(socket, plan, locker, LEASE).unwrap();
    let image = frozen.capture(None).unwrap();
    (frozen, image)
}

/// Rebuilds a connection on a host.
pub(crate) fn build(
    host: &Host,
    locker: &Nftables,
    image: Image,
) -> Result<Prepared, RestoreError> {
    host.run(|| Prepared::build(image, locker, LEASE)).unwrap()
}

/// Lets it live.
pub(crate) fn activate(prepared: Prepared) -> OwnedFd {
    let restored = prepared.activate().unwrap().write();
    assert!(restored.unwritten.is_empty());
    restored.socket
}

/// The image without what may differ between two captures: the clock.
pub(crate) fn without_clock(image: &Image) -> Image {
    let mut image = image.clone();
    image.taken = None;
    let mut parts = image.tcp().unwrap().parts().clone();
    if let Some(timestamps) = &mut parts.negotiated.timestamps {
        timestamps.value = 0;
    }
    image.connection_mut().unwrap().tcp = Some(TcpImage::new(parts).unwrap());
    image
}

/// What both ends have to see of a connection whose server has moved.
pub(crate) struct Ends {
    pub(crate) state: State,
    pub(crate) peer: TcpStream,
    pub(crate) up: Vec<u8>,
    pub(crate) down: Vec<u8>,
}

impl Ends {
    /// Both ends read everything once and then the end of the stream, where the connection was
    /// closed or is closed now; afterwards nothing is left of it on either host.
    pub(crate) fn finish(self, net: &Net, server: OwnedFd) {
        let Self {
            state: began,
            mut peer,
            mut up,
            mut down,
        } = self;
        let mut server = TcpStream::from(server);
        server.set_nonblocking(false).unwrap();
        server
            .set_read_timeout(Some(Duration::from_secs(120)))
            .unwrap();
        let image_state = TcpState::from_number(began as u8).unwrap();
        // Each end says more, if it has not closed, and closes.
        if !image_state.fin_sent() {
            let more = pattern(3, 20_000);
            server.write_all(&more).unwrap();
            down.extend_from_slice(&more);
            server.shutdown(Shutdown::Write).unwrap();
        }
        if !image_state.fin_received() {
            let more = pattern(4, 20_000);
            peer.write_all(&more).unwrap();
            up.extend_from_slice(&more);
            peer.shutdown(Shutdown::Write).unwrap();
        }
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        assert!(got == up, "the server read other bytes than were written");
        got.clear();
        peer.read_to_end(&mut got).unwrap();
        assert!(got == down, "the peer read other bytes than were written");
        until("the peer's end is closed", || state(&peer) == State::Close);
        assert!(sockopt::take_error(peer.as_fd()).unwrap().is_none());
        assert!(sockopt::take_error(server.as_fd()).unwrap().is_none());
        let port = server.local_addr().unwrap().port();
        drop(server);
        for host in [&net.a, &net.b] {
            until("the connection's last packet is acknowledged", || {
                !lives(host, port)
            });
        }
        net.assert_no_reset();
    }
}
