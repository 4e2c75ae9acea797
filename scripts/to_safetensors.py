#!/usr/bin/env python3
"""Converts a llama GGUF file into a bf16 safetensors folder, and into a GGUF file with the same bf16 weights.

    scripts/to_safetensors.py MODEL.gguf FOLDER [ROUNDED.gguf]

Every matrix is dequantized to f32 and rounded to bf16 (to nearest, ties to even); vectors (norms) are rounded likewise in the folder, and are
widened again to f32 in the GGUF file, as GGUF files have them. So both hold the same numbers, and a run of one must answer as a run of
the other. Query and key rows are put into the half-split order of checkpoints. Reads F32, F16, BF16, Q8_0, Q4_0, Q4_1. Needs Python alone; numpy,
if there is one, makes it fast.
"""

import json
import os
import struct
import sys
from array import array

try:
    import numpy
except ImportError:
    numpy = None

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 8: (32, 34), 30: (1, 2)}


class Reader:
    def __init__(self, path):
        with open(path, "rb") as file:
            self.data = file.read()
        self.at = 0

    def take(self, code):
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def text(self):
        size = self.take("Q")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            element, count = self.take("I"), self.take("Q")
            return [self.value(element) for _ in range(count)]
        return self.take(SCALARS[kind])


def read_gguf(path):
    r = Reader(path)
    if r.data[:4] != b"GGUF":
        sys.exit(f"{path}: not a GGUF file")
    r.at = 8
    tensor_count, key_count = r.take("Q"), r.take("Q")
    begin = r.at
    metadata, raw = {}, {}
    for _ in range(key_count):
        start = r.at
        key = r.text()
        metadata[key] = r.value(r.take("I"))
        raw[key] = r.data[start : r.at]
    tensors = []
    for _ in range(tensor_count):
        name = r.text()
        dims = [r.take("Q") for _ in range(r.take("I"))]
        kind, offset = r.take("I"), r.take("Q")
        tensors.append((name, dims, kind, offset))
    alignment = metadata.get("general.alignment", 32)
    base = -(-r.at // alignment) * alignment
    return r.data, metadata, raw, [(n, d, k, base + o) for n, d, k, o in tensors]


def f16(data, count, stride, offset):
    """`count` half-precision numbers, one every `stride` bytes."""
    return [struct.unpack_from("<e", data, offset + i * stride)[0] for i in range(count)]


def dequantize(data, dims, kind, offset):
    """The values as an array of f32."""
    count = 1
    for d in dims:
        count *= d
    block, size = BLOCKS.get(kind) or sys.exit(f"GGUF type {kind} is not supported by this script")
    raw = data[offset : offset + count // block * size]
    if numpy is not None:
        return dequantize_numpy(raw, kind)
    out = array("f")
    if kind == 0:
        out.frombytes(raw)
    elif kind == 1:
        out.extend(f16(raw, count, 2, 0))
    elif kind == 30:
        words = array("H")
        words.frombytes(raw)
        wide = array("I", (w << 16 for w in words))
        out.frombytes(wide.tobytes())
    else:
        # Products and sums are rounded to f32 one by one, as ggml does: array('f') rounds what is put into it.
        for at in range(0, len(raw), size):
            (d,) = struct.unpack_from("<e", raw, at)
            if kind == 8:
                out.extend(d * (q - 256 if q > 127 else q) for q in raw[at + 2 : at + size])
                continue
            levels = levels_of(raw, at, kind)
            quants = raw[at + size - 16 : at + size]
            out.extend(map(levels.__getitem__, quants.translate(LOW)))
            out.extend(map(levels.__getitem__, quants.translate(HIGH)))
    return out


LOW = bytes(q & 15 for q in range(256))
HIGH = bytes(q >> 4 for q in range(256))


def levels_of(raw, at, kind):
    """The 16 values of a block of nibbles: a product and a sum, each rounded to f32."""
    (d,) = struct.unpack_from("<e", raw, at)
    m = struct.unpack_from("<e", raw, at + 2)[0] if kind == 3 else -8.0 * d
    products = array("f", [d * q for q in range(16)])
    return array("f", [p + m for p in products])


def bf16_of(data, dims, kind, offset):
    """The values as bf16. Blocks of nibbles take a short cut where there is no numpy: their 16 levels are rounded, not their 32 values."""
    if numpy is not None or kind not in (2, 3):
        return to_bf16(dequantize(data, dims, kind, offset))
    count = 1
    for d in dims:
        count *= d
    size = BLOCKS[kind][1]
    raw = data[offset : offset + count // 32 * size]
    out = array("H")
    for at in range(0, len(raw), size):
        bits = array("I")
        bits.frombytes(levels_of(raw, at, kind).tobytes())
        levels = [(b + 0x7FFF + ((b >> 16) & 1)) >> 16 for b in bits]
        quants = raw[at + size - 16 : at + size]
        out.extend(map(levels.__getitem__, quants.translate(LOW)))
        out.extend(map(levels.__getitem__, quants.translate(HIGH)))
    return out.tobytes()


def dequantize_numpy(raw, kind):
    np = numpy
    if kind == 0:
        return np.frombuffer(raw, "<f4").copy()
    if kind == 1:
        return np.frombuffer(raw, "<f2").astype(np.float32)
    if kind == 30:
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    size = BLOCKS[kind][1]
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, size)
    d = blocks[:, :2].copy().view("<f2").astype(np.float32)
    if kind == 8:
        return (blocks[:, 2:].view(np.int8).astype(np.float32) * d).reshape(-1)
    m = blocks[:, 2:4].copy().view("<f2").astype(np.float32) if kind == 3 else np.float32(-8) * d
    nibbles = blocks[:, size - 16 :]
    q = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.float32)
    return (q * d + m).reshape(-1)


def to_bf16(values):
    """The upper halves of the f32 values, rounded to nearest, ties to even."""
    if numpy is not None:
        bits = numpy.asarray(values, numpy.float32).view(numpy.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    bits = array("I")
    bits.frombytes(values.tobytes())
    return array("H", ((b + 0x7FFF + ((b >> 16) & 1)) >> 16 for b in bits)).tobytes()


def bf16_to_f32(data):
    words = array("H")
    words.frombytes(data)
    return array("I", (w << 16 for w in words)).tobytes()


def checkpoint_name(name):
    names = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{names[parts[2]]}.{parts[3]}"
    return f"{names[parts[0]]}.{parts[1]}"


def half_split(data, row_bytes, head_dim):
    """Rows from the order (2i, 2i + 1) of GGUF files to the order (i, i + head_dim / 2) of checkpoints."""
    rows = [data[at : at + row_bytes] for at in range(0, len(data), row_bytes)]
    out = []
    for head in range(0, len(rows), head_dim):
        out += rows[head : head + head_dim : 2] + rows[head + 1 : head + head_dim : 2]
    return b"".join(out)


def tokenizer(meta):
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    if meta.get("tokenizer.ggml.pre") != "smollm":
        sys.exit("this script writes a tokenizer.json for the pre-tokenizer 'smollm' only")
    special = [
        {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, (t, k) in enumerate(zip(tokens, kinds))
        if k == 3
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]},
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": meta["tokenizer.ggml.merges"],
        },
    }


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(print(__doc__))
    source, folder = sys.argv[1:3]
    data, meta, raw, tensors = read_gguf(source)
    if meta.get("general.architecture") != "llama":
        sys.exit(f"{source}: only the llama architecture is supported")
    heads = meta["llama.attention.head_count"]
    hidden = meta["llama.embedding_length"]
    head_dim = meta.get("llama.attention.key_length", hidden // heads)
    os.makedirs(folder, exist_ok=True)

    rounded, header, at = [], {"__metadata__": {"format": "pt"}}, 0
    body_path = os.path.join(folder, "body.part")
    with open(body_path, "wb") as body:
        for name, dims, kind, offset in tensors:
            if name == "rope_freqs.weight":
                sys.exit("rope_freqs.weight is not supported by this script")
            bits = bf16_of(data, dims, kind, offset)
            rounded.append((name, dims, bits))
            if "attn_q" in name or "attn_k" in name:
                bits = half_split(bits, dims[0] * 2, head_dim)
            body.write(bits)
            header[checkpoint_name(name)] = {"dtype": "BF16", "shape": dims[::-1], "data_offsets": [at, at + len(bits)]}
            at += len(bits)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as out, open(body_path, "rb") as body:
        out.write(struct.pack("<Q", len(text)) + text)
        while chunk := body.read(1 << 20):
            out.write(chunk)
    os.remove(body_path)

    tokens = meta["tokenizer.ggml.tokens"]
    bos, eos = meta.get("tokenizer.ggml.bos_token_id"), meta["tokenizer.ggml.eos_token_id"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": meta.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": len(tokens),
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": meta["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": meta.get("llama.rope.freq_base", 10000.0),
        "tie_word_embeddings": not any(name == "output.weight" for name, *_ in tensors),
        "torch_dtype": "bfloat16",
        "bos_token_id": bos,
        "eos_token_id": eos,
    }
    settings = {
        "bos_token": None if bos is None else tokens[bos],
        "eos_token": tokens[eos],
        "add_bos_token": meta.get("tokenizer.ggml.add_bos_token", False),
        "chat_template": meta.get("tokenizer.chat_template"),
    }
    files = [("config.json", config), ("tokenizer.json", tokenizer(meta)), ("tokenizer_config.json", settings)]
    files.append(("generation_config.json", {"bos_token_id": bos, "eos_token_id": eos}))
    for name, value in files:
        with open(os.path.join(folder, name), "w", encoding="utf-8") as out:
            json.dump(value, out, ensure_ascii=False)

    if len(sys.argv) == 4:
        # Kinds of values are kept as they were: keys are copied as bytes, but for the ones about the file's own types.
        keys = [k for k in raw if k not in ("general.file_type", "general.quantization_version", "general.alignment")]
        head = b"GGUF" + struct.pack("<IQQ", 3, len(rounded), len(keys)) + b"".join(raw[k] for k in keys)
        at = 0
        blobs = []
        for name, dims, bits in rounded:
            blob, kind = (bf16_to_f32(bits), 0) if len(dims) == 1 else (bits, 30)
            head += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(dims))
            head += b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, at)
            blobs.append(blob)
            at += -(-len(blob) // 32) * 32
        with open(sys.argv[3], "wb") as out:
            out.write(head + b"\0" * (-len(head) % 32))
            for blob in blobs:
                out.write(blob + b"\0" * (-len(blob) % 32))


if __name__ == "__main__":
    main()
