#!/usr/bin/env python3
"""The ratios of `llmopt bench --phase 1` from outside: wall time of whole `llmopt run` processes on bench's prompts with bench's settings.

    cargo build --release && scripts/stopwatch.py          # about 8 minutes; nothing else should run meanwhile

Every round runs each configuration once, in random order, beside a run of one prompt and one token, which stands for starting and
loading. The ratio is of the times less those, with a 95 % t interval on the logarithms of the rounds. No part of llmopt's own clock is used.
"""
import argparse, json, math, pathlib, random, statistics, subprocess, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGURATIONS = {"baseline": "none", "precision": "precision", "greedy": "greedy", "phase 1": "precision,greedy,cache,early-stop"}
# Student's t, 97.5 %, for 5 to 11 degrees of freedom.
T = {5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 11: 2.201}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llmopt", default=str(ROOT / "target/release/llmopt"))
    parser.add_argument("--prompts", type=int, default=60, help="the first N of prompts/bench.jsonl")
    parser.add_argument("--rounds", type=int, default=6, choices=range(6, 13))
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        many, one, out = folder / "many.jsonl", folder / "one.jsonl", folder / "out.jsonl"
        many.write_text("\n".join((ROOT / "prompts/bench.jsonl").read_text().splitlines()[: a.prompts]) + "\n")
        one.write_text(json.dumps({"prompt": "Hi", "max_tokens": 1}) + "\n")

        def run(prompts, only):
            begin = time.perf_counter()
            subprocess.run([a.llmopt, "run", str(prompts), "-o", str(out), "--overwrite", "-q", "--only", only, "--temperature", "0.2",
                            "--max-tokens", "24", "--batch-size", "3"], check=True, capture_output=True)
            return time.perf_counter() - begin

        whole, start, tokens = {k: [] for k in CONFIGURATIONS}, {k: [] for k in CONFIGURATIONS}, {}
        for _ in range(a.rounds):
            for name in random.sample(list(CONFIGURATIONS), len(CONFIGURATIONS)):
                whole[name].append(run(many, CONFIGURATIONS[name]))
                records = [json.loads(line) for line in out.read_text().splitlines()]
                tokens[name] = sum(r["completion_tokens"] for r in records if not r["cached"])
                start[name].append(run(one, CONFIGURATIONS[name]))
    print(f"{a.prompts} prompts, {a.rounds} rounds; ratios to baseline without the one-token runs, with 95 % intervals; those of whole processes\n")
    print("| configuration | median s | one token, s | tokens generated | ratio (95 %) | whole processes |\n| --- | --: | --: | --: | --: | --: |")
    for name in CONFIGURATIONS:
        net = [math.log((b - c) / (x - y)) for b, c, x, y in zip(whole["baseline"], start["baseline"], whole[name], start[name])]
        raw = statistics.mean(math.log(b / x) for b, x in zip(whole["baseline"], whole[name]))
        mean, half = statistics.mean(net), T[a.rounds - 1] * statistics.stdev(net) / a.rounds**0.5
        low, high = math.exp(mean - half), math.exp(mean + half)
        print(f"| {name} | {statistics.median(whole[name]):.2f} | {statistics.median(start[name]):.2f} | {tokens[name]} | "
              f"{math.exp(mean):.2f} ({low:.2f}–{high:.2f}) | {math.exp(raw):.2f} |")


if __name__ == "__main__":
    main()
