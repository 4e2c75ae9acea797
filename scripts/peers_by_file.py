#!/usr/bin/env python3
"""llmopt beside llama.cpp and ik_llama.cpp on the same GGUF files, in one sitting: interleaved rounds, medians, spread.

    scripts/peers_by_file.py --step STEP --llama-cpp BUILD/bin [--ik IK_BENCH] --rounds 3 --out results/NAME FILE.gguf ...

Measured with --threads threads: decode of one sequence (128 tokens), prefill of 512 tokens, decode of a batch of 16 (64-token prompts + 64
tokens), seconds to load. llmopt: STEP, the executable that `cargo bench --bench step --no-run` names; llama.cpp: llama-bench and llama-batched-bench with -fa 1;
ik_llama.cpp: a program that prints {"load_s", "pp512", "tg128", "b16"} and takes MODEL THREADS REPACK REPEATS, run with run-time repacking. Every round measures every program once, in turn; the table has medians and, in brackets, the smallest and the largest.
Standard library only. Writes OUT/README.md and OUT/rounds.csv.
"""
import argparse
import csv
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys

MEASURES = ["decode 1", "prefill 512", "batch 16", "load s"]


def sh(*cmd):
    return subprocess.run([str(c) for c in cmd], capture_output=True, text=True, check=True).stdout


def llmopt(args, file):
    found = json.loads(sh(args.step, "--model", file, "--threads", args.threads, "decode_1", "prefill_512", "decode_batch"))
    return [found["decode_1"], found["prefill_512"], found["decode_batch"], found["load_s"]]


def llama_cpp(args, file):
    rows = json.loads(sh(args.llama_cpp / "llama-bench", "-m", file, "-t", args.threads, "-p", 512, "-n", 128, "-r", 1, "-fa", 1, "-o", "json"))
    rate = {bool(row["n_prompt"]): row["avg_ts"] for row in rows}
    text = sh(args.llama_cpp / "llama-batched-bench", "-m", file, "-t", args.threads, "-tb", args.threads, "-c", 4096, "-b", 2048, "-ub", 512,
              "-npp", 64, "-ntg", 64, "-npl", 16)
    line = [x for x in text.splitlines() if re.match(r"\|\s+64 \|", x)][-1].split("|")
    return [rate[False], rate[True], float(line[8]), None]


def ik(repack):
    def run(args, file):
        found = json.loads(sh(args.ik, file, args.threads, repack, 1).strip().splitlines()[-1])
        return [found["tg128"], found["pp512"], found["b16"], found["load_s"]]
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=pathlib.Path, required=True)
    parser.add_argument("--llama-cpp", type=pathlib.Path, required=True)
    parser.add_argument("--ik", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    programs = {"llmopt": llmopt, "llama.cpp": llama_cpp}
    if args.ik:
        programs["ik repacked"] = ik(1)
    args.out.mkdir(parents=True, exist_ok=True)
    rounds = []
    for number in range(args.rounds):
        for file in args.files:
            for name, measure in programs.items():
                try:
                    values = measure(args, file)
                except (subprocess.CalledProcessError, json.JSONDecodeError, IndexError, KeyError) as error:
                    print(f"{file.name} {name}: {error} {getattr(error, 'stderr', '')[-200:]}", file=sys.stderr)
                    continue
                rounds.append((file.name, name, number, values))
                print(file.name, name, number, values, flush=True)
    with open(args.out / "rounds.csv", "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["file", "program", "round", *MEASURES])
        writer.writerows([file, name, number, *values] for file, name, number, values in rounds)

    def figures(file, name, m):
        return [values[m] for f, n, _, values in rounds if (f, n) == (file, name) and values[m] is not None]

    cpu = next((x.split(":")[1].strip() for x in open("/proc/cpuinfo") if x.startswith("model name")), platform.processor())
    lines = [f"# Beside llama.cpp and ik_llama.cpp, by file\n\nMachine: {cpu}, {os.cpu_count()} processors, {args.threads} threads. "
             f"Command: `scripts/peers_by_file.py {' '.join(map(str, sys.argv[1:]))}`. tokens/s, median of {args.rounds} interleaved rounds "
             "[smallest–largest]; ratio: llmopt over the better of the others.\n",
             "| file | program | " + " | ".join(MEASURES) + " |", "|---" * (2 + len(MEASURES)) + "|"]
    for file in args.files:
        for name in programs:
            cells = []
            for m in range(len(MEASURES)):
                v = figures(file.name, name, m)
                cells.append(f"{statistics.median(v):.4g} [{min(v):.4g}–{max(v):.4g}]" if v else "–")
            lines.append(f"| {file.name} | {name} | " + " | ".join(cells) + " |")
        ratios = []
        for m in range(3):
            ours = figures(file.name, "llmopt", m)
            best = max((statistics.median(v) for n in programs if n != "llmopt" and (v := figures(file.name, n, m))), default=None)
            ratios.append(f"**{statistics.median(ours) / best:.2f}**" if ours and best else "–")
        lines.append(f"| {file.name} | ratio | " + " | ".join(ratios) + " | |")
    (args.out / "README.md").write_text("\n".join(lines) + "\n")


main()
