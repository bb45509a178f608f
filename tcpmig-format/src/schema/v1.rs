//! Format version 1, as FORMAT.md describes it. Bytes and texts are borrowed
//! on both ways.

use serde::{Deserialize, Serialize};

use super::critical::Critical;

#[derive(Serialize, Deserialize)]
pub(super) struct Image<'a> {
    #[serde(borrow)]
    pub(super) critical: Critical<'a>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) ip: Option<Ip<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) tcp: Option<Tcp<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) app: Option<App<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) listen: Option<Listen<'a>>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Listen<'a> {
    #[serde(borrow)]
    pub(super) local: End<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) v6_only: Option<bool>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) scope: Option<&'a str>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) bound_device: Option<&'a str>,
    pub(super) transparent: Option<bool>,
    pub(super) freebind: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mark: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) priority: Option<u32>,
    pub(super) backlog: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) defer_accept: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fast_open: Option<u32>,
    #[serde(borrow)]
    pub(super) socket: Option<Socket<'a>>,
}

/// Its fields come from the rows of `fields.rs`.
macro_rules! ip {
    ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= text($of:ty as $text:ty))? $(= bytes($all:ty as $bytes:ty))? $(= always($always:ident))? $unit:literal $restored:tt;)*) => {
        #[derive(Serialize, Deserialize)]
        pub(super) struct Ip<'a> {
            pub(super) family: &'a str,
            #[serde(borrow)]
            pub(super) local: End<'a>,
            #[serde(borrow)]
            pub(super) remote: End<'a>,
            $(
                $(
                    #[serde(skip_serializing_if = "Option::is_none")]
                    pub(super) $name: Option<$plain>,
                )?
                $(
                    #[serde(borrow, skip_serializing_if = "Option::is_none")]
                    pub(super) $name: Option<&'a $text>,
                )?
                $(
                    #[serde(borrow, with = "serde_bytes", default, skip_serializing_if = "Option::is_none")]
                    pub(super) $name: Option<&'a [$bytes]>,
                )?
                $(pub(super) $name: Option<$always>,)?
            )*
        }
    };
}
ip_fields!(ip);

#[derive(Serialize, Deserialize)]
pub(super) struct End<'a> {
    #[serde(with = "serde_bytes")]
    pub(super) address: &'a [u8],
    pub(super) port: u16,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Tcp<'a> {
    pub(super) state: u8,
    #[serde(borrow)]
    pub(super) send: Send<'a>,
    #[serde(borrow)]
    pub(super) receive: Receive<'a>,
    #[serde(borrow)]
    pub(super) negotiated: Negotiated<'a>,
    pub(super) window: Window,
    #[serde(borrow)]
    pub(super) socket: Option<Socket<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pending_error: Option<PendingError>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct PendingError {
    pub(super) errno: u16,
    pub(super) after_fin: bool,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Send<'a> {
    pub(super) snd_una: u32,
    #[serde(with = "serde_bytes")]
    pub(super) sent: &'a [u8],
    #[serde(with = "serde_bytes")]
    pub(super) unsent: &'a [u8],
}

#[derive(Serialize, Deserialize)]
pub(super) struct Receive<'a> {
    pub(super) rcv_nxt: u32,
    #[serde(with = "serde_bytes")]
    pub(super) queue: &'a [u8],
}

#[derive(Serialize, Deserialize)]
pub(super) struct Negotiated<'a> {
    pub(super) mss_clamp: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) window_scale: Option<WindowScale>,
    pub(super) sack: Option<bool>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) timestamps: Option<Timestamps<'a>>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct WindowScale {
    pub(super) snd: u8,
    pub(super) rcv: u8,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Timestamps<'a> {
    pub(super) value: u32,
    pub(super) unit: &'a str,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Window {
    pub(super) snd_wl1: u32,
    pub(super) snd_wnd: u32,
    pub(super) max_window: u32,
    pub(super) rcv_wnd: u32,
    pub(super) rcv_wup: u32,
}

/// Its fields come from the rows of `fields.rs`.
macro_rules! socket {
    ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= text($of:ty as $text:ty))? $(= bytes($all:ty as $bytes:ty))? $(= map($map:ident))? $unit:literal $restored:tt;)*) => {
        #[derive(Serialize, Deserialize)]
        pub(super) struct Socket<'a> {$(
            $(
                #[serde(skip_serializing_if = "Option::is_none")]
                pub(super) $name: Option<$plain>,
            )?
            $(
                #[serde(borrow, skip_serializing_if = "Option::is_none")]
                pub(super) $name: Option<&'a $text>,
            )?
            $(
                #[serde(borrow, with = "serde_bytes", default, skip_serializing_if = "Option::is_none")]
                pub(super) $name: Option<&'a [$bytes]>,
            )?
            $(
                #[serde(skip_serializing_if = "Option::is_none")]
                pub(super) $name: Option<$map>,
            )?
        )*}
    };
}
socket_fields!(socket);

#[derive(Serialize, Deserialize)]
pub(super) struct KeepAlive {
    pub(super) on: bool,
    pub(super) idle: u32,
    pub(super) interval: u32,
    pub(super) count: u32,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Linger {
    pub(super) on: bool,
    pub(super) seconds: u32,
}

/// The maps among the options, which have the fields of the types that users see.
macro_rules! maps {
    ($($map:ident: $($field:ident)*;)*) => {$(
        impl From<&$map> for crate::$map {
            fn from(wire: &$map) -> Self {
                Self { $($field: wire.$field,)* }
            }
        }

        impl From<&crate::$map> for $map {
            fn from(map: &crate::$map) -> Self {
                Self { $($field: map.$field,)* }
            }
        }
    )*};
}
maps! {
    KeepAlive: on idle interval count;
    Linger: on seconds;
}

#[derive(Serialize, Deserialize)]
pub(super) struct App<'a> {
    pub(super) kind: &'a str,
    pub(super) version: u32,
    #[serde(with = "serde_bytes")]
    pub(super) payload: &'a [u8],
}
