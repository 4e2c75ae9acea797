#!/usr/bin/env python3
"""Writes tests/data/vocab-trained.json: a small SentencePiece BPE model trained here, with texts and the ids that sentencepiece gives.

usage: scripts/make_sentencepiece_fixture.py [OUT_DIR [GGUF]]      (needs the package `sentencepiece`; `gguf` for GGUF)

The model has byte fallback and the space in front, as Llama 2's; it is trained on this repository's documents. The fixture has the
form of `make_vocab_fixtures.py`. With GGUF the vocabulary is also written as a file without tensors.
"""
import sys

if "--help" in sys.argv or "-h" in sys.argv:
    sys.exit(print(__doc__))

import glob, io, json, os, random

import sentencepiece


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else "tests/data"
    lines = []
    for path in sorted(glob.glob("docs/*.md")) + ["README.md"]:
        lines += [line.strip() for line in open(path, encoding="utf-8") if line.strip()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=900, byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True, split_digits=True,
        allow_whitespace_only_pieces=True, num_threads=1, minloglevel=2, max_sentence_length=10000,
    )  # fmt: skip
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kind = lambda i: 6 if sp.is_byte(i) else 3 if sp.is_control(i) else 2 if sp.is_unknown(i) else 5 if sp.is_unused(i) else 1
    n = sp.vocab_size()
    random.seed(3)
    words = ["the", " ", "  ", "\n", "token", "ing", "é", "日本", "🦀", "1234", "...", "<s>", "</s>", "<0x41>", "\t", "'s", "of the", "Ω", "\u00a0", "x"]
    texts = ["", " ", "  a", "a  ", "The quick brown fox.", "what is measured is not believed", "\n\n", "<unk>", "日本語のテキスト", "a" * 200, " " * 50]
    texts += ["".join(random.choice(words) for _ in range(random.randint(1, 12))) for _ in range(150)]
    texts += [line[a : a + 60] for line in random.sample(lines, 60) for a in [random.randint(0, 20)]]
    fixture = {"name": "trained", "model": "llama", "pre": None, "bos": sp.bos_id(), "eos": sp.eos_id(), "unknown": sp.unk_id(), "ids": list(range(n))}
    fixture["tokens"] = [sp.id_to_piece(i) for i in range(n)]
    fixture["types"] = [kind(i) for i in range(n)]
    fixture["scores"] = [sp.get_score(i) for i in range(n)]
    fixture["texts"] = [{"text": t, "ids": sp.encode(t)} for t in texts if "▁" not in t]
    path = os.path.join(out, "vocab-trained.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(fixture, f, ensure_ascii=False, separators=(",", ":"))
    print(n, "tokens", len(fixture["texts"]), "texts", os.path.getsize(path), "bytes")
    if len(sys.argv) > 2:
        import gguf

        w = gguf.GGUFWriter(sys.argv[2], "llama")
        w.add_tokenizer_model("llama")
        w.add_token_list(fixture["tokens"])
        w.add_token_scores(fixture["scores"])
        w.add_token_types(fixture["types"])
        w.add_bos_token_id(sp.bos_id())
        w.add_eos_token_id(sp.eos_id())
        w.add_unk_token_id(sp.unk_id())
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.close()
        open(sys.argv[2] + ".model", "wb").write(model.getvalue())


main()
