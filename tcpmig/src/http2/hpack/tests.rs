//! Blocks of RFC 7541's appendix C, and any blocks beside a decoder that decodes everything.

use proptest::prelude::*;

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// What a table has, decoded, the newest first.
fn entries(table: &Table) -> Vec<(String, String)> {
    let entries = table.entries.iter();
    entries
        .map(|entry| (name(&entry.name), text(entry.value.text())))
        .collect()
}

fn text(text: Text<'_>) -> String {
    let bytes = match text.is_huffman {
        true => huffman::decode(text.bytes).unwrap(),
        false => text.bytes.to_vec(),
    };
    String::from_utf8_lossy(&bytes).into_owned()
}

fn name(name: &KeptName) -> String {
    match name {
        KeptName::Static(index) => format!("static {index}"),
        KeptName::Text(name) => text(name.text()),
    }
}

/// A decoder: what a block says.
struct Decoder(Table);

impl Decoder {
    fn new() -> Self {
        Self(Table::new(TABLE))
    }

    fn decode(&mut self, block: &[u8]) -> Result<Vec<(String, String)>, Undecodable> {
        let mut rest = block;
        let mut said = Vec::new();
        while let Some(field) = field::next(&mut rest)? {
            match field {
                Field::Size(size) => self.0.resize(size)?,
                Field::Indexed(0) => return Err(Undecodable),
                Field::Indexed(index @ ..=STATIC) => {
                    said.push((format!("static {index}"), "its own".into()));
                }
                Field::Indexed(index) => {
                    let entry = self.0.get(index)?;
                    said.push((name(&entry.name), text(entry.value.text())));
                }
                Field::Literal {
                    indexing,
                    name: named,
                    value,
                } => {
                    let named = match named {
                        Name::Index(index @ ..=STATIC) => KeptName::Static(index),
                        Name::Index(index) => self.0.get(index)?.name.clone(),
                        Name::Text(text) => KeptName::Text(Kept::new(text)?),
                    };
                    let kept = Kept::new(value)?;
                    said.push((name(&named), text(kept.text())));
                    if indexing == Indexing::Incremental {
                        self.0.insert(Entry {
                            name: named,
                            value: kept,
                            told: None,
                        });
                    }
                }
            }
        }
        Ok(said)
    }
}

/// Appendix C.3 (without the Huffman code), C.4 (with it).
#[test]
fn the_rfcs_requests_fill_the_table() {
    let plain = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    let coded = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    for blocks in [plain, coded] {
        let mut bridge = Bridge::new();
        for (block, size) in blocks.iter().zip([57, 110, 164]) {
            assert_eq!(bridge.pass(&hex(block)), Ok(None));
            let sizes: usize = bridge.table.entries.iter().map(Entry::size).sum();
            assert_eq!(sizes, size);
        }
        let expected = [
            ("custom-key", "custom-value"),
            ("static 24", "no-cache"),
            ("static 1", "www.example.com"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(entries(&bridge.table), expected);
    }
}

/// Appendix C.5, in a table of 256 bytes.
#[test]
fn the_rfcs_responses_drive_entries_out() {
    let blocks = [
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a \
         3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
    ];
    let mut bridge = Bridge::new();
    bridge.table.resize(256).unwrap();
    for block in blocks {
        bridge.pass(&hex(block)).unwrap();
    }
    let sizes: Vec<_> = bridge.table.entries.iter().map(Entry::size).collect();
    assert_eq!(sizes, [42, 63, 65, 52]);
    assert_eq!(entries(&bridge.table)[0].1, "307");
}

/// A block that a wicked encoder writes.
fn fields() -> impl Strategy<Value = Vec<(u8, u8, u8, u16)>> {
    prop::collection::vec((0..8_u8, any::<u8>(), any::<u8>(), 0..2500_u16), 0..12)
}

/// Writes fields for a table of which it knows how many entries it has.
fn block(fields: &[(u8, u8, u8, u16)], table: &mut Decoder) -> Vec<u8> {
    let mut block = Vec::new();
    for (at, &(kind, one, other, len)) in fields.iter().enumerate() {
        let entries = table.0.entries.len();
        let value = vec![
            other;
            if other < 40 {
                len.into()
            } else {
                usize::from(other)
            }
        ];
        let value = Text {
            is_huffman: false,
            bytes: &value,
        };
        let named = [one];
        let index = 1 + usize::from(one) % (STATIC + entries);
        let name = match one % 3 {
            0 => Name::Text(Text {
                is_huffman: false,
                bytes: &named,
            }),
            _ => Name::Index(index),
        };
        let indexing = match kind {
            0..4 => Indexing::Incremental,
            4 => Indexing::Without,
            _ => Indexing::Never,
        };
        let field = match kind {
            6 => Field::Indexed(index),
            7 if at == 0 => Field::Size(usize::from(len).min(TABLE)),
            7 if entries > 0 => Field::Indexed(STATIC + 1 + usize::from(other) % entries),
            _ => Field::Literal {
                indexing,
                name,
                value,
            },
        };
        let begin = block.len();
        field::put(&mut block, field);
        table.decode(&block[begin..]).unwrap();
    }
    block
}

proptest! {
    /// A decoder behind a bridge hears what the encoder says, wherever it begins, and held blocks say the same to any.
    #[test]
    fn a_new_decoder_hears_the_same(blocks in prop::collection::vec((fields(), 0..8_u8), 1..30)) {
        let (mut encoder, mut witness, mut decoder) = (Decoder::new(), Decoder::new(), Decoder::new());
        let mut bridge = Bridge::new();
        for (fields, happens) in blocks {
            let block = block(&fields, &mut encoder);
            let said = witness.decode(&block).unwrap();
            if happens == 0 {
                let image = bridge.image();
                bridge = Bridge::resume(&image).unwrap();
                prop_assert_eq!(&bridge.image(), &image);
                decoder = Decoder::new();
            }
            if happens == 1 {
                let held = bridge.hold(&block).unwrap();
                prop_assert_eq!(Decoder::new().decode(&held).unwrap(), said);
            } else {
                let told = bridge.pass(&block).unwrap().unwrap_or(block);
                prop_assert_eq!(decoder.decode(&told).unwrap(), said);
            }
            prop_assert_eq!(entries(&bridge.table), entries(&witness.0));
        }
    }

    #[test]
    fn no_bytes_are_too_wicked(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..10), hold: bool) {
        let mut bridge = Bridge::new();
        for block in blocks {
            let _ = if hold { bridge.hold(&block).map(Some) } else { bridge.pass(&block) };
        }
    }
}
