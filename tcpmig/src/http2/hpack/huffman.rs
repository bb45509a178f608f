//! The Huffman code of header strings (RFC 7541, section 5.2 and appendix B).
//!
//! Strings are kept as they came; a table's size counts them decoded, and so only lengths are wanted here.

use std::sync::LazyLock;

/// How many bits each symbol has; the last is that of the end of a string. The code is canonical: shorter codes come before
/// longer ones, and codes of the same length are in the order of their symbols.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// Behind four bits more.
#[derive(Clone, Copy, Default)]
struct Step {
    /// The inner node of the tree that is reached.
    node: u8,
    /// The symbol that ended on the way: no code is so short that there are two.
    symbol: Option<u8>,
    /// The end of a string came, which must not be written.
    is_end: bool,
}

struct Machine {
    /// For each inner node.
    steps: Vec<[Step; 16]>,
    /// Whether a string can end there: less than a byte of ones.
    ends: Vec<bool>,
}

#[derive(Clone, Copy)]
enum Child {
    Inner(usize),
    Symbol(usize),
}

fn tree() -> Vec<[Option<Child>; 2]> {
    let mut symbols: Vec<usize> = (0..LENGTHS.len()).collect();
    symbols.sort_by_key(|&symbol| (LENGTHS[symbol], symbol));
    let mut nodes = vec![[None; 2]];
    let (mut code, mut bits) = (0_u32, 0);
    for symbol in symbols {
        code <<= LENGTHS[symbol] - bits;
        bits = LENGTHS[symbol];
        let mut node = 0;
        for bit in (1..bits).rev() {
            let side = (code >> bit & 1) as usize;
            node = match nodes[node][side] {
                Some(Child::Inner(next)) => next,
                _ => {
                    nodes.push([None; 2]);
                    let next = nodes.len() - 1;
                    nodes[node][side] = Some(Child::Inner(next));
                    next
                }
            };
        }
        nodes[node][(code & 1) as usize] = Some(Child::Symbol(symbol));
        code += 1;
    }
    nodes
}

static MACHINE: LazyLock<Machine> = LazyLock::new(|| {
    let tree = tree();
    let walk = |from: usize, nibble: usize| {
        let mut step = Step::default();
        let mut node = from;
        for bit in (0..4).rev() {
            node = match tree[node][nibble >> bit & 1] {
                Some(Child::Inner(next)) => next,
                Some(Child::Symbol(symbol)) => {
                    // 256 is the end.
                    step.symbol = u8::try_from(symbol).ok();
                    step.is_end |= symbol == 256;
                    0
                }
                // INVARIANT: the code is complete.
                None => 0,
            };
        }
        // 257 leaves have 256 inner nodes above them.
        step.node = node as u8;
        step
    };
    let steps = (0..tree.len()).map(|from| std::array::from_fn(|nibble| walk(from, nibble)));
    let mut ends = vec![false; tree.len()];
    let mut node = 0;
    for _ in 0..8 {
        ends[node] = true;
        match tree[node][1] {
            Some(Child::Inner(next)) => node = next,
            _ => break,
        }
    }
    Machine {
        steps: steps.collect(),
        ends,
    }
});

fn walk(bytes: &[u8], mut symbol: impl FnMut(u8)) -> Option<()> {
    let machine = &*MACHINE;
    let mut node = 0_u8;
    for &byte in bytes {
        for nibble in [byte >> 4, byte & 15] {
            let step = machine.steps[usize::from(node)][usize::from(nibble)];
            if step.is_end {
                return None;
            }
            if let Some(decoded) = step.symbol {
                symbol(decoded);
            }
            node = step.node;
        }
    }
    machine.ends[usize::from(node)].then_some(())
}

/// How long a string is when it is decoded; `None` if it cannot be.
pub(super) fn decoded_len(bytes: &[u8]) -> Option<usize> {
    let mut len = 0;
    walk(bytes, |_| len += 1)?;
    Some(len)
}

#[cfg(test)]
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::new();
    walk(bytes, |symbol| decoded.push(symbol))?;
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7541, appendix C.4 and C.6.
    #[test]
    fn the_rfcs_strings_are_decoded() {
        for (encoded, decoded) in [
            (
                &[
                    0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
                ][..],
                "www.example.com",
            ),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (
                &[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f],
                "custom-key",
            ),
            (&[0x64, 0x02], "302"),
        ] {
            assert_eq!(decode(encoded).unwrap(), decoded.as_bytes());
            assert_eq!(decoded_len(encoded), Some(decoded.len()));
        }
    }

    #[test]
    fn padding_is_less_than_a_byte_of_ones() {
        assert_eq!(decoded_len(&[]), Some(0));
        // '0' is 00000.
        assert_eq!(decoded_len(&[0b0000_0111]), Some(1));
        assert_eq!(decoded_len(&[0b0000_0110]), None);
        assert_eq!(decoded_len(&[0b0000_0111, 0xff]), None);
        assert_eq!(decoded_len(&[0xff; 4]), None);
    }
}
