#!/usr/bin/env python3
"""Blocks of every weight type that llmopt computes as stored, and what ggml's Python reference (gguf-py) says they mean.

usage: make_block_fixtures.py GGUF_PY LIBGGML OUT.json
GGUF_PY: the folder gguf-py of a llama.cpp source tree (0.3.36 of llama-cpp-python carries one). Needs numpy.
LIBGGML: a shared library with ggml's quantizers (libggml-base.so of a build with shared libraries).

Of each type two to sixteen blocks of random bytes whose f16 numbers are finite, as hex; the values as the hex of little-endian f32. The
codes of gguf-py are numpy, written apart from ggml's C and from llmopt: an oracle for tests/blocks.rs. ggml's own C must agree with them.
`quantized`: 1,024 values (normal, outliers, a block of zeros, one of equal values), and the blocks that `quantize_row_*_ref` makes of them.
"""
import ctypes
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
ggml = ctypes.CDLL(sys.argv[2])
rng = np.random.default_rng(15)
out = {}
for name, halves in HALVES.items():
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    count = max(2, 128 // block)
    data = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in halves:
        scales = (rng.standard_normal(count) * 0.05).astype(np.float16)
        data[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
    if name == "MXFP4":
        # The powers' ends and middle: 0 and 1 are no normal numbers.
        data[:, 0] = [0, 1, 2, 127][:count] if count <= 4 else rng.integers(90, 140, count)
    values = quants.dequantize(data.reshape(count, size), kind).astype("<f4")
    # ggml's C spells Q4_K `q4_K`.
    c_name = name[:-1].lower() + "K" if name.endswith("_K") else name.lower()
    c_values = np.zeros(values.size, np.float32)
    getattr(ggml, "dequantize_row_" + c_name)(
        data.ctypes.data_as(ctypes.c_void_p), c_values.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(values.size)
    )
    assert (c_values.view(np.uint32) == np.ascontiguousarray(values).reshape(-1).view(np.uint32)).all(), name
    out[name] = {"blocks": data.tobytes().hex(), "values": values.tobytes().hex()}
x = rng.standard_normal(1024).astype(np.float32)
x[::97] *= 8
x[256:288] = 0
x[288:320] = 0.25
x[512:768] *= 1e-4
quantized = {"values": x.astype("<f4").tobytes().hex()}
for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"):
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = np.zeros(1024 // block * size, np.uint8)
    c_name = name[:-1].lower() + "K" if name.endswith("_K") else name.lower()
    getattr(ggml, f"quantize_row_{c_name}_ref")(
        x.ctypes.data_as(ctypes.c_void_p), blocks.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(1024)
    )
    quantized[name] = blocks.tobytes().hex()
out["quantized"] = quantized
json.dump(out, open(sys.argv[3], "w"), indent=0)
