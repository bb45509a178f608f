//! Hosts in private network namespaces, links and TCP connections.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use tcpmig_sys::lab::PATIENCE;
pub use tcpmig_sys::lab::{eventually, nft, slowed};
use tcpmig_sys::netns::Namespace;

use crate::FourTuple;

/// A host of [`tcpmig_sys::lab`] that goes with this value (and its sockets); what cannot be done fails the test.
pub struct Host(tcpmig_sys::lab::Host);

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// A new one, with its `lo` up.
    pub fn new() -> Self {
        Self(tcpmig_sys::lab::Host::alone("host").expect("make a namespace"))
    }

    /// Runs something in this namespace, on a thread of its own.
    pub fn run<T: Send>(&self, call: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let namespace = self.0.namespace();
                namespace.enter_permanently().expect("enter the namespace");
                call()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs `ip` with these arguments in it.
    pub fn ip(&self, arguments: &str) {
        let done = self.0.ip(&format!("{arguments}\n"));
        done.unwrap_or_else(|error| panic!("ip {arguments}: {error}"));
    }

    /// Runs a script of `nft` in it, and gives what it shows.
    pub fn nft(&self, script: &str) -> String {
        self.0.nft(script)
    }

    /// Sets `net.NAME`, with slashes in the name.
    pub fn sysctl(&self, name: &str, value: &str) {
        self.0
            .set(&format!("net/{name}"), value)
            .expect("a setting");
    }

    /// Waits until a device that was set up, like that at its other end, carries packets.
    pub fn wait_for(&self, device: &str) {
        self.0.wait_for(device).expect("the kernel starts a device");
    }

    /// Waits until the kernel has given a device its link-local address, which it does a moment after it is up.
    pub fn settle(&self, device: &str) {
        const TENTATIVE: u32 = 0x40;
        eventually("a link-local address", || {
            let path = "/proc/thread-self/net/if_inet6";
            let text = self.run(|| std::fs::read_to_string(path).expect(path));
            text.lines().find_map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let [address, _, _, _, flags, name] = words.as_slice() else {
                    return None;
                };
                let flags = u32::from_str_radix(flags, 16).ok()?;
                let ready = address.starts_with("fe80") && flags & TENTATIVE == 0;
                (ready && *name == device).then_some(())
            })
        });
    }

    /// The namespace that has this path, which [`path`](Self::path) of another process gave.
    pub fn open(path: &str) -> Self {
        let namespace = Namespace::open(path).expect("open the namespace");
        Self(tcpmig_sys::lab::Host::in_namespace("host", namespace))
    }

    /// A path by which `ip` and other processes find the namespace, as long as this value lives.
    pub fn path(&self) -> String {
        self.0.namespace().path()
    }
}

/// `ip` in the namespace of this thread, and what it shows.
pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("run ip(8), of iproute2");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A link between two hosts, `eth0` on both: `a` is number 1 and `b` number 9.
pub fn link(a: &Host, b: &Host) {
    a.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {}",
        b.path()
    ));
    for (host, number) in [(a, 1), (b, 9)] {
        address(host, number);
    }
    for host in [a, b] {
        host.wait_for("eth0");
    }
}

/// Gives a host its addresses on `eth0`, with this number at the end.
pub fn address(host: &Host, number: u8) {
    host.ip(&format!("address add 10.0.0.{number}/24 dev eth0"));
    host.ip(&format!("address add 2001:db8::{number}/64 dev eth0 nodad"));
    host.ip("link set eth0 up");
}

/// A switch with these hosts on it, numbered as given.
pub fn switch(hosts: &[(&Host, u8)]) -> Host {
    let switch = Host::new();
    switch.ip("link add br0 type bridge");
    switch.ip("link set br0 up");
    for (host, number) in hosts {
        switch.ip(&format!(
            "link add port{number} type veth peer name eth0 netns {}",
            host.path()
        ));
        switch.ip(&format!("link set port{number} master br0 up"));
        address(host, *number);
        host.wait_for("eth0");
        let port = format!("port{number}");
        let forwards = [" state UP ", "bridge_slave state forwarding"];
        let shown = switch.0.wait_until_shown(&port, &forwards);
        shown.expect("the switch forwards");
    }
    switch
}

/// An established connection: the end at the server, and that at the client.
pub struct Connection {
    /// The end at the server.
    pub server: TcpStream,
    /// The end at the client.
    pub client: TcpStream,
}

impl Connection {
    /// A new one to this address of the server.
    pub fn new(server: &Host, client: &Host, address: IpAddr) -> Self {
        let listener = server.run(|| TcpListener::bind((address, 0)).expect("listen"));
        let to = listener.local_addr().expect("the listener's address");
        Self::to(&listener, client, to)
    }

    /// A new one to this listener.
    pub fn to(listener: &TcpListener, client: &Host, to: SocketAddr) -> Self {
        let client = client.run(|| TcpStream::connect_timeout(&to, PATIENCE).expect("connect"));
        let (server, _) = listener.accept().expect("accept");
        for end in [&server, &client] {
            end.set_nodelay(true).expect("nodelay");
            end.set_read_timeout(Some(PATIENCE)).expect("timeout");
        }
        Self { server, client }
    }

    /// The flow as the server's host sees it.
    pub fn flow(&self) -> FourTuple {
        let local = self.server.local_addr().expect("local address");
        FourTuple::new(local, self.server.peer_addr().expect("peer address")).expect("a flow")
    }

    /// One byte each way.
    pub fn ping(&mut self) {
        send(&mut self.client, b'a');
        expect(&mut self.server, b'a');
        send(&mut self.server, b'b');
        expect(&mut self.client, b'b');
    }
}

/// Sends one byte.
pub fn send(stream: &mut TcpStream, byte: u8) {
    stream.write_all(&[byte]).expect("send");
}

/// Waits for this byte to arrive.
pub fn expect(stream: &mut TcpStream, byte: u8) {
    let mut buffer = [0];
    stream.read_exact(&mut buffer).expect("a byte");
    assert_eq!(buffer[0], byte);
}

/// That nothing has arrived. Preceded by a `ping` on another connection over the same links, it says that nothing
/// sent before that has come through.
pub fn expect_nothing(stream: &TcpStream) {
    stream.set_nonblocking(true).expect("nonblocking");
    let result = stream.peek(&mut [0]);
    stream.set_nonblocking(false).expect("blocking");
    let kind = result.expect_err("something has arrived").kind();
    assert_eq!(kind, std::io::ErrorKind::WouldBlock);
}
