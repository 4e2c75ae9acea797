#!/usr/bin/env python3
"""How long after its start a process gives its first token, and how much memory it then holds. For each dtype: `llmopt run` on one prompt
of about 30 tokens (template included) from standard input with --max-tokens 1; the time from just before the process is made until its
first line of output is there, the model file in the page cache. Median and worst of the repeats. Standard library only; Linux.

    scripts/first_token.py [--llmopt target/release/llmopt] [--model smollm2-135m] [--dtypes f32,bf16,q8_0,native] [--repeats 7]
"""
import argparse, json, pathlib, statistics, subprocess, time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def once(args, dtype):
    """(seconds to the first token, prompt tokens, peak resident MB)."""
    line = json.dumps({"id": "1", "prompt": "Name a colour."}) + "\n"
    command = [args.llmopt, "run", "-", "-q", "--input-format", "jsonl", "-m", args.model, "--dtype", dtype, "--max-tokens", "1"]
    if args.threads:
        command += ["--threads", str(args.threads)]
    since = time.perf_counter()
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child.stdin.write(line)
    child.stdin.flush()
    answer = child.stdout.readline()
    seconds = time.perf_counter() - since
    status = pathlib.Path(f"/proc/{child.pid}/status").read_text()
    peak = next(int(l.split()[1]) / 1024 for l in status.splitlines() if l.startswith("VmHWM:"))
    child.stdin.close()
    if child.wait() or not answer:
        raise SystemExit(f"{' '.join(command)} failed")
    return seconds, json.loads(answer)["prompt_tokens"], peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llmopt", default=str(ROOT / "target/release/llmopt"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtypes", default="f32,bf16,q8_0,native")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print(f"{'dtype':14} {'first token':>12} {'worst':>9} {'peak memory':>12}   of {args.repeats}, after one to warm the page cache")
    for dtype in args.dtypes.split(","):
        once(args, dtype)
        seconds, tokens, peaks = zip(*(once(args, dtype) for _ in range(args.repeats)))
        print(f"{dtype:14} {statistics.median(seconds):10.3f} s {max(seconds):7.3f} s {max(peaks):9.1f} MB   {tokens[0]}-token prompt", flush=True)


if __name__ == "__main__":
    main()
