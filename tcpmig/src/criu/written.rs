//! Files as CRIU writes them, made field by field from the numbers of its `.proto` files and not from the structs.

/// A message of protobuf.
#[derive(Clone, Default)]
pub(super) struct Wire(pub(super) Vec<u8>);

impl Wire {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A field of any type of number that is not fixed.
    pub(super) fn number(mut self, tag: u64, value: impl Into<u64>) -> Self {
        self.varint(tag << 3);
        self.varint(value.into());
        self
    }

    pub(super) fn fixed64(mut self, tag: u64, value: u64) -> Self {
        self.varint(tag << 3 | 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A field that is a text or a message.
    pub(super) fn bytes(mut self, tag: u64, bytes: &[u8]) -> Self {
        self.varint(tag << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }
}

fn word(value: u32) -> [u8; 4] {
    value.to_le_bytes()
}

/// A message behind its length.
fn sized(message: &Wire) -> Vec<u8> {
    [&word(message.0.len() as u32)[..], &message.0].concat()
}

/// A `tcp-stream-INODE.img`.
pub(super) fn stream_file(message: &Wire, unread: &[u8], written: &[u8]) -> Vec<u8> {
    let magic = [word(0x5456_4319), word(0x5146_5506)].concat();
    [&magic, &sized(message)[..], unread, written].concat()
}

/// `files.img` with a regular file before these sockets.
pub(super) fn files_file(sockets: &[Wire]) -> Vec<u8> {
    let mut file = [word(0x5456_4319), word(0x5630_3138)].concat();
    let regular = Wire::default().number(6, 7_u32).bytes(6, b"/a/file");
    file.extend(sized(
        &Wire::default()
            .number(1, 1_u32)
            .number(2, 1_u32)
            .bytes(3, &regular.0),
    ));
    for (id, socket) in (2_u32..).zip(sockets) {
        let entry = Wire::default().number(1, 4_u32).number(2, id);
        file.extend(sized(&entry.bytes(4, &socket.0)));
    }
    file
}
