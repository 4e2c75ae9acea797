#!/usr/bin/env python3
"""Blocks of every weight type that llmopt reads, and what ggml's Python reference (gguf-py) says they mean.

usage: make_block_fixtures.py GGUF_PY LIBGGML OUT.json
GGUF_PY: the folder gguf-py of a llama.cpp source tree (0.3.36 of llama-cpp-python carries one). Needs numpy.
LIBGGML: a shared library with ggml's quantizers (libggml-base.so of a build with shared libraries).

Of each type two to sixteen blocks of random bytes whose f16 numbers are finite, as hex; the values as the hex of little-endian f32. The
codes of gguf-py are numpy, written apart from ggml's C and from llmopt: an oracle for tests/blocks.rs. ggml's own C must agree with them.
Types that llmopt only reads also have a `digest`: the SHA-256 of the values of 1,024 blocks whose bytes are those of tests/blocks.rs (`Blocks`), so
that every row of their tables is asked for. gguf-py has no code for Q1_0 and Q2_0: there ggml's C stands alone.
`quantized`: 1,024 values (normal, outliers, a block of zeros, one of equal values), and the blocks that `quantize_row_*_ref` makes of them.
"""
import ctypes
import hashlib
import json
import sys

if len(sys.argv) != 4 or "--help" in sys.argv or "-h" in sys.argv:
    print(__doc__)
    sys.exit(0 if "--help" in sys.argv or "-h" in sys.argv else 2)

import numpy as np

sys.path.insert(0, sys.argv[1])
import gguf  # noqa: E402
from gguf import quants  # noqa: E402

# Offsets of f16 numbers in a block (ggml-common.h).
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2],
    "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}
# The same of the types that are only read. IQ1_M has the bits of one in the high four of four words: `IQ1_M_TOP` is the byte of the highest.
READ_ONLY = {
    "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0], "IQ1_S": [0], "IQ1_M": [], "TQ1_0": [52], "TQ2_0": [64],
    "NVFP4": [], "Q1_0": [0], "Q2_0": [0],
}
IQ1_M_TOP = 55
ggml = ctypes.CDLL(sys.argv[2])
rng = np.random.default_rng(15)
out = {}


def c_name(name):
    """ggml's C spells Q4_K `q4_K`."""
    return name[:-1].lower() + "K" if name.endswith("_K") else name.lower()


def meaning(name, data):
    """The values of these blocks, on which gguf-py and ggml's C agree to the bit."""
    kind = gguf.GGMLQuantizationType[name]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    values = np.zeros(len(data) * block, "<f4")
    getattr(ggml, "dequantize_row_" + c_name(name))(
        data.ctypes.data_as(ctypes.c_void_p), values.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(values.size)
    )
    if name not in ("Q1_0", "Q2_0"):
        other = np.ascontiguousarray(quants.dequantize(data, kind).astype("<f4")).reshape(-1)
        assert (values.view(np.uint32) == other.view(np.uint32)).all(), name
    return values


def random_blocks(name, halves):
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    count = max(2, 128 // block)
    data = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in halves:
        scales = (rng.standard_normal(count) * 0.05).astype(np.float16)
        data[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
    if name == "MXFP4":
        # The powers' ends and middle: 0 and 1 are no normal numbers.
        data[:, 0] = [0, 1, 2, 127][:count] if count <= 4 else rng.integers(90, 140, count)
    if name == "NVFP4":
        # Zero, the smallest, the largest below 1 of the eight-bit floats, and the largest.
        data[0, :4] = [0, 1, 7, 126]
        data[1:, :4] &= 0x3F
    if name == "IQ1_M":
        data[:, IQ1_M_TOP] &= 0xBF
    return data


def counted_blocks(name, halves, count):
    """Bytes of a linear congruential generator; without the highest bit of its exponent an f16 number is finite."""
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    state, data = 1, bytearray()
    for _ in range(count * size):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        data.append(state >> 33 & 255)
    data = np.frombuffer(data, np.uint8).reshape(count, size).copy()
    for at in [IQ1_M_TOP] if name == "IQ1_M" else [half + 1 for half in halves]:
        data[:, at] &= 0xBF
    return data


def put(name, halves):
    data = random_blocks(name, halves)
    out[name] = {"blocks": data.tobytes().hex(), "values": meaning(name, data).tobytes().hex()}


for name, halves in HALVES.items():
    put(name, halves)
x = rng.standard_normal(1024).astype(np.float32)
x[::97] *= 8
x[256:288] = 0
x[288:320] = 0.25
x[512:768] *= 1e-4
quantized = {"values": x.astype("<f4").tobytes().hex()}
for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"):
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = np.zeros(1024 // block * size, np.uint8)
    getattr(ggml, f"quantize_row_{c_name(name)}_ref")(
        x.ctypes.data_as(ctypes.c_void_p), blocks.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(1024)
    )
    quantized[name] = blocks.tobytes().hex()
out["quantized"] = quantized
for name, halves in READ_ONLY.items():
    put(name, halves)
    out[name]["digest"] = hashlib.sha256(meaning(name, counted_blocks(name, halves, 1024)).tobytes()).hexdigest()
json.dump(out, open(sys.argv[3], "w"), indent=0)
