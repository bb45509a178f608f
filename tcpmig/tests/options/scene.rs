//! What the tests do with a connection.

use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tcpmig::capture::{Frozen, Plan};
use tcpmig::restore::{Prepared, RestoreError, Restored};
use tcpmig_format::{Image, Limits, SocketOptions, TcpImage};
use tcpmig_lock::Nftables;
use tcpmig_sys::lab::Host;

use crate::support::Net;

/// Longer than a test.
const LEASE: Duration = Duration::from_secs(120);

pub(crate) fn locker(host: &Host) -> Nftables {
    host.run(tcpmig::locker::nftables).unwrap().unwrap()
}

/// Reads a connection of a host, which is left standing still.
pub(crate) fn freeze(host: &Host, socket: impl Into<OwnedFd>) -> (Frozen, Image) {
    let locker = locker(host);
    let socket = socket.into();
    host.run(|| {
        let plan = Plan::read(socket.as_fd()).unwrap();
        let mut frozen = Frozen::freeze(socket, plan, &locker, LEASE).unwrap();
        let image = frozen.capture(None).unwrap();
        (frozen, image)
    })
    .unwrap()
}

/// Takes a connection away from a host, as its image, which has been through bytes.
pub(crate) fn leave(host: &Host, socket: impl Into<OwnedFd>) -> Image {
    let (frozen, image) = freeze(host, socket);
    frozen.check_unchanged().unwrap();
    frozen.discard().unwrap();
    let bytes = image.encode().unwrap();
    assert_eq!(Image::decode(&bytes, &Limits::default()).unwrap(), image);
    image
}

/// Ends all locks of a host.
pub(crate) fn forget_locks(host: &Host) {
    host.nft("flush ruleset");
}

pub(crate) fn build(host: &Host, image: Image) -> Result<Prepared, RestoreError> {
    let locker = locker(host);
    host.run(|| Prepared::build(image, &locker, LEASE)).unwrap()
}

pub(crate) fn activate(prepared: Prepared) -> Restored {
    prepared.activate().unwrap().write()
}

/// Lets a connection live on a host as it was, with all of its options.
pub(crate) fn arrive(host: &Host, image: Image) -> TcpStream {
    let restored = activate(build(host, image).unwrap());
    assert!(restored.not_set.is_empty(), "{:?}", restored.not_set);
    TcpStream::from(restored.socket)
}

/// Moves a connection from host A to host B, where its peer finds it.
pub(crate) fn moves(net: &Net, server: TcpStream) -> TcpStream {
    let image = leave(&net.a, server);
    net.point_peer_at_b();
    arrive(&net.b, image)
}

/// The image with another set of socket options.
pub(crate) fn with_options(mut image: Image, change: impl FnOnce(&mut SocketOptions)) -> Image {
    let mut tcp = image.tcp().unwrap().parts().clone();
    change(&mut tcp.socket);
    image.connection_mut().unwrap().tcp = Some(TcpImage::new(tcp).unwrap());
    image
}

/// Fails unless two images are of the same connection. The clock of the timestamps goes on, and the
/// segment that a restore sends advertises the window anew.
pub(crate) fn assert_same(first: &Image, mut second: Image) {
    // The time goes on.
    second.taken = first.taken;
    let mut tcp = second.tcp().unwrap().parts().clone();
    let old = first.tcp().unwrap();
    let (was, is) = (old.negotiated().timestamps, tcp.negotiated.timestamps);
    let passed = is.unwrap().value.wrapping_sub(was.unwrap().value);
    assert!(passed < 1 << 31, "the clock runs backwards");
    tcp.negotiated.timestamps = was;
    tcp.window = *old.window();
    second.connection_mut().unwrap().tcp = Some(TcpImage::new(tcp).unwrap());
    assert_eq!(second, *first);
}
