//! Kernel TLS: the keys and the record numbers are beside the socket, where no call reads them back together.

use std::net::TcpStream;
use std::os::fd::AsFd;

use tcpmig_sys::NotMigratable;
use tcpmig_sys::lab::set_option;

use crate::support::{Family, Net};
use crate::{feature_test, keeps, not_applicable};

const IPPROTO_TCP: i32 = 6;
const TCP_ULP: i32 = 31;
const SOL_TLS: i32 = 282;
const TLS_TX: i32 = 1;
const TLS_RX: i32 = 2;

/// `struct tls12_crypto_info_aes_gcm_128` of `linux/tls.h` for TLS 1.2, with a key of this byte.
fn keys(byte: u8) -> Vec<u8> {
    const VERSION: u16 = 0x0303;
    const CIPHER: u16 = 51;
    let mut info = [VERSION.to_ne_bytes(), CIPHER.to_ne_bytes()].concat();
    // Initial vector, key, salt; the number of the first record.
    info.extend([byte; 8 + 16 + 4]);
    info.extend([0; 8]);
    info
}

/// Attaches the layer; false if this kernel has none.
fn attach(socket: &TcpStream) -> bool {
    match set_option(socket.as_fd(), IPPROTO_TCP, TCP_ULP, b"tls") {
        Ok(()) => true,
        Err(error) => {
            let without = nix::errno::Errno::ENOENT as i32;
            assert_eq!(error.errno(), Some(without), "{error}");
            not_applicable("kernel TLS", error);
            false
        }
    }
}

feature_test!(kernel_tls_without_keys_is_refused_by_name, || {
    for family in [Family::V4, Family::V6, Family::Mapped] {
        let net = Net::new();
        let (peer, server) = net.connect(family);
        if !attach(&server) {
            return;
        }
        // Without keys it lets everything pass.
        keeps(&net, &peer, server, NotMigratable::UpperLayer);
    }
});

feature_test!(kernel_tls_is_refused_by_name_and_goes_on, || {
    for family in [Family::V4, Family::V6] {
        let net = Net::new();
        let (peer, server) = net.connect(family);
        if !attach(&server) {
            return;
        }
        assert!(attach(&peer));
        for (socket, sends, receives) in [(&server, 1, 2), (&peer, 2, 1)] {
            for (way, byte) in [(TLS_TX, sends), (TLS_RX, receives)] {
                set_option(socket.as_fd(), SOL_TLS, way, &keys(byte)).unwrap();
            }
        }
        crate::support::both_ways(&peer, &server);
        keeps(&net, &peer, server, NotMigratable::UpperLayer);
    }
});
