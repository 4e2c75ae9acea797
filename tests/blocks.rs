//! Weight types against ggml: what blocks mean (gguf-py's numpy, and ggml's C, which agree), and what values become. The fixture is made by
//! scripts/make_block_fixtures.py.

use llmopt::kernels::{Encoding, Format, WidenedType};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn fixture() -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/blocks.json");
    serde_json::from_slice(&std::fs::read(path).expect("the fixture")).expect("JSON")
}

fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().expect("hex");
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex"))
        .collect()
}

fn floats(value: &Value) -> Vec<f32> {
    bytes(value)
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")))
        .collect()
}

#[test]
fn blocks_of_every_type_mean_what_ggml_says() {
    let fixture = fixture();
    for encoding in Encoding::all().filter(|e| e.is_quantized()) {
        let name = encoding.ggml_name();
        let case = &fixture[&name];
        let (blocks, want) = (bytes(&case["blocks"]), floats(&case["values"]));
        let count = blocks.len() / encoding.block_bytes();
        assert!(count >= 2 && want.len() == count * encoding.block(), "{name}");
        let mut got = Vec::new();
        encoding.dequantize(&blocks, &mut got);
        // Equal as numbers, all finite: of zeros, ggml's sign is that of factors which whole numbers do not keep.
        assert!(want.iter().all(|x| x.is_finite()) && got == want, "{name}");
    }
}

/// Blocks of a linear congruential generator's bytes, as scripts/make_block_fixtures.py has them: without the highest bit of its exponent
/// an f16 number is finite.
fn counted_blocks(widened: WidenedType, count: usize) -> Vec<u8> {
    let size = Encoding::Widened(widened).block_bytes();
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as u8
    };
    let mut out: Vec<u8> = (0..count * size).map(|_| next()).collect();
    // The high byte of the scale; of that of IQ1_M, which lies in four words, the byte with the highest bits.
    let high = match widened {
        WidenedType::Nvfp4 => return out,
        WidenedType::Iq1M => 55,
        WidenedType::Tq1_0 => 53,
        WidenedType::Tq2_0 => 65,
        _ => 1,
    };
    out.chunks_exact_mut(size).for_each(|block| block[high] &= 0xbf);
    out
}

/// Here zeros have ggml's signs too, and the blocks ask for every row of every table.
#[test]
fn types_that_are_only_read_mean_what_ggml_says_to_the_bit() {
    let fixture = fixture();
    for widened in WidenedType::ALL {
        let encoding = Encoding::Widened(widened);
        let case = &fixture[encoding.ggml_name()];
        let values = |blocks: &[u8]| -> Vec<u8> {
            let mut out = Vec::new();
            encoding.dequantize(blocks, &mut out);
            out.iter().flat_map(|x| x.to_le_bytes()).collect()
        };
        assert!(values(&bytes(&case["blocks"])) == bytes(&case["values"]), "{widened:?}");
        let digest = Sha256::digest(values(&counted_blocks(widened, 1024)));
        assert_eq!(digest[..], bytes(&case["digest"]), "{widened:?}");
    }
}

/// Whatever the bytes: no panic, as many values as a block has, and where the scales are called finite all values are.
#[test]
fn any_bytes_are_blocks_and_scales_that_are_no_numbers_are_noticed() {
    for widened in WidenedType::ALL {
        let encoding = Encoding::Widened(widened);
        let size = encoding.block_bytes();
        let mut blocks = counted_blocks(widened, 64);
        blocks.extend(
            [0u8, 0x7f, 0x80, 0xff, 0x7c, 0xfc, 0x78].map(|byte| vec![byte; size]).concat(),
        );
        // Each byte of a block of zeros in turn as high as it goes: of f16 and E4M3 numbers too.
        for at in 0..size {
            let mut block = vec![0; size];
            block[at] = 0xff;
            block[at.saturating_sub(1)] = 0xff;
            blocks.extend(block);
        }
        let mut refused = 0;
        for block in blocks.chunks_exact(size) {
            let mut values = Vec::new();
            encoding.dequantize(block, &mut values);
            assert_eq!(values.len(), encoding.block(), "{widened:?}");
            match widened.is_finite(block) {
                true => assert!(values.iter().all(|x| x.is_finite()), "{widened:?} {block:?}"),
                // ggml reads 0 or 240 of an eight-bit float that is no number.
                false if widened == WidenedType::Nvfp4 => refused += 1,
                false => {
                    assert!(values.iter().any(|x| !x.is_finite()), "{widened:?} {block:?}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0, "{widened:?}");
    }
}

#[test]
fn every_number_of_ggml_is_read_or_not_and_none_twice() {
    let numbers: Vec<u32> = Encoding::all().map(Encoding::ggml).collect();
    let read: Vec<u32> = (0..100).filter(|n| Encoding::of_ggml(*n).is_some()).collect();
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, read);
    for encoding in Encoding::all() {
        assert_eq!(Encoding::of_ggml(encoding.ggml()), Some(encoding));
    }
}

/// Types of 32 are equal in every byte. The searches of the K types sum in ggml's order, but a compiler may fuse there what it does not here:
/// a byte in a hundred may differ, and the values that come out are as near to those that went in.
#[test]
fn values_become_the_blocks_that_ggml_makes_of_them() {
    let fixture = fixture();
    let values = floats(&fixture["quantized"]["values"]);
    let mut seen = 0;
    for format in Format::ALL.into_iter().filter(|f| f.is_quantized() && f.is_written()) {
        let want = bytes(&fixture["quantized"][Encoding::from(format).ggml_name()]);
        let mut got = Vec::new();
        format.encode(&values, &mut got);
        assert_eq!(got.len(), want.len(), "{format}");
        let other = got.iter().zip(&want).filter(|(a, b)| a != b).count();
        let most = if format.block() == 32 { 0 } else { got.len() / 100 };
        assert!(other <= most, "{format}: {other} of {} bytes", got.len());
        let error = |blocks: &[u8]| {
            let mut back = Vec::new();
            format.dequantize(blocks, &mut back);
            values.iter().zip(&back).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>()
        };
        let (ours, theirs) = (error(&got), error(&want));
        assert!(
            ours <= theirs * 1.001,
            "{format}: squared error {ours} of ours, {theirs} of ggml's"
        );
        seen += 1;
    }
    assert_eq!(seen, 8);
}
