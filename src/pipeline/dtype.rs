//! Which storage the weights get: what `--dtype` and the policies ask for, made concrete for one model. In: a model, a
//! configuration. Out: a plan for the decoder, a name, a reason. Choosing between storages that give the same bits is the only
//! place where a time decides something, and it decides about speed alone.

use super::{DtypePolicy, PipelineConfig, QuantizedPolicy};
use crate::decoder::native::{FormatPlan, Memory, NativeDecoder, NativeOptions, PackedModel};
use crate::decoder::{Batch, Decoder, LogitsRequest, Segment};
use crate::kernels::{Encoding, Format, KernelSet, KvElement};
use crate::model::{
    Model, ModelError, ModelSpec, Role, Vocabulary, Weights, is_matrix, matrices, roles,
};
use crate::units::seconds;
use std::sync::Arc;
use std::time::Instant;

/// The storage in use, and why.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ResolvedDtype {
    /// As records show it: `f32`, `bf16`, `q4_1`, `bf16-emulated`.
    pub name: String,
    /// What chose it.
    pub reason: String,
    /// What had to be converted or dequantized, one line each.
    pub notes: Vec<String>,
    /// What the answers depend on: the same for storages that give the same bits.
    #[serde(skip)]
    pub(super) numeric_path: String,
    #[serde(skip)]
    pub(super) plan: FormatPlan,
}

/// What is computed with a file's weights where they are taken as stored: those without a kernel are widened to f32.
fn computed(model: &Model, as_stored: &str) -> String {
    let of = |role: Role| {
        let (rows, columns) = model.weights.shape(role);
        (
            rows * columns,
            model.weights.format(role).is_none().then(|| model.weights.encoding(role).ggml_name()),
        )
    };
    with_widened(as_stored, matrices(&model.spec).map(of))
}

/// `as_stored`, and what is not. `weights`: of each matrix how many, and the name of their type if they are widened.
fn with_widened(as_stored: &str, weights: impl Iterator<Item = (usize, Option<String>)>) -> String {
    let (mut names, mut widened, mut whole) = (std::collections::BTreeSet::new(), 0, 0);
    for (count, name) in weights {
        whole += count;
        widened += if name.is_some() { count } else { 0 };
        names.extend(name);
    }
    let names = names.into_iter().collect::<Vec<_>>().join(", ");
    match widened {
        0 => as_stored.to_string(),
        _ if widened == whole => {
            format!(
                "the file's {names} weights are widened at load: no kernel computes with them as stored"
            )
        }
        _ => format!("{as_stored}, but for its {names} weights, which are widened to f32 at load"),
    }
}

/// The format in which most weights of the file are, `None` for types without a kernel.
fn main_format(model: &Model) -> Option<Format> {
    let mut counts: Vec<(Option<Format>, usize)> = Vec::new();
    for role in matrices(&model.spec) {
        let (format, (rows, columns)) = (model.weights.format(role), model.weights.shape(role));
        match counts.iter_mut().find(|(f, _)| *f == format) {
            Some((_, count)) => *count += rows * columns,
            None => counts.push((format, rows * columns)),
        }
    }
    counts.into_iter().max_by_key(|(_, count)| *count).and_then(|(format, _)| format)
}

/// The one format of a file, f32 where everything is widened; of several what the file calls its mixture (`q4_k_m`), or the one of most weights.
fn stored_name(model: &Model) -> &'static str {
    let widened = |role| matches!(model.weights.format(role), None | Some(Format::F32));
    if matrices(&model.spec).all(widened) {
        return Format::F32.name();
    }
    let main = main_format(model).unwrap_or(Format::F32).name();
    let mixture = || model.weights.file_type().unwrap_or(main);
    only_format(model).map_or_else(mixture, Format::name)
}

/// The one format of all matrices, if there is one.
fn only_format(model: &Model) -> Option<Format> {
    let first = model.weights.format(Role::Output)?;
    matrices(&model.spec).all(|role| model.weights.format(role) == Some(first)).then_some(first)
}

impl ResolvedDtype {
    /// Resolves a configuration's dtype for a model. `kernels` and the sizes are what a timing would use; without them nothing is timed,
    /// and of two storages with the same bits the file's own is named.
    pub(super) fn resolve(
        model: &Model,
        config: &PipelineConfig,
        kernels: Option<KernelSet>,
    ) -> ResolvedDtype {
        let quantized_file =
            matrices(&model.spec).any(|r| model.weights.format(r).is_none_or(Format::is_quantized));
        let widened = config.quantized == QuantizedPolicy::Widened;
        let stored_name = stored_name(model);
        let (plan, name, reason) = match config.dtype {
            DtypePolicy::Bf16Emulated => (
                FormatPlan::WidenedBf16Emulated,
                "bf16-emulated",
                "asked for, or 'precision' is off".into(),
            ),
            DtypePolicy::Fixed(format) if !(format.is_quantized() && widened) => {
                (FormatPlan::All(format), format.name(), "asked for".into())
            }
            DtypePolicy::Fixed(_) | DtypePolicy::Native | DtypePolicy::Auto
                if quantized_file && widened =>
            {
                (
                    FormatPlan::All(Format::F32),
                    "f32",
                    "'quantized' is off: weights are widened at load".into(),
                )
            }
            DtypePolicy::Fixed(_) => {
                (FormatPlan::All(Format::F32), "f32", "'quantized' is off".into())
            }
            DtypePolicy::Native => {
                (FormatPlan::AsStored, stored_name, computed(model, "as stored in the file"))
            }
            DtypePolicy::Auto if quantized_file => (
                FormatPlan::AsStored,
                stored_name,
                computed(model, "a quantized file runs as stored"),
            ),
            DtypePolicy::Auto => match only_format(model) {
                Some(format) if format != Format::F32 => {
                    let as_stored = (format, "as stored in the file".into());
                    let (format, reason) =
                        kernels.map_or(as_stored, |k| faster(&model.spec, format, config, k));
                    (FormatPlan::All(format), format.name(), reason)
                }
                _ => (
                    FormatPlan::All(Format::F32),
                    "f32",
                    "the only storage that holds every weight of the file exactly".into(),
                ),
            },
        };
        let numeric_path = numeric_path(model, plan, config.sizes.kv_dtype);
        ResolvedDtype { name: name.to_string(), reason, notes: Vec::new(), numeric_path, plan }
    }
}

/// What the bits of an answer depend on. Exact float storages are all computed in f32 and give the same bits, so they share a name.
/// Keys and values are part of it where they are not held as usual.
fn numeric_path(model: &Model, plan: FormatPlan, kv: Option<KvElement>) -> String {
    let with_kv = |weights: String, usual: KvElement| match kv {
        Some(kv) if kv != usual => format!("{weights},kv-{}", kv.name()),
        _ => weights,
    };
    if plan == FormatPlan::WidenedBf16Emulated {
        return with_kv("bf16-emulated".into(), KvElement::F32);
    }
    let computed = |role: Role| {
        let (stored, (_, columns)) = (model.weights.format(role), model.weights.shape(role));
        (stored, plan.format_of(role, stored, columns))
    };
    let class = |role: Role| {
        let (stored, format) = computed(role);
        match format {
            Format::F32 => "exact",
            _ if stored == Some(format) && !format.is_quantized() => "exact",
            _ => format.name(),
        }
    };
    let classes: Vec<&str> = matrices(&model.spec).map(class).collect();
    let quantized =
        matrices(&model.spec).any(|role| role.layer().is_some() && computed(role).1.is_quantized());
    let usual = if quantized { KvElement::F16 } else { KvElement::F32 };
    with_kv(
        if classes.iter().all(|c| *c == classes[0]) {
            classes[0].to_string()
        } else {
            classes.join(",")
        },
        usual,
    )
}

/// Weights that look like a model's but are made up: enough copies of one layer to be larger than the caches.
struct Pattern(ModelSpec);

impl Weights for Pattern {
    fn shape(&self, role: Role) -> (usize, usize) {
        self.0.shape(role)
    }

    fn encoding(&self, _role: Role) -> Encoding {
        Format::F32.into()
    }

    fn read(
        &self,
        role: Role,
        rows: std::ops::Range<usize>,
        format: Format,
        out: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        let count = rows.len() * self.shape(role).1;
        for i in 0..count {
            // Small numbers of both signs that every float format holds.
            let value = ((i * 7 + rows.start) % 16) as f32 / 256.0 - 0.03125;
            match format {
                Format::Bf16 => out.extend(half::bf16::from_f32(value).to_le_bytes()),
                Format::F16 => out.extend(half::f16::from_f32(value).to_le_bytes()),
                _ => out.extend(value.to_le_bytes()),
            }
        }
        Ok(())
    }
}

/// The faster of f32 and `stored` for decode steps of a whole batch, on copies of one layer.
fn faster(
    spec: &ModelSpec,
    stored: Format,
    config: &PipelineConfig,
    kernels: KernelSet,
) -> (Format, String) {
    let rows = config.sizes.batch.min(16);
    let timed = |format: Format| time_layers(spec, format, rows, config.sizes.threads, kernels);
    match (timed(stored), timed(Format::F32)) {
        (Some(narrow), Some(wide)) => {
            let format = if narrow <= wide { stored } else { Format::F32 };
            let (narrow, wide) = (seconds(narrow), seconds(wide));
            (
                format,
                format!(
                    "the same bits as {}, timed on a layer with {rows} rows: {stored} {narrow}, f32 {wide}",
                    if format == stored { "f32" } else { stored.name() }
                ),
            )
        }
        // Not enough memory for a timing: the smaller one.
        _ => (stored, "the same bits as f32 in less memory".into()),
    }
}

/// Seconds that one layer takes in a decode step of so many rows: the best of a few.
fn time_layers(
    spec: &ModelSpec,
    format: Format,
    rows: usize,
    threads: usize,
    kernels: KernelSet,
) -> Option<f64> {
    let first = |(role, _): &(Role, _)| is_matrix(*role) && role.layer() == Some(0);
    let weights: usize = roles(spec).filter(first).map(|(_, (rows, columns))| rows * columns).sum();
    // At least 96 MB of f32: more than most caches hold, so that reading the weights is in the time.
    let copies = (96_000_000 / (4 * weights).max(1)).clamp(1, spec.layers.len());
    let layers = vec![spec.layers[0].clone(); copies];
    let small =
        ModelSpec { layers, vocab: 64, tied_embeddings: true, output_bias: false, ..spec.clone() };
    let model = Model {
        name: String::new(),
        path: Default::default(),
        digest: String::new(),
        spec: small.clone(),
        vocabulary: Vocabulary::default(),
        weights: Box::new(Pattern(small)),
    };
    let packed = Arc::new(PackedModel::pack(&model, FormatPlan::All(format), threads).ok()?);
    let options = NativeOptions {
        threads,
        kernels,
        slots: rows,
        rows,
        kv_bytes: (packed.kv_bytes_per_position() * 32 + packed.state_bytes_per_sequence())
            * rows as u64,
        memory: Memory::Preallocated,
    };
    let mut decoder = NativeDecoder::new(packed, options).ok()?;
    let mut batch = Batch::default();
    for row in 0..rows {
        let opened = decoder.open(&[row as u32], 16, false)?;
        batch.tokens.push(row as u32);
        batch.segments.push(Segment {
            slot: opened.slot,
            start: 0,
            tokens: row..row + 1,
            logits: LogitsRequest::Argmax,
            padding_rows: 0,
            padded_context: 0,
        });
    }
    let mut outputs = Vec::new();
    let mut best = f64::INFINITY;
    for step in 0..12 {
        batch.segments.iter_mut().for_each(|s| s.start = step);
        let since = Instant::now();
        decoder.forward(&batch, &mut outputs).ok()?;
        best = best.min(since.elapsed().as_secs_f64());
    }
    Some(best / copies as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::WidenedType;

    #[test]
    fn the_reason_says_what_is_widened_and_never_that_it_runs_as_stored() {
        let told = |weights: &[(usize, Option<&str>)]| {
            with_widened(
                "a quantized file runs as stored",
                weights.iter().map(|(n, name)| (*n, name.map(String::from))),
            )
        };
        assert_eq!(told(&[(8, None), (4, None)]), "a quantized file runs as stored");
        let mixed = told(&[(8, None), (4, Some("IQ2_XS"))]);
        assert_eq!(
            mixed,
            "a quantized file runs as stored, but for its IQ2_XS weights, which are widened to f32 at load"
        );
        let all = told(&[(8, Some("Q3_K")), (4, Some("IQ2_XS")), (4, Some("Q3_K"))]);
        assert_eq!(
            all,
            "the file's IQ2_XS, Q3_K weights are widened at load: no kernel computes with them as stored"
        );
    }

    /// Layers in one type, the output matrix in another; what the file calls that.
    struct Mixed(ModelSpec, [Encoding; 2], Option<&'static str>);

    impl Weights for Mixed {
        fn shape(&self, role: Role) -> (usize, usize) {
            self.0.shape(role)
        }
        fn encoding(&self, role: Role) -> Encoding {
            self.1[usize::from(role.layer().is_none())]
        }
        fn file_type(&self) -> Option<&'static str> {
            self.2
        }
        fn read(
            &self,
            _: Role,
            _: std::ops::Range<usize>,
            _: Format,
            _: &mut Vec<u8>,
        ) -> Result<(), ModelError> {
            Ok(())
        }
    }

    fn resolved(
        output: Format,
        file_type: Option<&'static str>,
        kv_dtype: Option<KvElement>,
    ) -> ResolvedDtype {
        resolved_of([Format::Q4K.into(), output.into()], file_type, kv_dtype)
    }

    fn resolved_of(
        types: [Encoding; 2],
        file_type: Option<&'static str>,
        kv_dtype: Option<KvElement>,
    ) -> ResolvedDtype {
        let plain = crate::model::Plain {
            layers: 2,
            hidden: 256,
            ffn: 512,
            heads: 4,
            kv_heads: 4,
            head_dim: 64,
            vocab: 64,
            context: 64,
            theta: 1e4,
            epsilon: 1e-5,
        };
        let spec = ModelSpec::plain(plain);
        let model = Model {
            name: String::new(),
            path: Default::default(),
            digest: String::new(),
            spec: spec.clone(),
            vocabulary: Vocabulary::default(),
            weights: Box::new(Mixed(spec, types, file_type)),
        };
        let sizes =
            crate::pipeline::Sizes { threads: 1, batch: 1, chunk: 16, kv_bytes: None, kv_dtype };
        let base = PipelineConfig::audit_baseline(DtypePolicy::Native, sizes);
        let config = PipelineConfig {
            dtype: DtypePolicy::Native,
            quantized: QuantizedPolicy::AsStored,
            ..base
        };
        ResolvedDtype::resolve(&model, &config, None)
    }

    #[test]
    fn a_mixture_has_the_name_its_file_gives_it_and_a_pure_file_its_type() {
        assert_eq!(resolved(Format::Q6K, Some("q4_k_m"), None).name, "q4_k_m");
        assert_eq!(resolved(Format::Q4K, Some("q4_k_m"), None).name, "q4_k");
        assert_eq!(resolved(Format::Q6K, None, None).name, "q4_k");
    }

    #[test]
    fn what_is_widened_whole_is_f32_with_the_bits_of_a_file_of_f32() {
        let of = |layers: Encoding, output: Encoding, file_type| {
            let resolved = resolved_of([layers, output], file_type, None);
            (resolved.name, resolved.numeric_path)
        };
        let f32 = of(Format::F32.into(), Format::F32.into(), Some("f32"));
        assert_eq!(f32, ("f32".into(), "exact".into()));
        for widened in WidenedType::ALL.map(Encoding::Widened) {
            assert_eq!(of(widened, widened, Some("iq2_m")), f32, "{widened:?}");
            assert_eq!(of(widened, Format::F32.into(), None), f32, "{widened:?}");
            // In part: the file's own name, and what is computed as stored is part of the numeric path.
            let (name, path) = of(widened, Format::Q6K.into(), Some("iq2_m"));
            assert_eq!(name, "iq2_m");
            assert!(path.contains("exact") && path.contains("q6_k"), "{path}");
        }
    }

    #[test]
    fn keys_and_values_are_part_of_the_numeric_path_where_they_are_not_held_as_usual() {
        let path = |kv| resolved(Format::Q4K, None, kv).numeric_path;
        assert_eq!(path(None), path(Some(KvElement::F16)));
        assert_eq!(path(Some(KvElement::Q8_0)), "q4_k,kv-q8_0");
        assert_eq!(path(Some(KvElement::F32)), "q4_k,kv-f32");
    }

    #[test]
    fn routers_and_decays_stay_in_f32_whatever_is_asked_for() {
        let q8 = FormatPlan::All(Format::Q8_0);
        for role in [Role::Router(0), Role::DeltaBeta(0), Role::DeltaAlpha(0)] {
            assert_eq!(q8.format_of(role, Some(Format::Bf16), 64), Format::F32);
            assert_eq!(FormatPlan::AsStored.format_of(role, Some(Format::Q8_0), 64), Format::F32);
            assert_eq!(FormatPlan::WidenedBf16Emulated.format_of(role, None, 64), Format::Bf16);
        }
        assert_eq!(q8.format_of(Role::Query(0), Some(Format::Bf16), 64), Format::Q8_0);
        assert_eq!(q8.format_of(Role::Query(0), None, 33), Format::F32);
    }
}
