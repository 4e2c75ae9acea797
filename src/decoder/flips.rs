//! Every field of a spec is computed or refused: each is changed, one at a time, on a tiny model; then the scores must change and be
//! those of the textbook (`tests/common/textbook.rs`), or the model must be refused by name.

use super::native::{FormatPlan, Memory, NativeDecoder, NativeOptions, PackedModel};
use super::{Batch, Decoder, LogitsOutput, LogitsRequest, Segment};
use crate::kernels::{Encoding, Format, KernelSet};
use crate::model::{
    Activation, Attention, Convolution, DeltaNet, Ffn, LayerSpec, LongRope, Mixer, Mixture, Model,
    ModelError, ModelSpec, Norm, NormKind, Norms, Plain, QkNorm, QueryGrowth, Role, Rope, Routing,
    Shared, Vocabulary, Weights, is_matrix,
};
use crate::textbook;
use std::ops::Range;
use std::sync::Arc;

/// Weights made up from their role and place.
struct MadeUp(ModelSpec);

impl Weights for MadeUp {
    fn shape(&self, role: Role) -> (usize, usize) {
        self.0.shape(role)
    }

    fn encoding(&self, _: Role) -> Encoding {
        Format::F32.into()
    }

    fn read(
        &self,
        role: Role,
        rows: Range<usize>,
        format: Format,
        out: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        assert_eq!(format, Format::F32);
        let role = if role == Role::Output && self.0.tied_embeddings {
            Role::TokenEmbedding
        } else {
            role
        };
        let (_, columns) = self.shape(role);
        let mut random = crate::tiny::Random::new(7, &format!("{role:?}"));
        // `normal` takes twelve numbers.
        for _ in 0..12 * rows.start * columns {
            random.next();
        }
        for _ in rows.start * columns..rows.end * columns {
            let normal = random.normal();
            let value = match role {
                Role::TokenEmbedding => normal,
                _ if is_matrix(role) => 1.5 * normal / (columns as f32).sqrt(),
                // Norms around 1, biases and sinks around 0.
                _ if format!("{role:?}").contains("Bias") || matches!(role, Role::Sinks(_)) => {
                    0.5 * normal
                }
                Role::ConvolutionTaps(_) | Role::DeltaTaps(_) | Role::DeltaStep(_) => 0.7 * normal,
                Role::DeltaDecay(_) => -normal.abs(),
                _ => 1.0 + 0.3 * normal,
            };
            out.extend(value.to_le_bytes());
        }
        Ok(())
    }
}

fn model(spec: &ModelSpec) -> Model {
    Model {
        name: String::new(),
        path: Default::default(),
        digest: String::new(),
        spec: spec.clone(),
        vocabulary: Vocabulary::default(),
        weights: Box::new(MadeUp(spec.clone())),
    }
}

const POSITIONS: usize = 90;

fn tokens() -> Vec<u32> {
    (0..POSITIONS as u32).map(|i| (i * 37 + i * i) % 61).collect()
}

/// Scores after each token, or why the model is refused.
fn scores(spec: &ModelSpec, chunk: usize) -> Result<Vec<Vec<f32>>, String> {
    let packed =
        PackedModel::pack(&model(spec), FormatPlan::AsStored, 1).map_err(|e| e.to_string())?;
    let options = NativeOptions {
        threads: 1,
        kernels: KernelSet::best(),
        slots: 1,
        rows: 64,
        kv_bytes: 8 << 20,
        memory: Memory::Preallocated,
    };
    let mut decoder = NativeDecoder::new(Arc::new(packed), options).map_err(|e| e.to_string())?;
    let tokens = tokens();
    let slot = decoder.open(&tokens, tokens.len(), false).expect("room").slot;
    let mut all = Vec::new();
    for (i, part) in tokens.chunks(chunk).enumerate() {
        let tokens = 0..part.len();
        let segment = Segment {
            slot,
            start: i * chunk,
            tokens,
            logits: LogitsRequest::AllLogits,
            padding_rows: 0,
            padded_context: 0,
        };
        let mut outputs = Vec::new();
        decoder
            .forward(&Batch { tokens: part.to_vec(), segments: vec![segment] }, &mut outputs)
            .expect("a step");
        let LogitsOutput::Logits(scores) = &outputs[0] else { panic!("logits were asked for") };
        all.extend(scores.chunks(spec.vocab).map(<[f32]>::to_vec));
    }
    Ok(all)
}

/// Two layers; the second is one that no flip touches alone.
fn base() -> ModelSpec {
    let sizes = Plain {
        layers: 2,
        hidden: 48,
        ffn: 72,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocab: 61,
        context: 256,
        theta: 1e4,
        epsilon: 1e-5,
    };
    ModelSpec { tied_embeddings: false, ..ModelSpec::plain(sizes) }
}

/// The base with each field changed in turn; sizes are changed together with what they imply.
#[allow(clippy::too_many_lines, reason = "a list of changes")]
fn flips() -> Vec<(String, ModelSpec)> {
    let mut all: Vec<(String, ModelSpec)> = Vec::new();
    let mut add = |name: &str, change: &dyn Fn(&mut ModelSpec)| {
        let mut spec = base();
        change(&mut spec);
        all.push((name.to_string(), spec));
    };
    // Without `..`: a new field has to be flipped here.
    let ModelSpec {
        architecture: _,
        hidden: _,
        vocab: _,
        context: _,
        layers,
        norm: Norm { kind: _, epsilon: _, weights: _, bias: _ },
        ropes,
        embedding_scale: _,
        query_growth: _,
        logit_scale: _,
        logit_softcap: _,
        output_bias: _,
        tied_embeddings: _,
    } = base();
    let LayerSpec { mixer: Mixer::Attention(attention), ffn: _, norms: _, residual_scale: _ } =
        layers[0].clone()
    else {
        panic!("attention")
    };
    let Attention {
        heads: _,
        kv_heads: _,
        head_dim: _,
        qkv_bias: _,
        output_bias: _,
        qk_norm: _,
        rope: _,
        window: _,
        scale: _,
        softcap: _,
        sinks: _,
        gate: _,
    } = attention;
    let Rope { theta: _, dims: _, factors: _, magnitude: _, long: _ } = ropes[0].clone();

    add("hidden", &|s| s.hidden = 64);
    add("norm.kind", &|s| s.norm.kind = NormKind::Layer);
    add("norm.kind and bias", &|s| s.norm = Norm { kind: NormKind::Layer, bias: true, ..s.norm });
    add("norm.epsilon", &|s| s.norm.epsilon = 0.5);
    add("norm.weights", &|s| s.norm.weights = false);
    add("norm.kind without weights", &|s| {
        s.norm = Norm { kind: NormKind::Layer, weights: false, ..s.norm }
    });
    add("rope.theta", &|s| s.ropes[0].theta = 100.0);
    add("rope.dims", &|s| s.ropes[0].dims = 8);
    add("rope.factors", &|s| s.ropes[0].factors = vec![2.0; 8]);
    add("rope.magnitude", &|s| s.ropes[0].magnitude = 1.25);
    add("rope.long", &|s| {
        s.ropes[0].long = Some(LongRope { above: 64, factors: vec![4.0; 8], magnitude: 1.1 });
    });
    add("embedding_scale", &|s| s.embedding_scale = 3.0);
    add("query_growth", &|s| s.query_growth = Some(QueryGrowth { beta: 0.5, original: 8 }));
    add("logit_scale", &|s| s.logit_scale = 0.25);
    add("logit_softcap", &|s| s.logit_softcap = Some(1.5));
    add("output_bias", &|s| s.output_bias = true);
    add("tied_embeddings", &|s| s.tied_embeddings = true);
    let mut of_attention = |name: &str, change: &dyn Fn(&mut Attention)| {
        add(&format!("attention.{name}"), &|s| s.attentions_mut().for_each(change));
        add(&format!("attention.{name} of one layer"), &|s| {
            s.attentions_mut().take(1).for_each(change)
        });
    };
    of_attention("heads", &|a| a.heads = 6);
    of_attention("kv_heads", &|a| a.kv_heads = 4);
    of_attention("head_dim", &|a| a.head_dim = 20);
    of_attention("qkv_bias", &|a| a.qkv_bias = true);
    of_attention("output_bias", &|a| a.output_bias = true);
    of_attention("qk_norm per head", &|a| a.qk_norm = Some(QkNorm::PerHead));
    of_attention("qk_norm per head, rotated", &|a| a.qk_norm = Some(QkNorm::PerHeadRotated));
    of_attention("qk_norm whole", &|a| a.qk_norm = Some(QkNorm::Whole));
    of_attention("rope", &|a| a.rope = None);
    of_attention("window", &|a| a.window = Some(20));
    of_attention("window of one", &|a| a.window = Some(1));
    of_attention("scale", &|a| a.scale = 0.5);
    of_attention("softcap", &|a| a.softcap = Some(1.0));
    of_attention("sinks", &|a| a.sinks = true);
    of_attention("gate", &|a| a.gate = true);
    of_attention("gate, with norms and biases", &|a| {
        (a.gate, a.qkv_bias, a.qk_norm) = (true, true, Some(QkNorm::PerHead));
    });
    let mut of_layer = |name: &str, change: &dyn Fn(&mut LayerSpec)| {
        add(name, &|s| s.layers.iter_mut().for_each(change));
        add(&format!("{name} of one layer"), &|s| change(&mut s.layers[0]));
    };
    for norms in [Norms::After, Norms::Both, Norms::Parallel, Norms::ParallelApart] {
        of_layer(&format!("norms {norms:?}"), &|l| l.norms = norms);
    }
    of_layer("residual_scale", &|l| l.residual_scale = 0.3);
    for activation in [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Relu2,
    ] {
        for (input_bias, output_bias) in [(false, false), (true, false), (false, true)] {
            let gated = Ffn::Gated { width: 72, activation, input_bias, output_bias };
            let plain = Ffn::Plain { width: 72, activation, input_bias, output_bias };
            of_layer(&format!("{plain:?}"), &|l| l.ffn = plain);
            if gated != base().layers[0].ffn {
                of_layer(&format!("{gated:?}"), &|l| l.ffn = gated);
            }
        }
    }
    for (taps, bias) in [(1, false), (3, false), (3, true), (8, false)] {
        // Without `..`: a new field has to be flipped here.
        let convolution = Convolution { taps, bias };
        of_layer(&format!("{convolution:?}"), &|l| l.mixer = Mixer::Convolution(convolution));
    }
    let net =
        DeltaNet { key_heads: 2, value_heads: 4, key_dim: 8, value_dim: 12, taps: 4, tiled: false };
    for net in [
        net,
        DeltaNet { key_heads: 4, ..net },
        DeltaNet { value_heads: 6, ..net },
        DeltaNet { key_dim: 20, ..net },
        DeltaNet { value_dim: 80, ..net },
        DeltaNet { taps: 2, ..net },
        DeltaNet { tiled: true, ..net },
    ] {
        of_layer(&format!("{net:?}"), &|l| l.mixer = Mixer::DeltaNet(net));
    }
    of_layer("delta net, norms both", &|l| {
        (l.mixer, l.norms) = (Mixer::DeltaNet(net), Norms::Both)
    });
    let mixture = |change: &dyn Fn(&mut Mixture)| {
        let mut mixture = Mixture {
            experts: 5,
            used: 2,
            width: 24,
            activation: Activation::Silu,
            routing: Routing::Softmax,
            normalized: false,
            scale: 1.0,
            router_bias: false,
            choice_bias: false,
            biases: false,
            shared: None,
        };
        change(&mut mixture);
        // Without `..`: a new field has to be flipped below.
        let Mixture {
            experts: _,
            used: _,
            width: _,
            activation: _,
            routing: _,
            normalized: _,
            scale: _,
            router_bias: _,
            choice_bias: _,
            biases: _,
            shared: _,
        } = mixture;
        Ffn::Mixture(mixture)
    };
    type Change = fn(&mut Mixture);
    let mixtures: &[(&str, Change)] = &[
        ("plain", |_| {}),
        ("experts", |m| m.experts = 9),
        ("one expert", |m| (m.experts, m.used) = (1, 1)),
        ("used", |m| m.used = 3),
        ("all used", |m| m.used = 5),
        ("width", |m| m.width = 40),
        ("activation", |m| m.activation = Activation::GeluTanh),
        ("clamped", |m| m.activation = Activation::Clamped { limit: 0.5, alpha: 1.702 }),
        ("softmax of chosen", |m| m.routing = Routing::SoftmaxOfChosen),
        ("sigmoid", |m| m.routing = Routing::Sigmoid),
        ("normalized", |m| m.normalized = true),
        ("sigmoid normalized", |m| (m.routing, m.normalized) = (Routing::Sigmoid, true)),
        ("scale", |m| m.scale = 2.5),
        ("router bias", |m| m.router_bias = true),
        ("choice bias", |m| (m.routing, m.choice_bias) = (Routing::Sigmoid, true)),
        ("choice bias of a softmax", |m| m.choice_bias = true),
        ("biases", |m| m.biases = true),
        ("shared", |m| m.shared = Some(Shared { width: 32, gate: false })),
        ("shared with a share", |m| m.shared = Some(Shared { width: 40, gate: true })),
    ];
    for (name, change) in mixtures {
        of_layer(&format!("mixture: {name}"), &|l| l.ffn = mixture(change));
        if !name.starts_with("shared") {
            continue;
        }
        for norms in [Norms::After, Norms::Both, Norms::Parallel, Norms::ParallelApart] {
            of_layer(&format!("mixture: {name}, norms {norms:?}"), &|l| {
                (l.ffn, l.norms) = (mixture(change), norms)
            });
        }
    }
    of_layer("clamped without experts", &|l| {
        let activation = Activation::Clamped { limit: 0.5, alpha: 1.702 };
        l.ffn = Ffn::Gated { width: 72, activation, input_bias: false, output_bias: false };
    });
    of_layer("ffn.width", &|l| {
        l.ffn = Ffn::Gated {
            width: 80,
            activation: Activation::Silu,
            input_bias: false,
            output_bias: false,
        }
    });
    all
}

#[test]
fn every_field_of_a_spec_is_computed_as_the_textbook_has_it_or_refused() {
    let plain = scores(&base(), 64).expect("the base is computed");
    let (mut computed, mut refused, mut wrong) = (0, Vec::new(), Vec::new());
    for (name, spec) in std::iter::once(("nothing".to_string(), base())).chain(flips()) {
        let got = match scores(&spec, 23) {
            Ok(got) => got,
            Err(text) => {
                assert!(
                    text.contains("does not compute"),
                    "{name}: refused, but not by name: {text}"
                );
                refused.push(name);
                continue;
            }
        };
        computed += 1;
        let far =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        if name != "nothing" && far(&got.concat(), &plain.concat()) <= 1e-3 {
            wrong.push(format!("{name} changes nothing"));
        }
        let want = textbook::logits(&spec, &MadeUp(spec.clone()), &tokens(), POSITIONS);
        let want: Vec<f32> = want.concat().iter().map(|s| *s as f32).collect();
        let spread = want.iter().fold(0f32, |most, s| most.max(s.abs()));
        let off = far(&got.concat(), &want);
        if off.is_nan() || off >= 2e-4 * spread {
            wrong.push(format!("{name}: off by {off} of {spread}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        computed > 190 && refused.len() < 8,
        "{computed} computed; refused: {}",
        refused.join(", ")
    );
}
