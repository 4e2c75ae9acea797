#!/usr/bin/env python3
"""A GGUF of random weights in the layer shape of a mixture of experts (qwen3moe), with a real vocabulary: for speed and memory alone.

    scripts/make_shaped_mixture.py make VOCAB.gguf OUT.gguf [--layers 4 --hidden 2048 --expert 768 --heads 32 --kv-heads 4 --head-dim 128 --experts 128 --used 8]
    llama-quantize OUT.gguf Q.gguf Q4_K_M
    scripts/make_shaped_mixture.py repeat Q.gguf BIG.gguf --times 4

The defaults are Qwen3-30B-A3B's. `make` writes f16; `repeat` repeats the layers of a file as they are stored, so that no f16 file of the whole is needed.
VOCAB: such as models/ggml-vocab-qwen2.gguf of llama.cpp. Needs numpy and gguf (PyPI).
"""
import argparse


def copy_field(w, name, f):
    value = lambda i: f.parts[i].tolist()[0]
    if f.types[0] == gguf.GGUFValueType.ARRAY:
        strings = f.types[1] == gguf.GGUFValueType.STRING
        w.add_array(name, [bytes(f.parts[i]).decode() if strings else value(i) for i in f.data])
    elif f.types[0] == gguf.GGUFValueType.STRING:
        w.add_string(name, bytes(f.parts[-1]).decode())
    else:
        w.add_key_value(name, value(-1), f.types[0])


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file(progress=False)
    w.close()


def make(a):
    r = gguf.GGUFReader(a.source)
    w = gguf.GGUFWriter(a.out, "qwen3moe")
    for name, f in r.fields.items():
        if name.startswith("tokenizer."):
            copy_field(w, name, f)
    vocab = len(r.fields["tokenizer.ggml.tokens"].data)
    w.add_block_count(a.layers), w.add_context_length(8192), w.add_embedding_length(a.hidden), w.add_feed_forward_length(3 * a.hidden)
    w.add_head_count(a.heads), w.add_head_count_kv(a.kv_heads), w.add_key_length(a.head_dim), w.add_value_length(a.head_dim)
    w.add_rope_freq_base(1e6), w.add_layer_norm_rms_eps(1e-6), w.add_vocab_size(vocab), w.add_file_type(1)
    w.add_expert_count(a.experts), w.add_expert_used_count(a.used), w.add_expert_feed_forward_length(a.expert)
    random = np.random.default_rng(1)
    pool = random.standard_normal(1 << 24, dtype=np.float32).astype(np.float16)

    def matrix(*shape):
        count, off = int(np.prod(shape)), int(random.integers(0, 1 << 20))
        flat = np.resize(pool[off:], count) if count + off > pool.size else pool[off : off + count]
        return (flat * np.float16(shape[-1] ** -0.5)).reshape(shape)

    w.add_tensor("token_embd.weight", matrix(vocab, a.hidden))
    w.add_tensor("output_norm.weight", np.ones(a.hidden, np.float32))
    w.add_tensor("output.weight", matrix(vocab, a.hidden))
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    for i in range(a.layers):
        put = lambda name, x: w.add_tensor(f"blk.{i}.{name}.weight", x)
        for name, width in ("attn_norm", a.hidden), ("ffn_norm", a.hidden), ("attn_q_norm", a.head_dim), ("attn_k_norm", a.head_dim):
            put(name, np.ones(width, np.float32))
        for name, rows, columns in ("attn_q", q, a.hidden), ("attn_k", kv, a.hidden), ("attn_v", kv, a.hidden), ("attn_output", a.hidden, q):
            put(name, matrix(rows, columns))
        put("ffn_gate_inp", matrix(a.experts, a.hidden).astype(np.float32))
        for name, rows, columns in ("ffn_gate_exps", a.expert, a.hidden), ("ffn_up_exps", a.expert, a.hidden), ("ffn_down_exps", a.hidden, a.expert):
            put(name, matrix(a.experts, rows, columns))
    finish(w)


def repeat(a):
    r = gguf.GGUFReader(a.source)
    w = gguf.GGUFWriter(a.out, bytes(r.fields["general.architecture"].parts[-1]).decode())
    for name, f in r.fields.items():
        if name.endswith(".block_count"):
            layers = f.parts[-1].tolist()[0]
            w.add_block_count(layers * a.times)
        elif not name.startswith("GGUF.") and name != "general.architecture":
            copy_field(w, name, f)
    for times in range(a.times):
        for t in r.tensors:
            name = t.name
            if name.startswith("blk."):
                layer, rest = name[4:].split(".", 1)
                name = f"blk.{int(layer) + times * layers}.{rest}"
            elif times > 0:
                continue
            w.add_tensor(name, t.data, raw_dtype=t.tensor_type)
    finish(w)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "repeat"])
    parser.add_argument("source")
    parser.add_argument("out")
    sizes = dict(layers=4, hidden=2048, expert=768, heads=32, kv_heads=4, head_dim=128, experts=128, used=8, times=4)
    for name, default in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    a = parser.parse_args()
    global gguf, np
    import gguf
    import numpy as np

    {"make": make, "repeat": repeat}[a.what](a)


if __name__ == "__main__":
    main()
