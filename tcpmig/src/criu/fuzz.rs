//! Whatever is in the files of a dump.

use arbitrary::Arbitrary;
use tcpmig_format::{Image, Limits, TcpImage};

use super::written::{Wire, files_file, stream_file};
use super::{Kind, Stream, import, sockets};
use crate::fuzz::Peak;

/// The two files of a connection.
#[derive(Arbitrary, Debug)]
pub struct Dump<'a> {
    stream: File<'a, Numbers<'a>>,
    files: File<'a, Vec<Socket<'a>>>,
}

#[derive(Arbitrary, Debug)]
enum File<'a, T> {
    /// Any bytes.
    Bytes(&'a [u8]),
    /// Messages with the fields that there are.
    Made(T),
}

/// Fields by their tags, of which later ones replace earlier ones.
type Fields = Vec<(u8, u32)>;

#[derive(Arbitrary, Debug)]
struct Numbers<'a> {
    /// `inq_len`, `outq_len`, `unsq_len` as they are, before what else is said of them.
    lengths: [u8; 3],
    fields: Fields,
    queues: &'a [u8],
}

#[derive(Arbitrary, Debug)]
struct Socket<'a> {
    state: u8,
    is_ipv6: bool,
    ends: [(u32, u16); 2],
    fields: Fields,
    options: Fields,
    device: &'a [u8],
    filter: Vec<u64>,
    of_ip: Fields,
    of_tcp: Fields,
}

fn with(message: Wire, fields: &Fields) -> Wire {
    let add = |message: Wire, &(tag, value): &(u8, u32)| {
        // 0 is no tag.
        message.number(u64::from(tag % 31) + 1, value)
    };
    fields.iter().fold(message, add)
}

impl Numbers<'_> {
    /// Every field, so that what is changed is seen behind the first look.
    fn file(&self) -> Vec<u8> {
        let [unread, written, unsent] = self.lengths;
        let message = Wire::default()
            .number(1, unread)
            .number(2, 5_000_u32)
            .number(3, written)
            .number(4, 9_000_u32)
            .number(5, 7_u32)
            .number(6, 7_u32)
            .number(7, 1448_u32)
            .number(8, 7_u32)
            .number(9, 77_u32)
            .number(12, unsent)
            .number(13, 5_000_u32)
            .number(14, 60_000_u32)
            .number(15, 60_000_u32)
            .number(16, 60_000_u32)
            .number(17, 5_000_u32);
        stream_file(&with(message, &self.fields), b"", self.queues)
    }
}

impl Socket<'_> {
    fn message(&self) -> Wire {
        let [(local, local_port), (remote, remote_port)] = self.ends;
        let mut message = Wire::default()
            .number(2, 7_u32)
            .number(3, if self.is_ipv6 { 10_u32 } else { 2 })
            .number(4, 1_u32)
            .number(5, 6_u32)
            .number(6, self.state)
            .number(7, local_port)
            .number(8, remote_port);
        for (tag, word) in [(11, local), (12, remote)] {
            for _ in 0..if self.is_ipv6 { 4 } else { 1 } {
                message = message.number(tag, word);
            }
        }
        let mut options = with(Wire::default(), &self.options).bytes(15, self.device);
        for instruction in &self.filter {
            options = options.fixed64(16, *instruction);
        }
        with(message, &self.fields)
            .bytes(14, &options.0)
            .bytes(16, &with(Wire::default(), &self.of_ip).0)
            .bytes(17, self.device)
            .bytes(20, &with(Wire::default(), &self.of_tcp).0)
    }
}

/// What is imported is an image that is valid, from the sockets that there are, and memory follows the bytes.
///
/// # Panics
///
/// If one of these does not hold.
pub fn criu(input: &Dump<'_>, peak: Peak) {
    let stream = match &input.stream {
        File::Bytes(bytes) => bytes.to_vec(),
        File::Made(numbers) => numbers.file(),
    };
    let files = match &input.files {
        File::Bytes(bytes) => bytes.to_vec(),
        File::Made(sockets) => {
            let sockets: Vec<_> = sockets.iter().map(Socket::message).collect();
            files_file(&sockets)
        }
    };
    let mut read = None;
    let used = peak(&mut || {
        let stream = Stream::read(&stream, &Limits::default());
        read = Some((stream, sockets(&files)));
    });
    // Each entry of a few bytes becomes a socket with every option that there may be.
    let most = 64 * (stream.len() + files.len()) as u64 + 8192;
    assert!(used <= most, "{used} bytes for files of {most}");
    let Some((Ok(read), Ok(sockets))) = read else {
        return;
    };
    assert_eq!(Kind::of(&stream), Some(Kind::TcpStream));
    for socket in &sockets {
        let Ok(imported) = import(read.clone(), socket) else {
            continue;
        };
        let image = imported.image;
        assert_eq!(image.ip().map(|ip| ip.flow), Some(socket.flow));
        assert_eq!(image.tcp().map(TcpImage::state), Some(socket.state));
        let bytes = image.encode().expect("what is imported is valid");
        let decoded = Image::decode(&bytes, &Limits::default());
        assert_eq!(decoded.expect("it is an image"), image);
    }
}
