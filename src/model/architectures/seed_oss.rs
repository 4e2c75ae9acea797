//! Seed-OSS: llama with biases of queries, keys and values; its GGUF files have another name for the feed-forward norm.

use super::dense::{self, Dense};
use super::{Architecture, Pairs, Renamed};
use crate::model::Role;

pub(super) static SEED_OSS: Architecture = Architecture {
    name: "seed_oss",
    model_types: &["seed_oss"],
    classes: &["SeedOssForCausalLM"],
    gguf_pairs: Pairs::HalfSplit,
    hf_pairs: Pairs::HalfSplit,
    norms_less_one: false,
    experts_turned: false,
    renamed: &[Renamed::gguf(Role::FfnNorm, "blk.{}.post_attention_norm.weight")],
    build: |m| dense::build(m, Dense::default()),
};
