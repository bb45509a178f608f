//! The heads of requests, as bytes.

use hyper::header::{CONTENT_LENGTH, EXPECT, HeaderName, HeaderValue, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::{Request, Version};

use super::session::SessionError;

/// How long the heads of programs are at most, in bytes; those of browsers are longer.
const USUAL: usize = 256;

/// Writes a head as it could have been sent, without what tells of a body.
pub(super) fn write(head: &mut Vec<u8>, parts: &Parts) {
    head.clear();
    head.reserve(USUAL);
    head.extend_from_slice(parts.method.as_str().as_bytes());
    head.push(b' ');
    // Formatting the whole takes longer.
    if let Some(scheme) = parts.uri.scheme() {
        head.extend_from_slice(scheme.as_str().as_bytes());
        head.extend_from_slice(b"://");
    }
    if let Some(authority) = parts.uri.authority() {
        head.extend_from_slice(authority.as_str().as_bytes());
    }
    if let Some(target) = parts.uri.path_and_query() {
        let target = target.as_str();
        if target.starts_with('?') {
            head.push(b'/');
        }
        head.extend_from_slice(target.as_bytes());
    }
    head.extend_from_slice(match parts.version {
        Version::HTTP_10 => b" HTTP/1.0\r\n",
        _ => b" HTTP/1.1\r\n",
    });
    for (name, value) in &parts.headers {
        if ![CONTENT_LENGTH, TRANSFER_ENCODING, EXPECT].contains(name) {
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
    }
    head.extend_from_slice(b"\r\n");
}

/// Adds a header, unless there is one of this name.
pub(super) fn add(head: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    // Names are written in lower case, as they are here.
    let begin = [b"\r\n", name.as_str().as_bytes(), b": "].concat();
    let end = head.len().saturating_sub(2);
    if head.windows(begin.len()).any(|line| line == begin) || &head[end..] != b"\r\n" {
        return;
    }
    head.truncate(end);
    head.extend_from_slice(&begin[2..]);
    head.extend_from_slice(value.as_bytes());
    head.extend_from_slice(b"\r\n\r\n");
}

/// The request that a head tells of.
pub(super) fn parse(head: &[u8]) -> Result<Request<()>, SessionError> {
    let bad = |error: &dyn std::fmt::Display| SessionError::Request(error.to_string());
    // One line is the request's own.
    let lines = head.iter().filter(|&&byte| byte == b'\n').count();
    let mut headers = vec![httparse::EMPTY_HEADER; lines];
    let mut parsed = httparse::Request::new(&mut headers);
    let status = parsed.parse(head).map_err(|error| bad(&error))?;
    let (httparse::Status::Complete(_), Some(method), Some(target)) =
        (status, parsed.method, parsed.path)
    else {
        return Err(bad(&"it is cut off"));
    };
    let version = match parsed.version {
        Some(0) => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .version(version);
    for header in parsed.headers {
        request = request.header(header.name, header.value);
    }
    request.body(()).map_err(|error| bad(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_written_as_it_is_shown() {
        for uri in [
            "/",
            "/a?b=c",
            "*",
            "http://example.com",
            "http://example.com/a?b",
            "https://example.com:8443?b",
            "example.com:443",
        ] {
            let (parts, ()) = Request::builder()
                .method("GET")
                .uri(uri)
                .header("a", "b")
                .body(())
                .unwrap()
                .into_parts();
            let mut head = Vec::new();
            write(&mut head, &parts);
            let expected = format!("GET {} HTTP/1.1\r\na: b\r\n\r\n", parts.uri);
            assert_eq!(String::from_utf8(head).unwrap(), expected);
        }
    }
}
