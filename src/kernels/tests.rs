//! Every kernel set against the portable one, by exact equality of bits, at sizes that fill no tile; and the portable one against
//! plain arithmetic. Run under AddressSanitizer and valgrind by scripts/check-kernels.sh: buffers here are exactly as long as promised.
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)]

use super::gemm::{ActBlock, Gemm, WIDE};
use super::*;

/// Small deterministic numbers.
pub(super) struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    pub fn float(&mut self) -> f32 {
        (self.next() as f32 / (1u64 << 30) as f32 - 1.0) * 2f32.powi((self.next() % 8) as i32 - 4)
    }

    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    /// `n` rows of `k` weights as a file has them.
    pub(super) fn rows(&mut self, format: Format, n: usize, k: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for _ in 0..n * k / format.block() {
            match format {
                Format::F32 => out.extend(self.float().to_le_bytes()),
                Format::Bf16 => out.extend(half::bf16::from_f32(self.float()).to_le_bytes()),
                Format::F16 => out.extend(half::f16::from_f32(self.float()).to_le_bytes()),
                // All bytes, those of the smallest and largest codes, factors and minima among them.
                _ => {
                    let begin = out.len();
                    out.extend((0..format.block_bytes()).map(|_| {
                        [0, 0x80, 0x7f, 0xff, self.next() as u8][self.next() as usize % 5]
                    }));
                    for at in format.half_offsets() {
                        out[begin + at..][..2]
                            .copy_from_slice(&half::f16::from_f32(self.float()).to_le_bytes());
                    }
                }
            }
        }
        out
    }
}

pub(super) fn pack(format: Format, n: usize, k: usize, rows: &[u8]) -> Arena {
    let bytes = panel_bytes(format, k);
    let mut arena = Arena::new(n.div_ceil(COLUMNS) * bytes).unwrap();
    let row_bytes = format.row_bytes(k);
    for (rows, panel) in
        rows.chunks(COLUMNS * row_bytes).zip(arena.bytes_mut().chunks_exact_mut(bytes))
    {
        pack_panel(format, k, rows, panel);
    }
    arena
}

/// A row as int8 blocks, in plain arithmetic.
fn blocks(x: &[f32]) -> Vec<ActBlock> {
    let block = |x: &[f32]| {
        let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        let scale = if largest >= 1e-30 { 127.0 / largest } else { 0.0 };
        let q: Vec<i8> = x.iter().map(|x| (x * scale).round_ties_even() as i8).collect();
        let sum: i32 = q.iter().map(|q| *q as i32).sum();
        let d = largest / 127.0;
        let halves = [0, 16].map(|from| q[from..from + 16].iter().map(|q| *q as i16).sum());
        ActBlock {
            q: q.try_into().unwrap(),
            d,
            dsum: d * sum as f32,
            correction: -128 * sum,
            halves,
        }
    };
    x.chunks_exact(32).map(block).collect()
}

/// The definition in `gemm.rs`, element by element.
fn reference(format: Format, panels: &Panels, rows: &[u8], x: &[f32], q: &[ActBlock]) -> Vec<f32> {
    let row_bytes = format.row_bytes(panels.k);
    let mut w = vec![0.0; panels.k];
    (0..panels.n)
        .map(|n| {
            let file = &rows[n * row_bytes..][..row_bytes];
            match format {
                _ if format.is_quantized() => {
                    let parts = file.chunks(format.block_bytes()).flat_map(|block| {
                        (0..format.block() / 32).map(move |j| (format.kind().part)(block, j))
                    });
                    parts.zip(q).fold(0f32, |acc, (part, x)| {
                        let sum: i32 = part.q.iter().zip(x.q).map(|(w, x)| w * x as i32).sum();
                        let acc = (part.d * x.d).mul_add(sum as f32, acc);
                        let halves = [0, 1].map(|h| part.minima[h] * x.halves[h] as i32);
                        match (format, format.half_offsets().len()) {
                            (Format::Q2K, _) => {
                                (part.m * x.d).mul_add((halves[0] + halves[1]) as f32, acc)
                            }
                            (_, 2) => part.m.mul_add(x.dsum, acc),
                            _ => acc,
                        }
                    })
                }
                _ => {
                    panels.row(n, &mut w);
                    let sums = w
                        .chunks(256)
                        .zip(x.chunks(256))
                        .map(|(w, x)| w.iter().zip(x).fold(0f32, |a, (w, x)| x.mul_add(*w, a)));
                    sums.reduce(|a, b| a + b).unwrap()
                }
            }
        })
        .collect()
}

/// Which sets a run of these tests means: `--nocapture` shows them (under valgrind they are fewer).
#[test]
fn the_portable_set_comes_first_and_every_set_has_a_name_of_its_own() {
    let names: Vec<_> = KernelSet::available().iter().map(|s| s.name()).collect();
    println!("kernel sets: {}", names.join(", "));
    assert_eq!(names[0], "portable");
    assert!((1..names.len()).all(|i| !names[..i].contains(&names[i])), "{names:?}");
    assert_eq!(KernelSet::best().name(), names[names.len() - 1]);
}

/// What scripts/check-kernels.sh runs first: whoever watches must end this with an error, or a pass of the others means nothing.
#[cfg(watched_arenas)]
#[test]
#[ignore = "reads past the end of an arena on purpose"]
fn a_read_past_the_end_of_an_arena_is_seen() {
    let arena = Arena::new(192).unwrap();
    // SAFETY: none; the script expects this to be caught.
    println!("{}", unsafe {
        std::hint::black_box(arena.bytes().as_ptr().add(192)).read_volatile()
    });
}

#[test]
fn products_of_all_formats_are_the_definition_in_all_sets() {
    let mut random = Random(7);
    for format in Format::ALL {
        let ks: &[usize] = match format.block() {
            1 => &[1, 2, 17, 255, 256, 257, 600],
            32 => &[32, 64, 96, 608],
            _ => &[256, 768],
        };
        for &k in ks {
            for n in [1, 37] {
                let rows = random.rows(format, n, k);
                let arena = pack(format, n, k, &rows);
                let panels = Panels::new(format, n, k, arena.bytes());
                for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17, 21, 24, 27, 31] {
                    let x = random.floats(m * k);
                    let q: Vec<ActBlock> = if format.is_quantized() {
                        x.chunks(k).flat_map(blocks).collect()
                    } else {
                        Vec::new()
                    };
                    let want: Vec<Vec<f32>> = (0..m)
                        .map(|r| {
                            reference(
                                format,
                                &panels,
                                &rows,
                                &x[r * k..][..k],
                                &q[(r * (k / 32)).min(q.len())..][..q.len() / m],
                            )
                        })
                        .collect();
                    for set in KernelSet::available() {
                        let stride = n.next_multiple_of(16);
                        let (mut out, mut wide) = (vec![f32::NAN; m * stride], vec![0.0; WIDE]);
                        let g = Gemm {
                            format,
                            w: arena.bytes().as_ptr(),
                            panels: n.div_ceil(16),
                            k,
                            x: x.as_ptr(),
                            x_stride: k,
                            q: q.as_ptr(),
                            q_stride: k / 32,
                            rows: m,
                            out: out.as_mut_ptr(),
                            out_stride: stride,
                            wide: wide.as_mut_ptr(),
                        };
                        // SAFETY: the set's features are there; all buffers are as long as the fields say.
                        unsafe { (set.table().gemm)(&g) };
                        for r in 0..m {
                            for c in 0..n {
                                let (got, want) = (out[r * stride + c], want[r][c]);
                                assert_eq!(
                                    got.to_bits(),
                                    want.to_bits(),
                                    "{set:?} {format} {m}x{k}x{n} at {r},{c}: {got} {want}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn norms_and_blocks_are_the_same_in_all_sets() {
    let mut random = Random(11);
    for n in [32, 64, 96, 160, 576] {
        let rows = 5;
        let mut x = Rows::new(rows, n);
        (0..rows).for_each(|r| x.row_mut(r)[..n].copy_from_slice(&random.floats(n)));
        // A block of zeros, one of tiny numbers, ties of the rounding, a NaN.
        x.row_mut(1)[..32].fill(0.0);
        x.row_mut(2)[..32].fill(1e-33);
        x.row_mut(3)[..32].iter_mut().enumerate().for_each(|(i, x)| *x = i as f32 * 0.5);
        x.row_mut(3)[31] = 127.0;
        let w = random.floats(n);
        let results: Vec<Activations> = KernelSet::available()
            .into_iter()
            .map(|set| {
                let mut team = Team::new(set, 2, 16, false).unwrap();
                let mut out = Activations::new(rows, n, true);
                team.norm(&x, None, rows, &NormWeights::rms(&w, 1e-5), n, &mut out);
                out
            })
            .collect();
        for (result, set) in results.iter().zip(KernelSet::available()) {
            assert!(result.same_bits(&results[0]), "{set:?} {n}");
        }
        for r in 0..rows {
            let squares: f64 = x.row(r).iter().map(|x| *x as f64 * *x as f64).sum();
            for i in 0..n {
                let want = x.row(r)[i] as f64 / (squares / n as f64 + 1e-5).sqrt() * w[i] as f64;
                assert!(
                    (results[0].row(r)[i] as f64 - want).abs() <= 1e-6 * want.abs() + 1e-37,
                    "row {r} at {i}"
                );
            }
            assert_eq!(results[0].blocks(r), blocks(&results[0].row(r)[..n]), "row {r}");
        }
    }
}

#[test]
fn a_nan_survives_quantization() {
    for set in KernelSet::available() {
        let mut team = Team::new(set, 1, 16, false).unwrap();
        for at in [0, 7, 31] {
            let mut x = Rows::new(1, 32);
            x.row_mut(0).fill(1.0);
            x.row_mut(0)[at] = f32::NAN;
            let mut out = Activations::new(1, 32, true);
            team.norm(&x, None, 1, &NormWeights::rms(&[1.0; 32], 1e-5), 32, &mut out);
            assert!(out.blocks(0)[0].d.is_nan(), "{set:?} {at}");
        }
    }
}

/// Keys and values in int8: a step of 1/127 of the largest of 16, in f16, and whole steps; a NaN is not lost.
#[test]
fn a_page_of_int8_is_within_half_a_step_and_keeps_a_nan() {
    use super::isa::{Isa, Portable};
    use super::pages::{HeadShape, store_kv, widen_page};
    let (hd, mut random) = (32, Random(9));
    let shape = KvShape::uniform(1, 2, hd, KvElement::Q8_0);
    let head: HeadShape = shape.head(0);
    let mut page = vec![0xffu8; shape.page_bytes()];
    let rows: Vec<Vec<f32>> = (0..PAGE).map(|_| random.floats(2 * 2 * hd)).collect();
    for (lane, row) in rows.iter().enumerate() {
        for (key, x) in [(true, &row[..2 * hd]), (false, &row[2 * hd..])] {
            for column in (0..2 * hd).step_by(16) {
                // SAFETY: plain Rust; the page has room for both heads.
                unsafe {
                    store_kv::<Portable>(
                        &head,
                        key,
                        page.as_mut_ptr(),
                        lane,
                        column,
                        16,
                        Portable::load(x[column..].as_ptr()),
                    )
                };
            }
        }
    }
    for h in 0..2 {
        let mut wide = vec![0f32; 2 * hd * PAGE];
        // SAFETY: a head's share of the page, and room for it in f32.
        unsafe { widen_page::<Portable>(page[h * head.bytes..].as_ptr(), hd, wide.as_mut_ptr()) };
        for (lane, row) in rows.iter().enumerate() {
            for d in 0..hd {
                let (key, value) = (row[h * hd + d], row[2 * hd + h * hd + d]);
                let step = |from: usize| {
                    row[from + d / 16 * 16..][..16].iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0
                };
                assert!((wide[d * PAGE + lane] - key).abs() <= 0.51 * step(h * hd));
                assert!(
                    (wide[hd * PAGE + lane * hd + d] - value).abs() <= 0.51 * step(2 * hd + h * hd)
                );
            }
        }
    }
    let mut x = [1.0; 16];
    x[7] = f32::NAN;
    // SAFETY: as above.
    unsafe {
        store_kv::<Portable>(&head, true, page.as_mut_ptr(), 3, 0, 16, Portable::load(x.as_ptr()))
    };
    let mut wide = vec![0f32; 2 * hd * PAGE];
    // SAFETY: as above.
    unsafe { widen_page::<Portable>(page.as_ptr(), hd, wide.as_mut_ptr()) };
    assert!(
        (0..16).all(|d| wide[d * PAGE + 3].is_nan() || wide[d * PAGE + 3] == 0.0)
            && wide[3].is_nan()
    );
}

/// Causal attention of three query heads on each of keys and values, in f64.
fn attends_as_written(
    panels: &[Panels],
    normed: &Activations,
    out: &Activations,
    head_dim: usize,
    most: f64,
) {
    let product = |part: usize, row: usize, n: usize| -> f64 {
        let mut w = vec![0.0; panels[part].k];
        panels[part].row(n, &mut w);
        w.iter().zip(normed.row(row)).map(|(w, x)| *w as f64 * *x as f64).sum()
    };
    for row in [0, 63, 64, 209] {
        for head in [0, 5] {
            let kv = head / 3 * head_dim;
            let weights: Vec<f64> = (0..=row)
                .map(|p| {
                    (0..head_dim)
                        .map(|d| product(0, row, head * head_dim + d) * product(1, p, kv + d))
                        .sum::<f64>()
                })
                .map(|s| (s / (head_dim as f64).sqrt()).exp())
                .collect();
            let total: f64 = weights.iter().sum();
            for d in [0, head_dim - 1] {
                let want: f64 = weights
                    .iter()
                    .enumerate()
                    .map(|(p, w)| w / total * product(2, p, kv + d))
                    .sum();
                let got = out.row(row)[head * head_dim + d] as f64;
                assert!((got - want).abs() < most, "row {row} head {head} d {d}: {got} {want}");
            }
        }
    }
}

/// Attention of three rows at positions that end within, at and behind a span, in f64.
#[test]
fn attention_is_the_textbooks_and_the_same_in_all_sets() {
    for (head_dim, element) in [
        (16, KvElement::F16),
        (10, KvElement::F32),
        (6, KvElement::F16),
        (48, KvElement::F32),
        (16, KvElement::Q8_0),
        (48, KvElement::Q8_0),
    ] {
        let (heads, kv_heads, layers) = (6, 2, 2);
        let shape = KvShape::uniform(layers, kv_heads, head_dim, element);
        let (positions, hidden) = (210, 32);
        let mut random = Random(5);
        let parts: Vec<(usize, Vec<u8>)> = [heads, kv_heads, kv_heads]
            .iter()
            .map(|h| (h * head_dim, random.rows(Format::F32, h * head_dim, hidden)))
            .collect();
        let arenas: Vec<Arena> =
            parts.iter().map(|(n, rows)| pack(Format::F32, *n, hidden, rows)).collect();
        let panels: Vec<Panels> = parts
            .iter()
            .zip(&arenas)
            .map(|((n, _), a)| Panels::new(Format::F32, *n, hidden, a.bytes()))
            .collect();
        let mut x = Rows::new(positions, hidden);
        (0..positions).for_each(|r| x.row_mut(r).copy_from_slice(&random.floats(hidden)));
        // No rotation: cosines 1, sines 0.
        let rotation: Vec<f32> = (0..positions * 2 * head_dim)
            .map(|i| (i % (2 * head_dim) < head_dim) as u8 as f32)
            .collect();
        let rows: Vec<Row> = (0..positions as u32)
            .map(|p| Row { position: p, page: (p / 16 * 5 + 3) % 14 })
            .collect();
        let pages: Vec<u32> = (0..14).map(|i| (i * 5 + 3) % 14).collect();
        let mut results = Vec::new();
        for set in KernelSet::available() {
            for heads_apart in [false, true] {
                let mut team = Team::new(set, 2, head_dim, false).unwrap();
                let mut kv = KvArena::new(shape.clone(), 14).unwrap();
                let mut normed = Activations::new(positions, hidden, false);
                team.norm(
                    &x,
                    None,
                    positions,
                    &NormWeights::rms(&vec![0.2; hidden], 1e-5),
                    hidden,
                    &mut normed,
                );
                let mut q = Rows::new(positions, heads * head_dim);
                let r = Rotation { table: &rotation, scale: 1.0 / (head_dim as f32).sqrt() };
                team.qkv(
                    [&panels[0], &panels[1], &panels[2]],
                    [None; 3],
                    &normed,
                    &rows,
                    &r,
                    &mut kv,
                    1,
                    &mut q,
                );
                let mut units = Vec::new();
                attention_units(
                    0,
                    0,
                    positions,
                    if heads_apart { 500 } else { 0 },
                    heads,
                    kv_heads,
                    heads_apart,
                    &mut units,
                );
                let mut out = Activations::new(positions, heads * head_dim, false);
                team.attention(
                    &units,
                    &rows,
                    &[Context::Pages(&pages)],
                    &kv,
                    1,
                    Attending::plain(heads),
                    &q,
                    &mut out,
                );
                let copy = kv.copy_layer(1, &pages);
                let mut again = Activations::new(positions, heads * head_dim, false);
                team.attention(
                    &units,
                    &rows,
                    &[Context::Copy(&copy)],
                    &kv,
                    1,
                    Attending::plain(heads),
                    &q,
                    &mut again,
                );
                assert!(out.same_bits(&again), "{set:?}: a copy of the pages is as good");
                results.push((set, normed, out));
            }
        }
        for (set, _, out) in &results {
            assert!(out.same_bits(&results[0].2), "{set:?} {element:?} head_dim {head_dim}");
        }
        let (_, normed, out) = &results[0];
        attends_as_written(&panels, normed, out, head_dim, [1e-3, 0.05, 0.1][element as usize]);
    }
}
