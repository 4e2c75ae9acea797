#!/usr/bin/env python3
"""Makes tests/data/families/*.json: what transformers computes for a tiny random model of each family.

usage: scripts/make_family_fixtures.py [--only NAME,NAME] [OUT]      (needs torch, transformers, safetensors, numpy)

Weights are not stored. A tensor's values are offset + scale * u, where u in [-1, 1) comes from splitmix64 whose seed is the FNV-1a hash
of the tensor's name; tests/families.rs makes the same values. A fixture holds config.json as transformers writes it, the tensors (name,
shape, offset, scale), and for some prompts the greedy ids, the smallest distance between the best and the second score on the way, and
the first scores behind the prompt. Computed in f32 on one thread with eager attention and without a cache.
"""
import sys

if "--help" in sys.argv or "-h" in sys.argv:
    sys.exit(print(__doc__))

import argparse
import json
import math
import pathlib
import tempfile

VOCAB = 301
MASK = (1 << 64) - 1


def values(name, count):
    """splitmix64 (Steele, Lea, Flood 2014), seeded by FNV-1a of the name; 24 bits of each number."""
    import numpy

    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & MASK
    with numpy.errstate(over="ignore"):
        z = numpy.uint64(seed) + numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        z = z ^ (z >> numpy.uint64(31))
    return (z >> numpy.uint64(40)).astype(numpy.float32) / numpy.float32(1 << 23) - numpy.float32(1)


# Families whose norms multiply by 1 + weight.
LESS_ONE = {"gemma", "gemma2", "gemma3_text", "nemotron", "qwen3_5_text", "qwen3_5_moe_text"}


def shape_of(name, shape, model_type, tied):
    """(offset, scale): powers of two, so that both sides round alike."""
    last = name.rsplit(".", 1)[-1]
    if last == "bias":
        return 0.0, 0.25
    if "norm" in name or "ln_" in name or "layernorm" in name:
        # The delta net's own norm multiplies by its weight.
        plus = model_type in LESS_ONE and "linear_attn" not in name
        return (0.0 if plus else 1.0), 0.25
    if len(shape) == 1:
        return 0.0, 0.5
    if "embed" in name or "wte" in name or "wpe" in name:
        # Where the output matrix is the embedding, large values would only repeat the last token.
        return 0.0, 0.125 if tied else 1.0
    # A gain of about 1.5 keeps branches as large as the stream they join.
    return 0.0, 2.0 ** math.floor(math.log2(3.0 / math.sqrt(shape[-1])))


def rope(kind, theta=10000.0, **more):
    return {"rope_type": kind, "rope_theta": theta, **more}


def families():
    small = dict(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )
    wide = dict(small, head_dim=16)

    def f(name, model_type, base=wide, **changes):
        return name, model_type, dict(base, **changes)

    pattern6 = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(8)]
    pattern2 = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    pattern4 = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    return [
        f("llama", "llama", tie_word_embeddings=False),
        f("llama-biases", "llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        f("llama-gelu", "llama", hidden_act="gelu"),
        f("llama-linear", "llama", rope_parameters=rope("linear", factor=4.0)),
        f("llama-dynamic", "llama", rope_parameters=rope("dynamic", factor=2.0)),
        f("llama-yarn", "llama", max_position_embeddings=128,
          rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=32)),
        f("llama-llama3", "llama", rope_parameters=rope(
            "llama3", 500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)),
        f("mistral", "mistral", sliding_window=None),
        f("mistral-window", "mistral", sliding_window=11),
        f("ministral", "ministral", num_hidden_layers=4, sliding_window=11, layer_types=pattern2),
        f("ministral3", "ministral3", max_position_embeddings=512, rope_parameters=rope(
            "yarn", 1000000.0, factor=16.0, original_max_position_embeddings=16, beta_fast=32.0, beta_slow=1.0, mscale=1.0,
            mscale_all_dim=1.0, llama_4_scaling_beta=0.1)),
        f("qwen2", "qwen2", base=small),
        f("qwen2-tied", "qwen2", base=small, tie_word_embeddings=True),
        f("qwen3", "qwen3", tie_word_embeddings=True),
        f("gemma", "gemma"),
        f("gemma2", "gemma2", num_hidden_layers=4, sliding_window=11, query_pre_attn_scalar=24, layer_types=pattern2,
          attn_logit_softcapping=5.0, final_logit_softcapping=7.0),
        f("gemma3", "gemma3_text", num_hidden_layers=8, sliding_window=11, query_pre_attn_scalar=16, layer_types=pattern6,
          rope_parameters={"full_attention": rope("default", 1000000.0), "sliding_attention": rope("default", 10000.0)}),
        f("gemma3-linear", "gemma3_text", num_hidden_layers=8, sliding_window=11, query_pre_attn_scalar=24, layer_types=pattern6,
          rope_parameters={"full_attention": rope("linear", 1000000.0, factor=8.0), "sliding_attention": rope("default", 10000.0)}),
        f("phi3", "phi3", base=small),
        f("phi3-partial", "phi3", base=dict(small, hidden_size=64), partial_rotary_factor=0.75,
          rope_parameters=rope("default", partial_rotary_factor=0.75)),
        f("phi3-longrope", "phi3", base=small, original_max_position_embeddings=64, rope_parameters=rope(
            "longrope", short_factor=[1.0, 1.1, 1.3, 1.5, 2.0, 2.5], long_factor=[1.0, 1.5, 3.0, 6.0, 9.0, 12.0],
            original_max_position_embeddings=64, factor=4.0)),
        f("phi3-window", "phi3", base=small, sliding_window=11),
        f("smollm3", "smollm3", base=small, num_hidden_layers=5, no_rope_layers=[1, 1, 1, 0, 1]),
        f("granite", "granite", base=small, embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.125,
          logits_scaling=2.0),
        f("olmo", "olmo", base=small),
        f("olmo-clip", "olmo", base=small, clip_qkv=8.0),
        f("olmo2", "olmo2", base=small),
        f("olmo3", "olmo3", base=small, num_hidden_layers=5, sliding_window=11, layer_types=pattern4),
        f("glm4", "glm4", attention_bias=True, partial_rotary_factor=0.5,
          rope_parameters=rope("default", partial_rotary_factor=0.5)),
        f("ernie4_5", "ernie4_5"),
        f("exaone4", "exaone4", base=small, num_hidden_layers=5, sliding_window=11, layer_types=pattern4),
        f("hunyuan_v1_dense", "hunyuan_v1_dense"),
        f("seed_oss", "seed_oss", attention_bias=True),
        f("arcee", "arcee"),
        f("helium", "helium", head_dim=12),
        f("starcoder2", "starcoder2", base=small, sliding_window=None),
        f("stablelm", "stablelm", base=small, partial_rotary_factor=0.5,
          rope_parameters=rope("default", partial_rotary_factor=0.5)),
        f("cohere", "cohere", base=small, logit_scale=0.5),
        f("cohere2", "cohere2", base=small, num_hidden_layers=5, sliding_window=11, layer_types=pattern4, logit_scale=0.5),
        f("nemotron", "nemotron", partial_rotary_factor=0.5, rope_parameters=rope("default", partial_rotary_factor=0.5)),
        f("qwen2_moe", "qwen2_moe", base=small, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=24,
          shared_expert_intermediate_size=40),
        f("qwen3_moe", "qwen3_moe", num_experts=7, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True,
          tie_word_embeddings=False),
        f("qwen3_moe-dense", "qwen3_moe", base=dict(wide, num_hidden_layers=4), num_experts=4, num_experts_per_tok=2,
          moe_intermediate_size=24, decoder_sparse_step=2, mlp_only_layers=[3], tie_word_embeddings=True),
        f("mixtral", "mixtral", base=small, num_local_experts=5, num_experts_per_tok=2),
        f("olmoe", "olmoe", base=small, num_experts=6, num_experts_per_tok=3),
        f("granitemoe", "granitemoe", base=dict(small, intermediate_size=40), num_local_experts=6, num_experts_per_tok=2,
          embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.125, logits_scaling=2.0),
        f("gpt_oss", "gpt_oss", base=dict(small, head_dim=16, intermediate_size=40, num_hidden_layers=4),
          num_local_experts=6, num_experts_per_tok=3, sliding_window=11,
          layer_types=["sliding_attention", "full_attention"] * 2,
          rope_parameters=rope("yarn", 150000.0, factor=8.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
                               original_max_position_embeddings=32)),
        f("lfm2", "lfm2", base=dict(small, num_hidden_layers=5), block_auto_adjust_ff_dim=True, block_multiple_of=16,
          block_ffn_dim_multiplier=1.0, layer_types=["conv", "full_attention", "conv", "conv", "full_attention"]),
        f("lfm2-biases", "lfm2", base=dict(small, num_hidden_layers=3), block_auto_adjust_ff_dim=False, conv_bias=True,
          conv_L_cache=4, layer_types=["conv", "conv", "full_attention"]),
        f("lfm2_moe", "lfm2_moe", base=dict(small, num_hidden_layers=4), num_dense_layers=1, num_experts=6,
          num_experts_per_tok=2, moe_intermediate_size=24, routed_scaling_factor=1.5,
          layer_types=["conv", "full_attention", "conv", "full_attention"]),
        f("qwen3_5", "qwen3_5_text", base=dict(small, head_dim=16, num_hidden_layers=5), linear_num_key_heads=2,
          linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=12, tie_word_embeddings=True,
          rope_parameters=rope("default", partial_rotary_factor=0.25, mrope_section=[1, 1, 0])),
        f("qwen3_5_moe", "qwen3_5_moe_text", base=dict(small, head_dim=16, num_hidden_layers=4), linear_num_key_heads=2,
          linear_num_value_heads=6, linear_key_head_dim=16, linear_value_head_dim=16, num_experts=6, num_experts_per_tok=2,
          moe_intermediate_size=24, shared_expert_intermediate_size=40,
          rope_parameters=rope("default", partial_rotary_factor=0.5, mrope_section=[2, 1, 1])),
        f("phi", "phi", base=small, partial_rotary_factor=0.5, rope_parameters=rope("default", partial_rotary_factor=0.5)),
        f("gpt_neox", "gpt_neox", base=small),
    ]


# Prompts: one token, few, more than any window.
PROMPTS = [[5], [17, 200, 3, 45, 45, 90, 31], [(i * i * 31 + i * 7 + 5) % VOCAB for i in range(45)]]
# Greedy ids behind each.
TOKENS = 12


def make(name, model_type, changes):
    import numpy
    import safetensors.numpy
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **changes)
    config.dtype = "float32"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        stored = safetensors.numpy.load_file(folder / "model.safetensors")
        tensors, filled = [], {}
        for tensor in sorted(stored):
            shape = list(stored[tensor].shape)
            offset, scale = shape_of(tensor, shape, model_type, config.tie_word_embeddings)
            tensors.append([tensor, shape, offset, scale])
            flat = values(tensor, stored[tensor].size) * numpy.float32(scale) + numpy.float32(offset)
            filled[tensor] = flat.reshape(shape).astype(numpy.float32)
        safetensors.numpy.save_file(filled, folder / "model.safetensors", metadata={"format": "pt"})
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        written = json.loads((folder / "config.json").read_text())
    cases = []
    for prompt in PROMPTS:
        ids, margin, first = list(prompt), math.inf, None
        with torch.no_grad():
            for _ in range(TOKENS):
                scores = model(torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()
                order = scores.argsort()
                margin = min(margin, float(scores[order[-1]] - scores[order[-2]]))
                if first is None:
                    first = [float(x) for x in scores[:16]]
                    largest = float(numpy.abs(scores).max())
                ids.append(int(order[-1]))
        cases.append({
            "prompt": prompt, "greedy": ids[len(prompt):], "margin": float(f"{margin:.4g}"),
            "scores": [float(f"{x:.7g}") for x in first], "largest": float(f"{largest:.7g}"),
        })
    return {"family": name, "config": written, "tensors": tensors, "cases": cases}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of families, separated by commas")
    parser.add_argument("out", nargs="?", default="tests/data/families", type=pathlib.Path)
    args = parser.parse_args()
    import torch
    import transformers

    torch.set_num_threads(1)
    wanted = args.only.split(",") if args.only else None
    args.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, model_type, changes in families():
        if wanted and name not in wanted:
            continue
        try:
            fixture = make(name, model_type, changes)
        except Exception as error:  # noqa: BLE001: one family's failure must not hide the others
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", file=sys.stderr)
            failed += 1
            continue
        fixture = {"made_with": f"transformers {transformers.__version__}", **fixture}
        rows = ",\n".join("    " + json.dumps(t) for t in fixture.pop("tensors"))
        cases = ",\n".join("    " + json.dumps(c) for c in fixture.pop("cases"))
        head = json.dumps(fixture, indent=1)[:-2]
        (args.out / f"{name}.json").write_text(f'{head},\n "tensors": [\n{rows}\n ],\n "cases": [\n{cases}\n ]\n}}\n')
        margins = [c["margin"] for c in json.loads((args.out / f"{name}.json").read_text())["cases"]]
        print(f"{name}: margins {margins}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
