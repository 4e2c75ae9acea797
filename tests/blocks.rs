//! Weight types against ggml: what blocks mean (gguf-py's numpy, and ggml's C, which agree), and what values become. The fixture is made by
//! scripts/make_block_fixtures.py.

use llmopt::kernels::Format;
use serde_json::Value;

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
    for format in Format::ALL.into_iter().filter(|f| f.is_quantized()) {
        let case = &fixture[format.ggml_name()];
        let (blocks, want) = (bytes(&case["blocks"]), floats(&case["values"]));
        assert_eq!(want.len(), blocks.len() / format.block_bytes() * format.block(), "{format}");
        let mut got = Vec::new();
        format.dequantize(&blocks, &mut got);
        // Equal as numbers, all finite: of zeros, ggml's sign is that of factors which whole numbers do not keep.
        assert!(want.iter().all(|x| x.is_finite()) && got == want, "{format}");
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
        let want = bytes(&fixture["quantized"][format.ggml_name()]);
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
