//! Socket options.

macro_rules! socket_options {
    ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= text($text:ty as $str:ty))? $(= bytes($bytes:ty as $byte:ty))? $(= map($map:ident))? $unit:literal $restored:tt;)*) => {
        /// The socket options of a connection, apart from those that name its
        /// addresses ([`IpImage`](crate::IpImage)).
        ///
        /// `None` means that the image does not carry the option and a restore leaves
        /// what the target host gives a new socket.
        #[derive(Clone, PartialEq, Eq, Debug, Default)]
        #[non_exhaustive]
        pub struct SocketOptions {$(
            $(#[$doc])*
            pub $name: Option<$($plain)? $($text)? $($bytes)? $($map)?>,
        )*}
    };
}
socket_fields!(socket_options);

/// An instruction of a classic filter: `struct sock_filter`, numbers in host byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FilterInstruction {
    /// The operation.
    pub code: u16,
    /// How many instructions to skip if a comparison holds.
    pub jt: u8,
    /// How many to skip if it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// `SO_KEEPALIVE`, `TCP_KEEPIDLE`, `TCP_KEEPINTVL` and `TCP_KEEPCNT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KeepAlive {
    /// Whether probes are sent.
    pub on: bool,
    /// Seconds of silence before the first probe.
    pub idle: u32,
    /// Seconds between probes.
    pub interval: u32,
    /// Unanswered probes after which the connection is given up.
    pub count: u32,
}

/// `SO_LINGER`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Linger {
    /// Whether `close` waits.
    pub on: bool,
    /// Seconds to wait; 0 makes `close` reset the connection.
    pub seconds: u32,
}
