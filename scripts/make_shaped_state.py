#!/usr/bin/env python3
"""A GGUF of random weights in the shape of a model whose layers keep a state (qwen35: gated delta nets), with a real vocabulary: for speed alone.

    scripts/make_shaped_state.py VOCAB.gguf OUT.gguf [--layers 24 --hidden 1024 --ffn 3584 --heads 8 --kv-heads 2 --head-dim 256 --key-heads 16 --value-heads 16 --state 128]
    llama-quantize OUT.gguf Q.gguf Q4_K_M

The defaults are Qwen3.5-0.8B's: three layers with a state, then one with attention. Written in f16.
VOCAB: such as models/ggml-vocab-qwen35.gguf of llama.cpp. Needs numpy and gguf (PyPI).
"""
import argparse


def make(a):
    r = gguf.GGUFReader(a.source)
    w = gguf.GGUFWriter(a.out, "qwen35")
    for name, f in r.fields.items():
        if name.startswith("tokenizer."):
            shaped.copy_field(w, name, f)
    vocab = len(r.fields["tokenizer.ggml.tokens"].data)
    w.add_block_count(a.layers), w.add_context_length(32768), w.add_embedding_length(a.hidden), w.add_feed_forward_length(a.ffn)
    w.add_head_count(a.heads), w.add_head_count_kv(a.kv_heads), w.add_key_length(a.head_dim), w.add_value_length(a.head_dim)
    w.add_rope_dimension_count(a.head_dim // 4), w.add_rope_dimension_sections([11, 11, 10, 0])
    w.add_rope_freq_base(1e7), w.add_layer_norm_rms_eps(1e-6), w.add_vocab_size(vocab), w.add_file_type(1)
    keys, values = a.key_heads * a.state, a.value_heads * a.state
    w.add_ssm_conv_kernel(4), w.add_ssm_state_size(a.state), w.add_ssm_group_count(a.key_heads)
    w.add_ssm_time_step_rank(a.value_heads), w.add_ssm_inner_size(values), w.add_uint32("qwen35.full_attention_interval", 4)
    random = np.random.default_rng(1)
    pool = random.standard_normal(1 << 24, dtype=np.float32).astype(np.float16)

    def matrix(rows, columns):
        count, off = rows * columns, int(random.integers(0, 1 << 20))
        flat = np.resize(pool[off:], count) if count + off > pool.size else pool[off : off + count]
        return (flat * np.float16(columns**-0.5)).reshape(rows, columns)

    w.add_tensor("token_embd.weight", matrix(vocab, a.hidden))
    w.add_tensor("output_norm.weight", np.ones(a.hidden, np.float32))
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    for i in range(a.layers):
        put = lambda name, x: w.add_tensor(f"blk.{i}.{name}", x)
        one = lambda name, width: put(name + ".weight", np.ones(width, np.float32))
        many = lambda name, rows, columns: put(name + ".weight", matrix(rows, columns))
        one("attn_norm", a.hidden), one("post_attention_norm", a.hidden)
        if i % 4 == 3:
            # Queries and their gates in turn.
            many("attn_q", 2 * q, a.hidden), many("attn_k", kv, a.hidden), many("attn_v", kv, a.hidden), many("attn_output", a.hidden, q)
            one("attn_q_norm", a.head_dim), one("attn_k_norm", a.head_dim)
        else:
            many("attn_qkv", 2 * keys + values, a.hidden), many("attn_gate", values, a.hidden), many("ssm_out", a.hidden, values)
            put("ssm_conv1d.weight", matrix(2 * keys + values, 4).astype(np.float32))
            put("ssm_beta.weight", matrix(a.value_heads, a.hidden).astype(np.float32))
            put("ssm_alpha.weight", matrix(a.value_heads, a.hidden).astype(np.float32))
            put("ssm_dt.bias", np.ones(a.value_heads, np.float32))
            put("ssm_a", -np.ones(a.value_heads, np.float32))
            one("ssm_norm", a.state)
        many("ffn_gate", a.ffn, a.hidden), many("ffn_up", a.ffn, a.hidden), many("ffn_down", a.hidden, a.ffn)
    shaped.finish(w)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("out")
    sizes = dict(layers=24, hidden=1024, ffn=3584, heads=8, kv_heads=2, head_dim=256, key_heads=16, value_heads=16, state=128)
    for name, default in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    a = parser.parse_args()
    global gguf, np, shaped
    import gguf
    import numpy as np

    import make_shaped_mixture as shaped

    shaped.gguf = gguf
    make(a)


if __name__ == "__main__":
    main()
