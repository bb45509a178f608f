//! What hyper has been given of requests that the service has not.

use bytes::{Buf, BytesMut};

/// Follows the bytes that hyper reads, request by request.
///
/// hyper reads ahead: when it asks the service for a request, it may hold part of that request's
/// body and of the requests behind it, in buffers and a channel that it does not give out. So
/// they are kept here as they came until the service has been given the request that they belong
/// to. A request that the service has not seen can then be carried whole, its bytes unchanged.
#[derive(Default)]
pub(super) struct Inbound {
    /// Since the end of the last request that the service was given.
    kept: BytesMut,
    /// What has not come of that request's body.
    body: Body,
    /// Where a request ends could not be found: nothing is kept any more.
    astray: bool,
}

/// How a request's body is framed, as far as it has not come.
#[derive(Default)]
enum Body {
    #[default]
    Whole,
    Length(u64),
    Chunked(Chunks),
}

impl Inbound {
    /// hyper has read these bytes.
    pub(super) fn delivered(&mut self, bytes: &[u8]) {
        let skipped = self.body.follow(bytes);
        if !self.astray {
            self.kept.extend_from_slice(&bytes[skipped..]);
        }
    }

    /// The service is given the next request, whose body has this length; `None` if it is
    /// chunked. Whether the request's head has two lengths, for which hyper closes the connection
    /// behind it.
    pub(super) fn begun(&mut self, length: Option<u64>) -> bool {
        let Some(head) = head_len(&self.kept) else {
            self.astray = true;
            self.kept.clear();
            return false;
        };
        let is_ambiguous = length.is_none() && has_length(&self.kept[..head]);
        self.kept.advance(head);
        self.body = length.map_or(Body::Chunked(Chunks::default()), Body::Length);
        let skipped = self.body.follow(&self.kept);
        self.kept.advance(skipped);
        if self.kept.is_empty() {
            // What a large request left behind is not held for the connection's life.
            self.kept = BytesMut::new();
        }
        is_ambiguous
    }

    /// Whether a request that the service has not been given is kept.
    pub(super) fn has_request(&self) -> bool {
        head_len(&self.kept).is_some()
    }

    /// What the service has not been given.
    pub(super) fn kept(&self) -> &[u8] {
        &self.kept
    }
}

impl Body {
    /// How many of these bytes belong to the body.
    fn follow(&mut self, bytes: &[u8]) -> usize {
        match self {
            Self::Whole => 0,
            Self::Length(left) => {
                let len = bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= len as u64;
                len
            }
            Self::Chunked(chunks) => chunks.follow(bytes),
        }
    }
}

/// Where in a chunked body (RFC 9112, section 7.1). hyper refuses a body that is malformed and
/// ends the connection, so that it does not matter where this says that one ends.
#[derive(Default)]
enum Chunks {
    /// The size of a chunk.
    #[default]
    Begin,
    Size(u64),
    /// Behind the size, up to the end of the line.
    Extension(u64),
    /// A chunk and the line end behind it, of which so much has not come.
    Data(u64),
    /// A line behind the last chunk; whether there is anything in it.
    Trailer(bool),
    End,
}

impl Chunks {
    fn follow(&mut self, bytes: &[u8]) -> usize {
        let mut followed = 0;
        while let Some(&byte) = bytes.get(followed) {
            *self = match *self {
                Self::Data(left) => {
                    let some = left.min((bytes.len() - followed) as u64);
                    // No more than there are bytes.
                    followed += some as usize;
                    match left - some {
                        0 => Self::Begin,
                        left => Self::Data(left),
                    }
                }
                Self::End => return followed,
                _ => {
                    followed += 1;
                    self.next(byte)
                }
            };
        }
        followed
    }

    /// Behind one byte more of a line.
    fn next(&self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Begin, _) => Self::Size(0).next(byte),
            (&Self::Size(size) | &Self::Extension(size), b'\n') => match size {
                0 => Self::Trailer(false),
                _ => Self::Data(size.saturating_add(2)),
            },
            (&Self::Size(size), _) => match char::from(byte).to_digit(16) {
                Some(digit) => Self::Size(size.saturating_mul(16).saturating_add(digit.into())),
                None => Self::Extension(size),
            },
            (&Self::Extension(size), _) => Self::Extension(size),
            (Self::Trailer(false), b'\n') => Self::End,
            (Self::Trailer(_), b'\n') => Self::Trailer(false),
            (&Self::Trailer(any), _) => Self::Trailer(any || byte != b'\r'),
            // Not lines.
            (&Self::Data(left), _) => Self::Data(left),
            (Self::End, _) => Self::End,
        }
    }
}

/// The length of the head with which these bytes begin, as httparse sees it: empty lines before
/// it are skipped, lines end with LF and may have CR before it.
fn head_len(bytes: &[u8]) -> Option<usize> {
    let mut any = false;
    let mut begin = 0;
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        if line.last() != Some(&b'\n') {
            return None;
        }
        begin += line.len();
        match (line, any) {
            (b"\n" | b"\r\n", true) => return Some(begin),
            (b"\n" | b"\r\n", false) => {}
            _ => any = true,
        }
    }
    None
}

/// Whether a head has a `content-length`.
fn has_length(head: &[u8]) -> bool {
    const NAME: &[u8] = b"content-length:";
    head.split(|&byte| byte == b'\n').any(|line| {
        line.get(..NAME.len())
            .is_some_and(|name| name.eq_ignore_ascii_case(NAME))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &[u8] = b"\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n";

    /// Wherever the bytes are cut into reads, the same is kept.
    fn keeps(bytes: &[u8], length: Option<u64>, kept: &[u8]) {
        for cut in 0..=bytes.len() {
            for begun_at in [1, 2] {
                let mut inbound = Inbound::default();
                let (first, second) = bytes.split_at(cut);
                inbound.delivered(first);
                let is_early = begun_at == 1 && inbound.has_request();
                if is_early {
                    inbound.begun(length);
                }
                inbound.delivered(second);
                if !is_early {
                    inbound.begun(length);
                }
                assert_eq!(inbound.kept(), kept, "cut at {cut}");
            }
        }
    }

    #[test]
    fn what_is_behind_a_request_is_kept() {
        keeps(
            &[GET, GET, b"GET"].concat(),
            Some(0),
            &[GET, b"GET"].concat(),
        );
        keeps(&[GET, b"0123", GET].concat(), Some(4), GET);
    }

    #[test]
    fn a_chunked_body_ends_behind_its_trailers() {
        for body in [
            &b"0\r\n\r\n"[..],
            b"4\r\n\r\n\r\n\r\n0\r\n\r\n",
            b"00a ; x=\"0\"\r\n0123456789\r\n0;y\r\nz: 1\r\n\r\n",
            b"A\r\n0\r\n\r\n0\r\n\r\r\n0\r\n\r\n",
        ] {
            keeps(&[GET, body, GET].concat(), None, GET);
        }
    }

    #[test]
    fn a_body_that_is_still_to_come_is_not_kept() {
        let mut inbound = Inbound::default();
        inbound.delivered(GET);
        assert!(!inbound.begun(Some(1 << 40)));
        for _ in 0..1000 {
            inbound.delivered(&[7; 10_000]);
        }
        assert!(inbound.kept().is_empty());
    }

    #[test]
    fn what_cannot_be_followed_is_not_kept() {
        let mut inbound = Inbound::default();
        inbound.delivered(b"GET / HTTP/1.1\r\nhost");
        inbound.begun(Some(0));
        inbound.delivered(GET);
        assert!(!inbound.has_request());
    }

    #[test]
    fn two_lengths_are_noticed() {
        let post = b"POST / HTTP/1.1\r\nContent-Length: 3\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut inbound = Inbound::default();
        inbound.delivered(post);
        assert!(inbound.begun(None));
        inbound.delivered(&[b"0\r\n\r\n", GET].concat());
        assert!(!inbound.begun(Some(0)));
    }
}
