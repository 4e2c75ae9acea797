//! Bytes and operations of a step of a model, and the least time the machine needs for them. In: [`ModelSpec`], formats, counts of tokens.
//! Out: [`Work`] and [`Bound`]. Counted are the weights, keys and values and the multiply-adds of matrices and attention; norms, activations
//! and sampling are left out, so a bound is one that cannot be beaten, not one that can be reached.

use super::Rates;
use crate::kernels::Format;
use crate::model::{Convolution, LayerSpec, Mixer, ModelSpec, Role, is_matrix, roles};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// How a model's weights, keys and values are stored while it computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Formats {
    /// Of each matrix that is not in `rest`.
    of: HashMap<Role, Format>,
    rest: Format,
    /// Bytes of an element of keys and values.
    kv_element: f64,
}

impl Formats {
    /// One format for everything; keys and values in f16 for quantized weights, in f32 for the others.
    pub fn all(format: Format) -> Formats {
        Formats {
            of: HashMap::new(),
            rest: format,
            kv_element: if format.is_quantized() { 2.0 } else { 4.0 },
        }
    }

    /// These formats of these matrices, `rest` for all others; keys and values of `kv_element` bytes each.
    pub fn new(
        of: impl IntoIterator<Item = (Role, Format)>,
        rest: Format,
        kv_element: f64,
    ) -> Formats {
        Formats { of: of.into_iter().collect(), rest, kv_element }
    }

    fn of(&self, role: Role) -> Format {
        let rest = if matches!(role, Role::Router(_)) { Format::F32 } else { self.rest };
        self.of.get(&role).copied().unwrap_or(rest)
    }
}

/// What a piece of work asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Work {
    /// Tokens that it yields (what a rate counts).
    pub tokens: f64,
    /// Weights read from memory, in bytes.
    pub weight_bytes: f64,
    /// Keys and values read and written, in bytes.
    pub kv_bytes: f64,
    /// f32 operations; a multiply-add is two.
    pub f32_ops: f64,
    /// int8 operations; a multiply-add is two.
    pub int8_ops: f64,
}

/// Which limit a piece of work meets first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Reading weights, keys and values.
    Memory,
    /// Multiply-adds.
    Compute,
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Bound::Memory => "memory",
            Bound::Compute => "compute",
        })
    }
}

impl Work {
    /// Prefill of `tokens` tokens from an empty context, scores for the last one; the weights are read once.
    pub fn prefill(spec: &ModelSpec, formats: &Formats, tokens: usize) -> Work {
        Work::step(spec, formats, &[(0, tokens)]).yielding(tokens)
    }

    /// One sequence: `tokens` tokens one after the other from an empty context.
    pub fn decode(spec: &ModelSpec, formats: &Formats, tokens: usize) -> Work {
        (0..tokens)
            .map(|start| Work::step(spec, formats, &[(start, 1)]))
            .fold(Work::default(), Work::plus)
            .yielding(tokens)
    }

    /// `batch` sequences together, one token each a step: `tokens` steps after prompts of `prompt` tokens (whose prefill is not part of it).
    pub fn decode_batch(
        spec: &ModelSpec,
        formats: &Formats,
        batch: usize,
        prompt: usize,
        tokens: usize,
    ) -> Work {
        (0..tokens)
            .map(|i| Work::step(spec, formats, &vec![(prompt + i, 1); batch]))
            .fold(Work::default(), Work::plus)
            .yielding(batch * tokens)
    }

    /// One forward pass over segments (positions before it, rows), scores for the last row of each.
    pub fn step(spec: &ModelSpec, formats: &Formats, segments: &[(usize, usize)]) -> Work {
        let rows: usize = segments.iter().map(|s| s.1).sum();
        let mut work = Work { tokens: rows as f64, ..Work::default() };
        for (role, (n, k)) in
            roles(spec).filter(|(role, _)| is_matrix(*role) && role.layer().is_some())
        {
            // Of experts those that are used are read and computed: at most as many as rows choose, at least as many as one row does.
            let (experts, used) = spec.experts_read(role, rows);
            let small = matches!(role, Role::Router(_) | Role::DeltaBeta(_) | Role::DeltaAlpha(_));
            let (format, n) = (if small { Format::F32 } else { formats.of(role) }, n / experts);
            work.weight_bytes += (n * format.row_bytes(k)) as f64 * used;
            work.add_products(
                format,
                (n * k) as f64 * spec.experts_used(role) as f64 * rows as f64,
            );
        }
        let output = formats.of(Role::Output);
        work.weight_bytes += (spec.vocab * output.row_bytes(spec.hidden)) as f64;
        work.add_products(output, (spec.vocab * spec.hidden * segments.len()) as f64);
        for LayerSpec { mixer, ffn: _, norms: _, residual_scale: _ } in &spec.layers {
            let attention = match mixer {
                Mixer::Attention(attention) => attention,
                Mixer::Convolution(Convolution { taps, bias: _ }) => {
                    // A multiply-add a tap and channel; the state is read and written once.
                    work.f32_ops += 2.0 * (taps * spec.hidden * rows) as f64;
                    work.kv_bytes += 2.0 * ((taps - 1) * spec.hidden * segments.len()) as f64 * 4.0;
                    continue;
                }
                Mixer::DeltaNet(net) => {
                    // Three products of the state with a vector and one that changes it; the state is read and written once.
                    let state = (net.value_heads * net.key_dim * net.value_dim) as f64;
                    work.f32_ops +=
                        (7.0 * state + 2.0 * (net.taps * net.channels()) as f64) * rows as f64;
                    let kept = state + ((net.taps - 1) * net.channels()) as f64;
                    work.kv_bytes += 2.0 * kept * 4.0 * segments.len() as f64;
                    continue;
                }
            };
            let window = attention.window.unwrap_or(usize::MAX);
            for &(start, rows) in segments {
                // Row r sees start + r + 1 positions, as far as its window reaches; the segment reads what it sees once and writes its own.
                let seen: f64 = (0..rows).map(|r| (start + r + 1).min(window) as f64).sum();
                work.f32_ops += 4.0 * seen * attention.query_width() as f64;
                let held = (start + rows).min(window.saturating_add(rows.saturating_sub(1)));
                work.kv_bytes +=
                    2.0 * held as f64 * attention.kv_width() as f64 * formats.kv_element;
            }
        }
        work
    }

    fn add_products(&mut self, format: Format, multiply_adds: f64) {
        match format.is_quantized() {
            true => self.int8_ops += 2.0 * multiply_adds,
            false => self.f32_ops += 2.0 * multiply_adds,
        }
    }

    fn plus(self, other: Work) -> Work {
        Work {
            tokens: self.tokens + other.tokens,
            weight_bytes: self.weight_bytes + other.weight_bytes,
            kv_bytes: self.kv_bytes + other.kv_bytes,
            f32_ops: self.f32_ops + other.f32_ops,
            int8_ops: self.int8_ops + other.int8_ops,
        }
    }

    fn yielding(self, tokens: usize) -> Work {
        Work { tokens: tokens as f64, ..self }
    }

    /// Tokens a second that cannot be beaten at these rates, and why; `None` if no measured rate applies. `cached`: bytes that the caches hold;
    /// weights smaller than that need not come from memory.
    pub fn limit(&self, rates: &Rates, cached: f64) -> Option<(f64, Bound)> {
        let memory = if self.weight_bytes > cached {
            (self.weight_bytes + self.kv_bytes) / rates.read
        } else {
            0.0
        };
        let int8 =
            if self.int8_ops > 0.0 { rates.int8.map(|r| self.int8_ops / r) } else { Some(0.0) };
        // Without an int8 probe only the f32 part is known: still a lower bound of the time.
        let compute = self.f32_ops / rates.fma + int8.unwrap_or(0.0);
        let (time, bound) =
            if memory >= compute { (memory, Bound::Memory) } else { (compute, Bound::Compute) };
        (time > 0.0 && time.is_finite()).then(|| (self.tokens / time, bound))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Plain;

    const SMOLLM2: Plain = Plain {
        layers: 30,
        hidden: 576,
        ffn: 1536,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        vocab: 49152,
        context: 8192,
        theta: 1e5,
        epsilon: 1e-5,
    };

    fn smollm2() -> ModelSpec {
        ModelSpec::plain(SMOLLM2)
    }

    /// The machine of peers/RESULTS.md: 25 GB/s, 75 GFLOP/s.
    const ZEN1: Rates = Rates { threads: 2, read: 25e9, fma: 75e9, int8: None };

    #[test]
    fn bytes_per_token_are_those_of_the_peer_table() {
        let bytes = |formats: &Formats| Work::decode(&smollm2(), formats, 1).weight_bytes / 1e6;
        for (formats, expected) in [
            (Formats::all(Format::F32), 538.0),
            (Formats::all(Format::Bf16), 269.0),
            (Formats::all(Format::Q8_0), 142.9),
            (Formats::new([(Role::Output, Format::Q8_0)], Format::Q4_1, 2.0), 96.5),
        ] {
            assert!((bytes(&formats) - expected).abs() < 0.1, "{formats:?}: {}", bytes(&formats));
        }
    }

    /// Q4_K_M holds some matrices in Q6_K: their bytes are theirs, not those of the layer's first.
    #[test]
    fn a_mixture_counts_every_matrix_in_its_own_format() {
        let spec = ModelSpec::plain(Plain {
            layers: 2,
            hidden: 256,
            ffn: 512,
            heads: 4,
            kv_heads: 4,
            ..SMOLLM2
        });
        let mixture = Formats::new(
            [(Role::Down(1), Format::Q6K), (Role::Output, Format::F16)],
            Format::Q4K,
            2.0,
        );
        let work = Work::step(&spec, &mixture, &[(0, 1)]);
        let weights = 2 * (4 * 256 * 256 + 3 * 256 * 512);
        let down = 256 * 512;
        let want = (weights - down) / 256 * 144 + down / 256 * 210 + 49152 * 256 * 2;
        assert_eq!(work.weight_bytes, want as f64);
        assert_eq!(work.int8_ops, 2.0 * weights as f64);
    }

    #[test]
    fn bounds_are_those_of_the_peer_table() {
        let spec = smollm2();
        let (rate, bound) =
            Work::decode(&spec, &Formats::all(Format::F32), 1).limit(&ZEN1, 8e6).unwrap();
        assert!((rate - 46.5).abs() < 0.5 && bound == Bound::Memory, "{rate} {bound}");
        // Without attention 212 MFLOP a token: 353 tokens/s; the head once for 512 and attention over 257 positions on average take some of it.
        let (rate, bound) =
            Work::prefill(&spec, &Formats::all(Format::Bf16), 512).limit(&ZEN1, 8e6).unwrap();
        assert!((310.0..353.0).contains(&rate) && bound == Bound::Compute, "{rate} {bound}");
        let (rate, bound) = Work::decode_batch(&spec, &Formats::all(Format::F32), 64, 1, 1)
            .limit(&ZEN1, 8e6)
            .unwrap();
        assert!((270.0..280.0).contains(&rate) && bound == Bound::Compute, "{rate} {bound}");
    }

    #[test]
    fn a_step_counts_what_a_hand_count_gives() {
        // One layer, hidden 2, ffn 4, 1 head of 2, vocabulary 3: 4·(2·2) + 3·(4·2) = 40 weights, head 6.
        let spec = ModelSpec::plain(Plain {
            layers: 1,
            hidden: 2,
            ffn: 4,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            vocab: 3,
            ..SMOLLM2
        });
        let work = Work::step(&spec, &Formats::all(Format::F32), &[(3, 2)]);
        // Rows see 4 and 5 positions, 2 wide, scores and sums: 4·9·2 operations. 2·40·2 for the layer, 2·6 for one row of the head.
        assert_eq!(work.f32_ops, 72.0 + 160.0 + 12.0);
        assert_eq!((work.int8_ops, work.tokens, work.weight_bytes), (0.0, 2.0, 46.0 * 4.0));
        // 5 positions, keys and values, 2 wide, 4 bytes.
        assert_eq!(work.kv_bytes, 80.0);
        // Two tokens one after the other from nothing read the weights twice and see 1 and 2 positions.
        let two = Work::decode(&spec, &Formats::all(Format::F32), 2);
        assert_eq!(
            (two.weight_bytes, two.f32_ops, two.tokens),
            (2.0 * 184.0, 2.0 * 92.0 + 4.0 * 3.0 * 2.0, 2.0)
        );
    }

    #[test]
    fn small_models_are_not_limited_by_memory() {
        let work = Work::decode(&smollm2(), &Formats::all(Format::F32), 1);
        assert_eq!(work.limit(&ZEN1, 1e9).unwrap().1, Bound::Compute);
        assert_eq!(Work::default().limit(&ZEN1, 0.0), None);
    }
}
