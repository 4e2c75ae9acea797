#!/usr/bin/env python3
"""Writes tests/data/vocab-<name>.json: vocabularies of other models, cut down, with texts and the ids that llama.cpp gives them.

usage: scripts/make_vocab_fixtures.py LLAMA_CPP_SOURCE [OUT_DIR]      (needs the package `gguf`)

llama.cpp's source carries `models/ggml-vocab-<name>.gguf` with texts (`.inp`) and their ids (`.out`), which its own tests compare with
transformers. A fixture keeps what can matter for these texts: all special tokens and bytes, and every token that stands somewhere in
one of the texts (a merge whose result does not stand there can never apply), with merges in the order of their ranks and scores as
they are. `ids` are the ids of the whole vocabulary; a test numbers tokens anew and maps back.
"""
import sys

if "--help" in sys.argv or "-h" in sys.argv:
    sys.exit(print(__doc__))

import glob, json, os

import gguf

MARK = "\n__ggml_vocab_test__\n"


def letters():
    """GPT-2's byte alphabet."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    out, n = {}, 0
    for b in range(256):
        if b in plain:
            out[b] = chr(b)
        else:
            out[b] = chr(256 + n)
            n += 1
    return out


def main():
    source, out = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "tests/data"
    alphabet = letters()
    for path in sorted(glob.glob(os.path.join(source, "models", "ggml-vocab-*.gguf"))):
        name = os.path.basename(path)[len("ggml-vocab-") : -len(".gguf")]
        fields = gguf.GGUFReader(path).fields

        def get(key, default=None):
            field = fields.get("tokenizer.ggml." + key)
            return default if field is None else field.contents()

        model, pre = get("model"), get("pre")
        if not os.path.exists(path + ".inp") or model not in ("gpt2", "llama", "gemma4"):
            print(name, "left out:", model, "" if os.path.exists(path + ".inp") else "has no texts")
            continue
        texts = open(path + ".inp", encoding="utf-8", newline="").read().split(MARK)
        ids = [[int(i) for i in line.split()] for line in open(path + ".out")]
        # The last mark has an empty text behind it.
        texts = texts[: len(ids)]
        if model == "gpt2":
            inside = ["".join(alphabet[b] for b in t.encode()) for t in texts]
        else:
            inside = ["▁" + t.replace(" ", "▁") for t in texts]
        joined = "\0".join(inside)
        tokens, types, scores, merges = get("tokens"), get("token_type"), get("scores"), get("merges")
        special = {get(k) for k in ("bos_token_id", "eos_token_id", "unknown_token_id")} - {None}
        bytes_ = set(alphabet.values()) if model == "gpt2" else set()
        padding = lambda t: t.startswith(("[PAD", "<|reserved", "<unused", "<|dummy", "<|placeholder"))
        keep = [
            i
            for i, (t, k) in enumerate(zip(tokens, types))
            if i in special or (k not in (1, 6) and not padding(t)) and (k != 4 or len(tokens) < 60000) or k == 6 or t in bytes_ or t in joined
        ]
        kept = {tokens[i] for i in keep}
        fixture = {"name": name, "model": model, "pre": pre, "bos": get("bos_token_id"), "eos": get("eos_token_id"), "unknown": get("unknown_token_id")}
        fixture["ids"] = keep
        fixture["tokens"] = [tokens[i] for i in keep]
        fixture["types"] = [types[i] for i in keep]
        if model == "llama":
            fixture["scores"] = [scores[i] for i in keep]
        else:
            pairs = [(m, m[: m.index(" ", 1)], m[m.index(" ", 1) + 1 :]) for m in merges]
            fixture["merges"] = [m for m, l, r in pairs if l + r in joined and l in kept and r in kept and l + r in kept]
        fixture["texts"] = [{"text": t, "ids": i} for t, i in zip(texts, ids)]
        target = os.path.join(out, "vocab-%s.json" % name)
        with open(target, "w", encoding="utf-8") as f:
            json.dump(fixture, f, ensure_ascii=False, separators=(",", ":"))
        print(name, len(keep), "tokens", len(fixture.get("merges", [])), "merges", len(texts), "texts", os.path.getsize(target), "bytes")


main()
