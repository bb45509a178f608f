//! Options of the levels `IPPROTO_IP` and `IPPROTO_IPV6`.

use std::os::fd::BorrowedFd;

use libc::{IPPROTO_IP, IPPROTO_IPV6};

#[allow(unused_imports, reason = "the documentation names it")]
use crate::error::Error;
use crate::error::Result;
use crate::{raw, uapi};

options! {
    /// Addresses that are not on this host may be bound (`CAP_NET_ADMIN`).
    transparent, set_transparent: bool as i32 = IPPROTO_IP, libc::IP_TRANSPARENT, "IP_TRANSPARENT";
    /// Addresses that are not yet on this host may be bound.
    freebind, set_freebind: bool as i32 = IPPROTO_IP, libc::IP_FREEBIND, "IP_FREEBIND";
    /// Type of service of IPv4 packets.
    tos, set_tos: i32 as i32 = IPPROTO_IP, libc::IP_TOS, "IP_TOS";
    /// Time to live of IPv4 packets.
    ttl, set_ttl: i32 as i32 = IPPROTO_IP, libc::IP_TTL, "IP_TTL";
    /// Path MTU discovery of IPv4 packets: `IP_PMTUDISC_DONT` (0) to `IP_PMTUDISC_OMIT` (5).
    mtu_discover, set_mtu_discover: i32 as i32 = IPPROTO_IP, libc::IP_MTU_DISCOVER, "IP_MTU_DISCOVER";
    /// IPv4 packets with a lower time to live are dropped (RFC 5082).
    min_ttl, set_min_ttl: i32 as i32 = IPPROTO_IP, libc::IP_MINTTL, "IP_MINTTL";
    /// `bind` leaves the choice of a port to `connect`.
    bind_address_no_port, set_bind_address_no_port: bool as i32 = IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, "IP_BIND_ADDRESS_NO_PORT";
    /// From which ports the kernel chooses: the lowest in the low 16 bits, the highest in the high
    /// ones; 0 for those of the host (Linux 6.3).
    local_port_range, set_local_port_range: u32 as u32 = IPPROTO_IP, uapi::IP_LOCAL_PORT_RANGE, "IP_LOCAL_PORT_RANGE";
    /// Errors of IPv4 packets are queued for the application.
    receive_errors, set_receive_errors: bool as i32 = IPPROTO_IP, libc::IP_RECVERR, "IP_RECVERR";
    /// The interface and the addresses of IPv4 packets are reported.
    receive_packet_info, set_receive_packet_info: bool as i32 = IPPROTO_IP, libc::IP_PKTINFO, "IP_PKTINFO";
    /// The time to live of IPv4 packets is reported.
    receive_ttl, set_receive_ttl: bool as i32 = IPPROTO_IP, libc::IP_RECVTTL, "IP_RECVTTL";
    /// The type of service of IPv4 packets is reported.
    receive_tos, set_receive_tos: bool as i32 = IPPROTO_IP, libc::IP_RECVTOS, "IP_RECVTOS";

    /// As [`transparent`], for an IPv6 socket.
    transparent_v6, set_transparent_v6: bool as i32 = IPPROTO_IPV6, libc::IPV6_TRANSPARENT, "IPV6_TRANSPARENT";
    /// As [`freebind`], for an IPv6 socket.
    freebind_v6, set_freebind_v6: bool as i32 = IPPROTO_IPV6, libc::IPV6_FREEBIND, "IPV6_FREEBIND";
    /// An IPv6 socket that does not take IPv4 connections.
    v6_only, set_v6_only: bool as i32 = IPPROTO_IPV6, libc::IPV6_V6ONLY, "IPV6_V6ONLY";
    /// Traffic class of IPv6 packets.
    traffic_class, set_traffic_class: i32 as i32 = IPPROTO_IPV6, libc::IPV6_TCLASS, "IPV6_TCLASS";
    /// Hop limit of IPv6 packets.
    hop_limit, set_hop_limit: i32 as i32 = IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, "IPV6_UNICAST_HOPS";
    /// Path MTU discovery of IPv6 packets, as [`mtu_discover`].
    mtu_discover_v6, set_mtu_discover_v6: i32 as i32 = IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, "IPV6_MTU_DISCOVER";
    /// IPv6 packets with a lower hop limit are dropped (RFC 5082).
    min_hop_limit, set_min_hop_limit: i32 as i32 = IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, "IPV6_MINHOPCOUNT";
    /// The kernel makes flow labels from the flow's hash.
    auto_flow_label, set_auto_flow_label: bool as i32 = IPPROTO_IPV6, libc::IPV6_AUTOFLOWLABEL, "IPV6_AUTOFLOWLABEL";
    /// `connect` takes the flow label of the address, and `getpeername` tells it.
    flow_info_send, set_flow_info_send: bool as i32 = IPPROTO_IPV6, libc::IPV6_FLOWINFO_SEND, "IPV6_FLOWINFO_SEND";
    /// Errors of IPv6 packets are queued for the application.
    receive_errors_v6, set_receive_errors_v6: bool as i32 = IPPROTO_IPV6, libc::IPV6_RECVERR, "IPV6_RECVERR";
    /// The interface and the address of IPv6 packets are reported.
    receive_packet_info_v6, set_receive_packet_info_v6: bool as i32 = IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, "IPV6_RECVPKTINFO";
    /// The hop limit of IPv6 packets is reported.
    receive_hop_limit, set_receive_hop_limit: bool as i32 = IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, "IPV6_RECVHOPLIMIT";
    /// The traffic class of IPv6 packets is reported.
    receive_traffic_class, set_receive_traffic_class: bool as i32 = IPPROTO_IPV6, libc::IPV6_RECVTCLASS, "IPV6_RECVTCLASS";
    /// The traffic class and flow label of IPv6 packets are reported.
    receive_flow_info, set_receive_flow_info: bool as i32 = IPPROTO_IPV6, libc::IPV6_FLOWINFO, "IPV6_FLOWINFO";
    /// Hop-by-hop options of IPv6 packets are reported. `CAP_NET_RAW`.
    receive_hop_options, set_receive_hop_options: bool as i32 = IPPROTO_IPV6, libc::IPV6_RECVHOPOPTS, "IPV6_RECVHOPOPTS";
    /// Routing headers of IPv6 packets are reported. `CAP_NET_RAW`.
    receive_routing_header, set_receive_routing_header: bool as i32 = IPPROTO_IPV6, libc::IPV6_RECVRTHDR, "IPV6_RECVRTHDR";
    /// Destination options of IPv6 packets are reported. `CAP_NET_RAW`.
    receive_destination_options, set_receive_destination_options: bool as i32 = IPPROTO_IPV6, libc::IPV6_RECVDSTOPTS, "IPV6_RECVDSTOPTS";
}

/// `getsockopt(fd, IP_OPTIONS)`: the options in the header of IPv4 packets, at most 40 octets.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "IP_OPTIONS")]
pub fn ip_options(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    const CALL: &str = "getsockopt(IP_OPTIONS)";
    let mut octets = [0_u8; 40];
    let len = raw::get_octets(fd, IPPROTO_IP, libc::IP_OPTIONS, CALL, &mut octets)?;
    Ok(octets[..len.min(octets.len())].to_vec())
}

/// `setsockopt(fd, IP_OPTIONS)`: as [`ip_options`].
///
/// # Errors
///
/// [`Error`] of the call: EINVAL for options that the kernel does not understand.
#[doc(alias = "IP_OPTIONS")]
pub fn set_ip_options(fd: BorrowedFd<'_>, octets: &[u8]) -> Result<()> {
    const CALL: &str = "setsockopt(IP_OPTIONS)";
    raw::set_slice(fd, IPPROTO_IP, libc::IP_OPTIONS, CALL, octets)
}
