//! Why QUIC ended a connection, in this crate's terms.

use std::net::SocketAddr;

use quinn::{ConnectionError, TransportErrorCode, VarInt};
use rustls::{AlertDescription, CertificateError};

use crate::dates::readable;
use crate::error::TransportError;

/// Application close code: the side that closes has no more use for the connection.
pub(crate) const DONE: VarInt = VarInt::from_u32(0);
/// Application close code: the connecting host is not allowed.
pub(crate) const NOT_ALLOWED: VarInt = VarInt::from_u32(1);

/// Bytes of a reason given by the other side that are repeated in errors.
const REASON: usize = 256;

/// The end of a connection with `peer`.
pub(crate) fn connection_error(error: ConnectionError, peer: SocketAddr) -> TransportError {
    match error {
        ConnectionError::TransportError(error) => match alert(error.code) {
            Some(alert) => local_alert(alert, peer, error.reason),
            None => TransportError::Protocol {
                peer,
                reason: error.to_string(),
            },
        },
        ConnectionError::ConnectionClosed(close) => match alert(close.error_code) {
            Some(alert) => TransportError::Rejected {
                peer,
                reason: format!(
                    "TLS alert {}: {}",
                    alert_name(alert),
                    readable(&printable(&close.reason))
                ),
            },
            None if close.error_code == TransportErrorCode::CONNECTION_REFUSED => {
                TransportError::Rejected {
                    peer,
                    reason: "it has as many connections as it allows".to_owned(),
                }
            }
            None => TransportError::Closed {
                reason: format!("{}: {}", close.error_code, printable(&close.reason)),
            },
        },
        ConnectionError::ApplicationClosed(close) if close.error_code == NOT_ALLOWED => {
            TransportError::Rejected {
                peer,
                reason: printable(&close.reason),
            }
        }
        ConnectionError::ApplicationClosed(close) => TransportError::Closed {
            reason: printable(&close.reason),
        },
        ConnectionError::Reset => TransportError::Restarted { peer },
        ConnectionError::TimedOut => TransportError::Idle { peer },
        ConnectionError::LocallyClosed => TransportError::Closed {
            reason: "by this host".to_owned(),
        },
        ConnectionError::VersionMismatch | ConnectionError::CidsExhausted => {
            TransportError::Protocol {
                peer,
                reason: error.to_string(),
            }
        }
    }
}

/// Why this host refuses the certificate of a host it connected to.
pub(crate) fn certificate_error(error: CertificateError, peer: SocketAddr) -> TransportError {
    match error {
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => TransportError::WrongName {
            peer,
            expected: expected.to_str().into_owned(),
            // rustls shows them as they are matched: `DnsName("host")`.
            presented: presented
                .into_iter()
                .map(|name| {
                    name.strip_prefix("DnsName(\"")
                        .and_then(|name| name.strip_suffix("\")"))
                        .map_or(name.clone(), str::to_owned)
                })
                .collect(),
        },
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => TransportError::Expired {
            peer,
            reason: readable(&error.to_string()),
        },
        other => TransportError::UntrustedCertificate {
            peer,
            reason: explained(&other.to_string()),
        },
    }
}

/// What rustls says of a certificate, with the cause of what it finds most often.
fn explained(reason: &str) -> String {
    let cause = if reason.contains("BadSignature") {
        "it is signed by another authority, which has the same name as the one that is trusted here"
    } else if reason.contains("UnknownIssuer") {
        "it is signed by another authority than those that are trusted here"
    } else {
        return reason.to_owned();
    };
    format!("{cause} ({reason})")
}

/// Why this host refuses the certificate of a host that connected, as far as an alert tells.
fn local_alert(alert: AlertDescription, peer: SocketAddr, reason: String) -> TransportError {
    match alert {
        AlertDescription::CertificateExpired => TransportError::Expired {
            peer,
            reason: readable(&reason),
        },
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRequired
        | AlertDescription::DecryptError
        | AlertDescription::AccessDenied => TransportError::UntrustedCertificate {
            peer,
            reason: explained(&reason),
        },
        _ => TransportError::Protocol { peer, reason },
    }
}

/// QUIC carries TLS alerts as error codes from 0x100 (RFC 9001, section 4.8).
fn alert(code: TransportErrorCode) -> Option<AlertDescription> {
    let code = u64::from(code).checked_sub(0x100)?;
    u8::try_from(code).ok().map(AlertDescription::from)
}

fn alert_name(alert: AlertDescription) -> String {
    alert
        .as_str()
        .map_or_else(|| u8::from(alert).to_string(), str::to_owned)
}

/// Text from the other side, which may not be who it says: without what would steer a terminal.
fn printable(reason: &[u8]) -> String {
    let reason = &reason[..reason.len().min(REASON)];
    String::from_utf8_lossy(reason)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_others_cannot_steer_a_terminal() {
        assert_eq!(printable(b"no\x1b[2Jway\xff"), "no [2Jway\u{fffd}");
        assert_eq!(printable(&[b'x'; 1000]).len(), REASON);
    }
}
