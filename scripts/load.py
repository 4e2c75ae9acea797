#!/usr/bin/env python3
"""Load: files of up to a million records through a tiny model (made here) on this machine. Nothing but the standard library is needed.

Usage: scripts/load.py PART [--llmopt PROGRAM] [--folder FOLDER] [options]
  flat    interleaved rounds over 10^4, 10^5 and 10^6 records: tokens/s and peak memory; further calls add rounds
  report  what all rounds in the folder say: ratios of tokens/s with 95 % intervals, bytes of memory a record
  resume  an output of --records kept records, resumed with nothing missing and with a hundred missing: seconds and peak memory
  shards  --processes processes on as many shards of one file at once; some are killed (SIGKILL) and a full disk stops the rest;
          all are resumed and joined: every record once, with the answers of an unsharded run"""

import argparse
import json
import math
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

# Two-sided 95 % points of Student's distribution by degrees of freedom.
STUDENT = [math.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13]
SIZES = [10**4, 10**5, 10**6]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}<|im_start|>"


def byte_characters() -> list[str]:
    """GPT-2's character for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b if b in plain else next(others)) for b in range(256)]


def value(of) -> bytes:
    """A metadata value of a GGUF file with its type."""
    text = lambda s: struct.pack("<Q", len(s.encode())) + s.encode()
    if isinstance(of, bool):
        return struct.pack("<I?", 7, of)
    if isinstance(of, int):
        return struct.pack("<II", 4, of)
    if isinstance(of, float):
        return struct.pack("<If", 6, of)
    if isinstance(of, str):
        return struct.pack("<I", 8) + text(of)
    kind, one = (8, text) if not of or isinstance(of[0], str) else (5, lambda n: struct.pack("<i", n))
    return struct.pack("<IIQ", 9, kind, len(of)) + b"".join(map(one, of))


def make_model(path: Path) -> None:
    """A llama of one layer and 261 tokens (three control tokens, the bytes, two merges) with random weights, as a GGUF file of f32."""
    hidden, ffn, heads, kv_heads, head = 32, 32, 2, 1, 16
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_characters(), "he", "in"]
    metadata = {
        "general.architecture": "llama", "general.name": "load", "llama.block_count": 1, "llama.context_length": 256,
        "llama.embedding_length": hidden, "llama.feed_forward_length": ffn, "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads, "llama.rope.dimension_count": head, "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.vocab_size": len(tokens), "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if i < 3 else 1 for i in range(len(tokens))], "tokenizer.ggml.merges": ["h e", "i n"],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    shapes = {
        "token_embd": (len(tokens), hidden), "blk.0.attn_norm": (hidden,), "blk.0.attn_q": (heads * head, hidden),
        "blk.0.attn_k": (kv_heads * head, hidden), "blk.0.attn_v": (kv_heads * head, hidden),
        "blk.0.attn_output": (hidden, heads * head), "blk.0.ffn_norm": (hidden,), "blk.0.ffn_gate": (ffn, hidden),
        "blk.0.ffn_up": (ffn, hidden), "blk.0.ffn_down": (hidden, ffn), "output_norm": (hidden,),
    }
    draw = random.Random(1)
    heads_of, data = b"", b""
    for name, shape in shapes.items():
        name = (name + ".weight").encode()
        spread = 4.0 if name.startswith(b"token") else 1.0
        values = [0.75 + draw.random() / 2 if len(shape) == 1 else draw.gauss(0, spread * 1.5 / shape[1] ** 0.5) for _ in range(math.prod(shape))]
        heads_of += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(shape))
        heads_of += b"".join(struct.pack("<Q", n) for n in reversed(shape)) + struct.pack("<IQ", 0, len(data))
        data += struct.pack(f"<{len(values)}f", *values)
        data += bytes(-len(data) % 32)
    keys = b"".join(struct.pack("<Q", len(k)) + k.encode() + value(v) for k, v in metadata.items())
    head_bytes = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(metadata)) + keys + heads_of
    path.write_bytes(head_bytes + bytes(-len(head_bytes) % 32) + data)


def prompts(folder: Path, count: int) -> Path:
    """A file of so many records with ids of their own, all of one length."""
    path = folder / f"prompts-{count}.jsonl"
    if not path.exists():
        with open(path, "w") as file:
            file.writelines(f'{{"id":"record-{i:07}","prompt":"{i:07}?"}}\n' for i in range(count))
    return path


class Load:
    """The program, its flags and the folder."""

    def __init__(self, given) -> None:
        self.given, self.folder = given, Path(given.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = self.folder / "load.gguf"
        make_model(self.model)

    def command(self, source: Path, *flags) -> list:
        """The run of a file."""
        fixed = ["-q", "-m", self.model, "--threads", str(self.given.threads), "--max-tokens", str(self.given.max_tokens)]
        return list(map(str, [self.given.llmopt, "run", source, *fixed, *flags]))

    def run(self, source: Path, out: Path, *flags) -> dict:
        """Runs to the end; its own account, and by the kernel's the seconds of the whole process, its processor time and peak memory."""
        stats = self.folder / "stats.json"
        stats.unlink(missing_ok=True)
        since = time.monotonic()
        child = subprocess.Popen(self.command(source, "-o", out, "--stats", stats, *flags))
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            sys.exit(f"status {child.returncode}: {child.args}")
        told = json.loads(stats.read_text()) if stats.exists() else {}
        cpu = usage.ru_utime + usage.ru_stime
        peak = told.get("peak_rss_bytes", usage.ru_maxrss * 1024)
        return {**told, "seconds": time.monotonic() - since, "cpu": cpu, "peak": peak}


def flat(load: Load) -> None:
    """Rounds in which each size has its turn; the small ones on both sides of the large one."""
    for size in SIZES:
        prompts(load.folder, size)
    for _ in range(load.given.rounds):
        found: dict[int, list] = {size: [] for size in SIZES}
        order = [10**4] * 5 + [10**5, 10**6, 10**5] + [10**4] * 5
        for size in order:
            out = load.folder / "flat.jsonl"
            ran = load.run(prompts(load.folder, size), out, "--overwrite", "--without", "cache")
            found[size].append([ran["tokens_per_s"], ran["seconds"], ran["peak"], ran["generated_tokens"] / ran["cpu"]])
        with open(load.folder / "rounds.jsonl", "a") as file:
            file.write(json.dumps(found) + "\n")
    report(load)


def interval(ratios: list[float]) -> str:
    """Geometric mean and 95 % interval."""
    logs = [math.log(r) for r in ratios]
    if len(logs) < 2:
        return f"{ratios[0]:.3f} (one round: no interval)"
    mean, half = statistics.mean(logs), STUDENT[min(len(logs) - 1, 15)] * statistics.stdev(logs) / len(logs) ** 0.5
    return f"{math.exp(mean):.3f} [{math.exp(mean - half):.3f}, {math.exp(mean + half):.3f}]"


def report(load: Load) -> None:
    """What the rounds say."""
    rounds = [json.loads(line) for line in (load.folder / "rounds.jsonl").read_text().splitlines()]
    speed = lambda one, size, which=0: statistics.geometric_mean(run[which] for run in one[str(size)])
    peak = {size: max(run[2] for one in rounds for run in one[str(size)]) for size in SIZES}
    for size in SIZES:
        tokens = statistics.geometric_mean(speed(one, size) for one in rounds)
        seconds = statistics.mean(run[1] for one in rounds for run in one[str(size)])
        print(f"{size:8} records: {tokens:8.0f} tokens/s, {seconds:7.2f} s, peak memory {peak[size] / 1e6:.1f} MB")
    print(f"{len(rounds)} rounds")
    for size in SIZES[1:]:
        for which, name in ((0, "tokens/s"), (3, "tokens a processor second")):
            ratios = [speed(one, size, which) / speed(one, SIZES[0], which) for one in rounds]
            print(f"{name} at {size} / at {SIZES[0]}: {interval(ratios)}")
        print(f"memory from {SIZES[0]} to {size}: {(peak[size] - peak[SIZES[0]]) / (size - SIZES[0]):.1f} bytes a record")


def resume(load: Load) -> None:
    """An output that is complete or nearly so, resumed."""
    count = load.given.records
    source, out = prompts(load.folder, count), load.folder / "kept.jsonl"
    small = load.run(prompts(load.folder, SIZES[0]), load.folder / "small.jsonl", "--overwrite")
    if not out.exists() or sum(1 for _ in open(out)) != count:
        load.run(source, out, "--overwrite")
    # Nothing is held in memory here: a child's peak begins with its parent's.
    for missing in (0, 100):
        with open(out, "rb+") as file:
            for _ in range(count - missing):
                file.readline()
            file.truncate(file.tell())
        ran = load.run(source, out, "--resume")
        grown = (ran["peak"] - small["peak"]) / count
        print(f"{count - missing} kept, {missing} missing: {ran['seconds']:.1f} s, {ran['cpu']:.1f} s of processors, peak memory {ran['peak'] / 1e6:.1f} MB, {grown:.1f} bytes a record")
        if sum(1 for _ in open(out)) != count:
            sys.exit("records are missing")


def essences(path: Path) -> dict:
    """Records by id without what differs from run to run; ends where an id comes twice."""
    found = {}
    for line in open(path):
        record = json.loads(line)
        for name in ("queue_ms", "ttft_ms", "latency_ms", "cached"):
            del record[name]
        if found.setdefault(record["id"], record) is not record:
            sys.exit(f"{path}: {record['id']} twice")
    return found


def shards(load: Load) -> None:
    """Shards at once in a small file system that fills up, some of them killed; then resumed with room, and joined."""
    count, parts = load.given.records, load.given.processes
    source, whole, disk = prompts(load.folder, count), load.folder / "whole.jsonl", load.folder / "disk"
    load.run(source, whole, "--overwrite", "--ordered")
    expected = essences(whole)
    disk.mkdir(exist_ok=True)
    room = int(whole.stat().st_size * 0.7)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", disk], check=True)
    try:
        outs = [disk / f"shard-{i}.jsonl" for i in range(parts)]

        def start(i: int) -> subprocess.Popen:
            again = ["--resume"] if outs[i].exists() else []
            command = load.command(source, "-o", outs[i], "--shard", f"{i}/{parts}", *again)
            return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

        def lines() -> int:
            return sum(open(out, "rb").read().count(b"\n") for out in outs if out.exists())

        def ended(children: list) -> tuple[dict, list]:
            statuses, errors = {}, []
            for child in children:
                errors += child.communicate()[1].splitlines()
                statuses[child.returncode] = statuses.get(child.returncode, 0) + 1
            return dict(sorted(statuses.items())), errors

        since = time.monotonic()
        children = [start(i) for i in range(parts)]
        while lines() < count * 0.3 and any(child.poll() is None for child in children):
            time.sleep(0.05)
        running = [child for child in children if child.poll() is None]
        victims = running[:: max(1, len(running) // 30)]
        for child in victims:
            child.kill()
        statuses, errors = ended(children)
        print(f"{parts} processes at once, {len(victims)} killed at 30 %, a disk of 70 %: statuses {statuses}, {lines()} of {count} lines, {time.monotonic() - since:.1f} s")
        print(f"  first error: {errors[0] if errors else None}")
        subprocess.run(["mount", "-o", f"remount,size={room * 3}", disk], check=True)
        since = time.monotonic()
        statuses, errors = ended([start(i) for i in range(parts)])
        print(f"with room, --resume: statuses {statuses}, {lines()} of {count} lines, {time.monotonic() - since:.1f} s {errors[:1]}")
        joined = load.folder / "joined.jsonl"
        with open(joined, "wb") as file:
            for out in outs:
                shutil.copyfileobj(open(out, "rb"), file)
        load.run(source, joined, "--resume", "--ordered")
        found = essences(joined)
        same = found == expected and list(found) == list(expected)
        print(f"joined: {len(found)} records, each once, in the input's order and as an unsharded run has them: {'yes' if same else 'NO'}")
        if not same:
            sys.exit(1)
    finally:
        subprocess.run(["umount", disk], check=True)


def main() -> None:
    """Runs a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"flat": flat, "report": report, "resume": resume, "shards": shards}
    parser.add_argument("part", choices=parts, metavar="PART", help="flat, report, resume or shards")
    parser.add_argument("--llmopt", default="target/release/llmopt", help="the program (target/release/llmopt)")
    parser.add_argument("--folder", default="target/load", help="where files go (target/load)")
    parser.add_argument("--threads", type=int, default=1, help="of each process (1)")
    parser.add_argument("--max-tokens", type=int, default=4, help="of an answer (4)")
    parser.add_argument("--rounds", type=int, default=1, help="of flat (1)")
    parser.add_argument("--records", type=int, default=10**6, help="of resume and shards (1000000)")
    parser.add_argument("--processes", type=int, default=100, help="of shards (100)")
    given = parser.parse_args()
    parts[given.part](Load(given))


if __name__ == "__main__":
    main()
