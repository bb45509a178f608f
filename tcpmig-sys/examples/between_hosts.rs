//! Moves a live connection from one host to another, both of them network namespaces of this machine.
//!
//! `cargo run -p tcpmig-sys --features lab --example between_hosts`; it needs `ip` and `nft`, and no root.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use tcpmig_sys::ends::Ends;
use tcpmig_sys::lab::{Host, Lab};
use tcpmig_sys::netns;
use tcpmig_sys::repair::{ClosedSocket, FrozenSocket, write_unsent};

const SERVICE: &str = "10.0.0.80";

fn main() -> Result<(), Box<dyn Error>> {
    if !netns::has_capabilities() {
        netns::enter_user_namespace()?;
    }
    let mut lab = Lab::new()?;
    let a = lab.host("a", &["10.0.0.1/24", "10.0.0.80/24"])?;
    let b = lab.host("b", &["10.0.0.2/24"])?;
    let client = lab.host("client", &["10.0.0.9/24"])?;

    // A client talks to a server on host A. The server has read nothing yet, and the client has not either.
    let listener = a.run(|| TcpListener::bind((SERVICE, 80)))??;
    let mut peer = client.run(|| TcpStream::connect((SERVICE, 80)))??;
    let (mut server, _) = listener.accept()?;
    peer.write_all(b"a question")?;
    server.write_all(b"the beginning of an answer, ")?;

    // Nothing may reach or leave a socket that is frozen: the numbers that are read have to stay true.
    lock(&a)?;
    let server: OwnedFd = server.into();
    let Ends { local, remote } = Ends::of(server.as_fd())?;
    let frozen = FrozenSocket::freeze(server)?;
    let snapshot = frozen.read()?;
    // From here on host A knows nothing of the connection; no packet has told the client.
    frozen.discard()?;
    drop(listener);

    // The address moves to host B, where the connection is locked before its send queue is filled: timers run in repair mode too.
    a.ip("addr del 10.0.0.80/24 dev eth0")?;
    lock(&b)?;
    b.ip("addr add 10.0.0.80/24 dev eth0")?;
    client.ip("neigh flush dev eth0")?;
    let rebuilt = b.run(|| {
        let bound = ClosedSocket::open(local.is_ipv6())?.bind(local)?;
        let start = snapshot.queue_start();
        let mut socket = bound.connect(remote, start, snapshot.negotiated.mss_clamp)?;
        socket.negotiated(&snapshot.negotiated, snapshot.timestamp)?;
        socket.fill_receive_queue(&snapshot.receive_queue)?;
        let (sent, unsent) = snapshot.sent_and_unsent();
        socket.fill_send_queue(sent, unsent.len())?;
        socket.window(snapshot.window)?;
        socket.verify(&snapshot.rebuilt_numbers(), &snapshot.negotiated)?;
        socket.hold()?;
        Ok::<_, tcpmig_sys::Error>(socket)
    })??;

    // It lives on host B, and says so to the client.
    unlock(&b)?;
    let server = b
        .run(|| rebuilt.activate(true))?
        .map_err(|failed| failed.error)?;
    let (_, unsent) = snapshot.sent_and_unsent();
    write_unsent(server.as_fd(), unsent)?;
    let mut server = TcpStream::from(server);
    server.set_nonblocking(false)?;

    let mut question = [0; 10];
    server.read_exact(&mut question)?;
    server.write_all(b"and its end")?;
    drop(server);
    let mut answer = String::new();
    peer.read_to_string(&mut answer)?;
    println!("host B read {:?}", String::from_utf8_lossy(&question));
    println!("the client read {answer:?}");
    assert_eq!(answer, "the beginning of an answer, and its end");
    Ok(())
}

/// Drops all TCP packets that come to a host. A real one locks single connections: see the crate `tcpmig-lock`.
fn lock(host: &Host) -> Result<(), Box<dyn Error>> {
    nft(
        host,
        "table inet lock { chain in { type filter hook prerouting priority raw; meta l4proto tcp drop; }; }",
    )
}

fn unlock(host: &Host) -> Result<(), Box<dyn Error>> {
    nft(host, "delete table inet lock")
}

fn nft(host: &Host, rules: &str) -> Result<(), Box<dyn Error>> {
    let status = host.command("nft")?.arg(rules).status()?;
    if !status.success() {
        return Err(format!("nft: {status}").into());
    }
    Ok(())
}
