//! Capture and restore of one connection through the functions for C, beside the same in Rust, by turns in one run.
//!
//! `cargo bench -p tcpmig-capi`
#![allow(clippy::unwrap_used, reason = "a failed set-up ends it")]

use std::ffi::{c_int, c_void};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, FromRawFd, IntoRawFd};
use std::time::{Duration, Instant};

use tcpmig::capture::{Frozen, Plan};
use tcpmig::restore::Prepared;
use tcpmig_c::{
    Code, LockerHandle, tcpmig_activate, tcpmig_capture, tcpmig_discard, tcpmig_freeze,
    tcpmig_image_bytes, tcpmig_image_decode, tcpmig_image_free, tcpmig_locker_free,
    tcpmig_locker_open, tcpmig_prepare, tcpmig_restored_free,
};
use tcpmig_format::{Image, Limits};
use tcpmig_lock::NoLock;
use tcpmig_sys::lab::World;

const LEASE: Duration = Duration::from_secs(60);
const LEASE_MS: u32 = 60_000;
const ROUNDS: usize = 3000;

fn in_rust(socket: TcpStream) -> TcpStream {
    let plan = Plan::read(socket.as_fd()).unwrap();
    let mut frozen = Frozen::freeze(socket.into(), plan, &NoLock, LEASE).unwrap();
    let mut image = frozen.capture(None).unwrap();
    frozen.merge_captured(&mut image).unwrap();
    let bytes = image.encode().unwrap();
    frozen.check_unchanged().unwrap();
    frozen.discard().unwrap();

    let image = Image::decode(&bytes, &Limits::default()).unwrap();
    let prepared = Prepared::build(image, &NoLock, LEASE).unwrap();
    prepared.activate().unwrap().write().socket.into()
}

/// A call of C on pointers to these.
fn call(code: c_int) {
    assert_eq!(code, Code::Ok as c_int);
}

#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "calls of C, one after another"
)]
fn in_c(socket: TcpStream, locker: &LockerHandle) -> TcpStream {
    // SAFETY: each pointer is that of a variable here, and each handle is used once it was made.
    unsafe {
        let (mut frozen, mut image) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        call(tcpmig_freeze(
            socket.into_raw_fd(),
            Some(locker),
            LEASE_MS,
            Some(&mut frozen),
        ));
        let mut frozen = frozen.assume_init();
        call(tcpmig_capture(
            frozen.as_deref_mut(),
            std::ptr::null(),
            0,
            Some(&mut image),
        ));
        let mut image = image.assume_init();
        let (mut bytes, mut length) = (
            MaybeUninit::<*const c_void>::uninit(),
            MaybeUninit::uninit(),
        );
        call(tcpmig_image_bytes(
            image.as_deref(),
            Some(&mut bytes),
            Some(&mut length),
        ));
        let bytes: &[u8] =
            std::slice::from_raw_parts(bytes.assume_init().cast(), length.assume_init());
        call(tcpmig_discard(Some(&mut frozen)));

        let mut decoded = MaybeUninit::uninit();
        call(tcpmig_image_decode(
            bytes.as_ptr().cast(),
            bytes.len(),
            Some(&mut decoded),
        ));
        tcpmig_image_free(Some(&mut image));
        let mut decoded = decoded.assume_init();
        let mut prepared = MaybeUninit::uninit();
        call(tcpmig_prepare(
            decoded.as_deref(),
            Some(locker),
            LEASE_MS,
            0,
            Some(&mut prepared),
        ));
        tcpmig_image_free(Some(&mut decoded));
        let mut prepared = prepared.assume_init();
        let (mut fd, mut restored) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        call(tcpmig_activate(
            Some(&mut prepared),
            Some(&mut fd),
            Some(&mut restored),
        ));
        tcpmig_restored_free(Some(&mut restored.assume_init()));
        TcpStream::from_raw_fd(fd.assume_init())
    }
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn measure() {
    let world = World::new();
    let connect = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    };
    let measured = || {
        let (mut client, mut server) = connect();
        let mut locker = MaybeUninit::uninit();
        // SAFETY: a string and a variable.
        call(unsafe { tcpmig_locker_open(c"none".as_ptr(), Some(&mut locker)) });
        // SAFETY: it was opened.
        let mut locker = unsafe { locker.assume_init() };
        let (mut rust, mut c) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            server = in_rust(server);
            rust.push(begin.elapsed());
            let begin = Instant::now();
            server = in_c(server, locker.as_deref().unwrap());
            c.push(begin.elapsed());
        }
        server.write_all(b"alive").unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
        // SAFETY: it was opened, and no handle uses it.
        unsafe { tcpmig_locker_free(Some(&mut locker)) };
        let (rust, c) = (middle(rust), middle(c));
        println!("capture and restore, middle of {ROUNDS}: Rust {rust:.1?}, C {c:.1?}");
    };
    world.a.run(measured).unwrap();
}

fn main() {
    // What cargo test starts, too.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    if !tcpmig_sys::netns::has_capabilities() {
        tcpmig_sys::netns::enter_user_namespace().unwrap();
    }
    measure();
}
