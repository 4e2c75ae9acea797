//! Rotary positions from metadata: base, dimensions, and the scalings of transformers' `modeling_rope_utils.py` (linear, dynamic,
//! llama3, yarn, longrope) as one divisor for each frequency. In: metadata. Out: [`Rope`].
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use crate::model::metadata::{Container, Key, Metadata, key};
use crate::model::spec::{LongRope, Rope};
use crate::model::{ModelError, QueryGrowth};

/// What a rope is read with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Width of a head.
    pub head_dim: usize,
    /// Positions of the model.
    pub context: usize,
    /// Base where the file has none.
    pub theta: f64,
    /// GGUF's key of the base.
    pub gguf_theta: &'static str,
    /// The entry of `rope_parameters` where transformers 5 nests them by the type of layer.
    pub layer_type: &'static str,
    /// Name of the base in transformers 4.
    pub hf_theta: &'static str,
    /// Scalings apply to it.
    pub scaled: bool,
    /// Share of a head that rotates where the file does not say.
    pub partial: f64,
    /// The ends of yarn's ramp are rounded where the file does not say.
    pub truncate: bool,
}

impl Wanted {
    /// The rope of all layers.
    pub(super) fn new(head_dim: usize, context: usize) -> Wanted {
        Wanted {
            head_dim,
            context,
            theta: 10_000.0,
            gguf_theta: "rope.freq_base",
            layer_type: "full_attention",
            hf_theta: "rope_theta",
            scaled: true,
            partial: 1.0,
            truncate: true,
        }
    }
}

/// A parameter of the scaling: in GGUF under `rope.scaling.`, in configs nested by type of layer or not.
struct Parameters<'a> {
    metadata: &'a dyn Metadata,
    layer_type: &'a str,
}

impl Parameters<'_> {
    fn with<T>(&self, gguf: &[&str], hf: &str, read: impl FnOnce(Key) -> T) -> T {
        let nested = format!("rope_parameters.{}.{hf}", self.layer_type);
        let (new, old) = (format!("rope_parameters.{hf}"), format!("rope_scaling.{hf}"));
        read(Key { gguf, hf: &[&nested, &old, &new] })
    }

    fn positive(&self, gguf: &[&str], hf: &str) -> Result<Option<f64>, ModelError> {
        self.with(gguf, hf, |key| self.metadata.positive(key))
    }

    fn need(&self, gguf: &[&str], hf: &str) -> Result<f64, ModelError> {
        self.positive(gguf, hf)?
            .ok_or_else(|| self.with(gguf, hf, |key| self.metadata.missing(key)))
    }

    /// A count of positions: an integer in GGUF files, any number in configs.
    fn positions(&self, gguf: &[&str], hf: &str) -> Result<Option<f64>, ModelError> {
        match self.metadata.container() {
            Container::Gguf => Ok(self
                .with(gguf, hf, |key| self.metadata.integer(key, 1..=1 << 27))?
                .map(|n| n as f64)),
            Container::Checkpoint => self.positive(gguf, hf),
        }
    }

    fn need_positions(&self, gguf: &[&str], hf: &str) -> Result<f64, ModelError> {
        self.positions(gguf, hf)?
            .ok_or_else(|| self.with(gguf, hf, |key| self.metadata.missing(key)))
    }

    fn kind(&self) -> Result<String, ModelError> {
        let new = self.with(&["rope.scaling.type"], "rope_type", |key| self.metadata.text(key))?;
        let kind = match new {
            Some(kind) => Some(kind),
            None => self.with(&[], "type", |key| self.metadata.text(key))?,
        };
        Ok(kind.unwrap_or_else(|| "default".into()))
    }
}

/// The rope that a file describes.
pub(super) fn read(metadata: &dyn Metadata, wanted: Wanted) -> Result<Rope, ModelError> {
    let Wanted {
        head_dim,
        context,
        theta,
        gguf_theta,
        layer_type,
        hf_theta,
        scaled,
        partial,
        truncate,
    } = wanted;
    let parameters = Parameters { metadata, layer_type };
    let own = metadata.positive(Key { gguf: &[gguf_theta], hf: &[hf_theta] })?;
    let theta = match own {
        Some(theta) => theta,
        None => parameters.positive(&[], "rope_theta")?.unwrap_or(theta),
    };
    let dims = dims(&parameters, head_dim, partial)?;
    let half = dims.checked_div(2).unwrap_or(0);
    let mut rope = Rope::plain(theta as f32, dims);
    if !scaled {
        return Ok(rope);
    }
    let kind = parameters.kind()?;
    let gguf = metadata.container() == Container::Gguf;
    if gguf && metadata.has_tensor("rope_factors_short.weight", "") {
        // Files of phi 3 have the factors without a type.
        return longrope(&parameters, rope, context);
    }
    if let Some(alpha) = parameters.positive(&[], "alpha")?.filter(|_| kind == "dynamic") {
        // Hunyuan: the base is stretched once, whatever the length.
        let stretched = theta * alpha.powf(dims as f64 / (dims as f64 - 2.0));
        return Ok(Rope::plain(stretched as f32, dims));
    }
    match kind.as_str() {
        // GGUF files of old have a factor without a type.
        "default" | "none" | "linear" | "dynamic" => {
            let factor = match (gguf, kind.as_str()) {
                (true, "default" | "linear") => {
                    parameters.positive(&["rope.scaling.factor", "rope.scale_linear"], "")?
                }
                (false, "linear") => Some(parameters.need(&[], "factor")?),
                // Dynamic scaling leaves all positions as they are up to the context, past which no request goes.
                _ => None,
            };
            if let Some(factor) = factor.filter(|factor| *factor != 1.0) {
                rope.factors = vec![factor as f32; half];
            }
        }
        "llama3" => rope.factors = llama3(&parameters, theta, dims)?,
        "yarn" => {
            (rope.factors, rope.magnitude) = yarn(&parameters, theta, dims, context, truncate)?
        }
        "longrope" | "su" => return longrope(&parameters, rope, context),
        other => {
            let other = crate::units::shown(other);
            let text = format!(
                "'{other}' is not supported; default, linear, dynamic, llama3, yarn and longrope are"
            );
            return Err(parameters.with(&["rope.scaling.type"], "rope_type", |key| {
                metadata.refuse(key, &format!("is {text}"))
            }));
        }
    }
    // Llama 3's scaling arrives as a vector in GGUF files.
    if let Some(divisors) = metadata.vector("rope_freqs.weight")? {
        let linear = rope.factors.first().copied().unwrap_or(1.0);
        rope.factors = divisors.iter().map(|f| f * linear).collect();
    }
    Ok(rope)
}

/// Dimensions that rotate.
fn dims(parameters: &Parameters, head_dim: usize, partial: f64) -> Result<usize, ModelError> {
    let metadata = parameters.metadata;
    if metadata.container() == Container::Gguf {
        return Ok(metadata
            .integer(key(&"rope.dimension_count", &""), 1..=1 << 16)?
            .unwrap_or(head_dim));
    }
    let share =
        |key: Key| metadata.float(key, "a number above 0, at most 1", |x| x > 0.0 && x <= 1.0);
    let own = share(Key { gguf: &[], hf: &["partial_rotary_factor", "rotary_pct", "rope_pct"] })?;
    let own = match own {
        Some(own) => Some(own),
        None => parameters.with(&[], "partial_rotary_factor", share)?,
    };
    Ok((head_dim as f64 * own.unwrap_or(partial)) as usize)
}

/// `_compute_llama3_parameters`: the divisors.
fn llama3(parameters: &Parameters, theta: f64, dims: usize) -> Result<Vec<f32>, ModelError> {
    let factor = parameters.need(&["rope.scaling.factor"], "factor")?;
    let low = parameters.need(&["rope.scaling.low_freq_factor"], "low_freq_factor")?;
    let high = parameters.need(&["rope.scaling.high_freq_factor"], "high_freq_factor")?;
    let original = parameters.need_positions(
        &["rope.scaling.original_context_length"],
        "original_max_position_embeddings",
    )?;
    if high <= low {
        return Err(parameters.with(
            &["rope.scaling.high_freq_factor"],
            "high_freq_factor",
            |key| parameters.metadata.refuse(key, "must be above low_freq_factor"),
        ));
    }
    let divisor = |i: usize| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / dims as f64);
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    Ok((0..dims.checked_div(2).unwrap_or(0)).map(|i| divisor(i) as f32).collect())
}

/// The magnitude that yarn gives to a factor.
fn yarn_magnitude(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

/// `_compute_yarn_parameters`: the divisors and the magnitude. GGUF's `attn_factor` multiplies what it gives, and
/// `yarn_log_multiplier` stands for `mscale_all_dim` beside an `mscale` of 1 (llama.cpp's `llama-context.cpp`).
fn yarn(
    parameters: &Parameters,
    theta: f64,
    dims: usize,
    context: usize,
    truncate: bool,
) -> Result<(Vec<f32>, f32), ModelError> {
    let factor = parameters.need(&["rope.scaling.factor"], "factor")?;
    let original = parameters
        .positions(&["rope.scaling.original_context_length"], "original_max_position_embeddings")?
        .unwrap_or(context as f64);
    let fast = parameters.positive(&["rope.scaling.yarn_beta_fast"], "beta_fast")?.unwrap_or(32.0);
    let slow = parameters.positive(&["rope.scaling.yarn_beta_slow"], "beta_slow")?.unwrap_or(1.0);
    let truncate =
        parameters.with(&[], "truncate", |key| parameters.metadata.bool(key))?.unwrap_or(truncate);
    let magnitude = if parameters.metadata.container() == Container::Gguf {
        let own = parameters.positive(&["rope.scaling.attn_factor"], "")?.unwrap_or(1.0);
        let all = parameters.with(&["rope.scaling.yarn_log_multiplier"], "", |key| {
            parameters.metadata.float(key, "a number from 0", |x| x >= 0.0)
        })?;
        match all.filter(|all| *all != 0.0) {
            Some(all) => own * yarn_magnitude(factor, 1.0) / yarn_magnitude(factor, all),
            None => own * yarn_magnitude(factor, 1.0),
        }
    } else {
        let own = parameters.positive(&[], "attention_factor")?;
        let number = |name: &str| {
            parameters.with(&[], name, |key| {
                parameters.metadata.float(key, "a number from 0", |x| x >= 0.0)
            })
        };
        match (
            own,
            number("mscale")?.filter(|x| *x != 0.0),
            number("mscale_all_dim")?.filter(|x| *x != 0.0),
        ) {
            (Some(own), _, _) => own,
            (None, Some(mscale), Some(all)) => {
                yarn_magnitude(factor, mscale) / yarn_magnitude(factor, all)
            }
            _ => yarn_magnitude(factor, 1.0),
        }
    };
    let at = |rotations: f64| {
        dims as f64 * (original / (rotations * 2.0 * std::f64::consts::PI)).ln()
            / (2.0 * theta.ln())
    };
    let (low, high) = (at(fast), at(slow));
    let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(dims as f64 - 1.0));
    let high = if low == high { high + 0.001 } else { high };
    let divisor = |i: usize| {
        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / (ramp / factor + (1.0 - ramp))
    };
    Ok((
        (0..dims.checked_div(2).unwrap_or(0)).map(|i| divisor(i) as f32).collect(),
        magnitude as f32,
    ))
}

/// `_compute_longrope_parameters`: a set of divisors for short requests and one for long ones.
fn longrope(parameters: &Parameters, rope: Rope, context: usize) -> Result<Rope, ModelError> {
    let metadata = parameters.metadata;
    let top = Key {
        gguf: &["rope.scaling.original_context_length"],
        hf: &["original_max_position_embeddings"],
    };
    let original = match metadata.integer(top, 1..=1 << 27)? {
        Some(n) => Some(n),
        None => parameters.with(&[], "original_max_position_embeddings", |key| {
            metadata.integer(key, 1..=1 << 27)
        })?,
    };
    let original = original.ok_or_else(|| metadata.missing(top))?;
    let half = rope.dims.checked_div(2).unwrap_or(0);
    let set = |gguf: &str, hf: &str| -> Result<Vec<f32>, ModelError> {
        let found = match metadata.container() {
            Container::Gguf => metadata.vector(gguf)?,
            Container::Checkpoint => {
                let floats = parameters.with(&[], hf, |key| metadata.floats(key))?;
                floats.map(|all| all.iter().map(|x| *x as f32).collect())
            }
        };
        match found {
            Some(set) if set.len() == half => Ok(set),
            Some(set) => Err(metadata.error(&format!(
                "{hf} has {} elements; {half} dimensions rotate in pairs",
                set.len()
            ))),
            None => Err(metadata.error(&format!(
                "{} is missing",
                if metadata.container() == Container::Gguf { gguf } else { hf }
            ))),
        }
    };
    let (short, long) = (
        set("rope_factors_short.weight", "short_factor")?,
        set("rope_factors_long.weight", "long_factor")?,
    );
    let own = parameters.positive(&["rope.scaling.attn_factor"], "attention_factor")?;
    let factor = context as f64 / original as f64;
    let magnitude = match own {
        Some(own) => own,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
    } as f32;
    let long =
        (context > original).then_some(LongRope { above: original, factors: long, magnitude });
    Ok(Rope { factors: short, magnitude, long, ..rope })
}

/// Scale of queries that grows with their position (`llama_4_scaling_beta` of ministral 3).
pub(super) fn growth(metadata: &dyn Metadata) -> Result<Option<QueryGrowth>, ModelError> {
    let parameters = Parameters { metadata, layer_type: "full_attention" };
    let number = |key: Key| metadata.float(key, "a number from 0", |x| x >= 0.0);
    let beta = parameters.with(&["attention.temperature_scale"], "llama_4_scaling_beta", number)?;
    let Some(beta) = beta.filter(|beta| *beta != 0.0) else { return Ok(None) };
    let keys: &[&str] = &["attention.temperature_length", "rope.scaling.original_context_length"];
    let original = parameters.need_positions(keys, "original_max_position_embeddings")?;
    Ok(Some(QueryGrowth { beta: beta as f32, original: original as usize }))
}
