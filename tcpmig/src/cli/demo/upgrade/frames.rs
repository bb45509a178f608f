//! As much of WebSockets (RFC 6455) as the demo needs: whole messages of text, which are short.

use std::io;

use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
/// What a client hides its messages by from proxies; any number does.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What a server answers to the key of a client.
pub(super) fn accept(key: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64(&hash.finalize())
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for letter in 0..4 {
            if letter > chunk.len() {
                text.push('=');
            } else {
                // INVARIANT: six bits.
                text.push(LETTERS[(bits >> (18 - 6 * letter) & 63) as usize].into());
            }
        }
    }
    text
}

/// A message of text; nothing at the end.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<String>> {
    let [first, second] = [from.read_u8().await?, from.read_u8().await?];
    let len = match second & !MASKED {
        126 => from.read_u16().await?.into(),
        127 => return Err(io::ErrorKind::InvalidData.into()),
        len => usize::from(len),
    };
    let mut mask = [0; 4];
    if second & MASKED != 0 {
        from.read_exact(&mut mask).await?;
    }
    let mut text = vec![0; len];
    from.read_exact(&mut text).await?;
    for (byte, mask) in text.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
    match first & !FINAL {
        TEXT => String::from_utf8(text).map(Some).map_err(io::Error::other),
        CLOSE => Ok(None),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Who writes.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Role {
    Client,
    Server,
}

/// Writes a message of text, or the end.
pub(super) async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    role: Role,
    text: Option<&str>,
) -> io::Result<()> {
    let kind = if text.is_some() { TEXT } else { CLOSE };
    let text = text.unwrap_or_default().as_bytes();
    let len = u8::try_from(text.len()).ok().filter(|len| *len < 126);
    let len = len.ok_or(io::ErrorKind::InvalidInput)?;
    let mut frame = vec![FINAL | kind, len];
    if role == Role::Client {
        frame[1] |= MASKED;
        frame.extend(MASK);
        frame.extend(
            text.iter()
                .zip(MASK.into_iter().cycle())
                .map(|(byte, mask)| byte ^ mask),
        );
    } else {
        frame.extend(text);
    }
    to.write_all(&frame).await?;
    to.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_answered_as_the_rfc_says() {
        assert_eq!(
            accept(b"dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[tokio::test]
    async fn messages_come_as_they_went() {
        for role in [Role::Client, Role::Server] {
            let mut bytes = Vec::new();
            write(&mut bytes, role, Some("a message")).await.unwrap();
            write(&mut bytes, role, None).await.unwrap();
            let mut bytes = &bytes[..];
            assert_eq!(
                read(&mut bytes).await.unwrap().as_deref(),
                Some("a message")
            );
            assert_eq!(read(&mut bytes).await.unwrap(), None);
        }
    }
}
