#!/usr/bin/env python3
"""llmopt beside llama.cpp on this machine, in one sitting: same weights, same threads, interleaved, medians.

Builds llama.cpp natively out of the PyPI source package llama-cpp-python (about 10 minutes on 2 cores; kept in --work), makes the
F32, BF16 and Q8_0 variants of the default model with its quantizer, and writes a table of ratios into --out. Needs pip, cmake and
ninja (installed by pip if absent) and a C++ compiler. Standard library only. Nothing else should run meanwhile.

    scripts/peers.py --out results/2026-11-23-epyc-peers            # everything, about 25 minutes
    scripts/peers.py --dtypes q4_1 --skip file --repeats 3 --out /tmp/x

Measured for each dtype: decode of one sequence (128 tokens from an empty context), prefill of 512 tokens, decode of a batch of 16
(64-token prompts + 64 tokens), and the wall time of prompts/prompts64.jsonl against llama-server with 16 slots. llama.cpp runs with
the better of flash attention on and off (chosen by one run of each). --flags builds it with other cmake flags, such as
"-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON", to be set beside `--kernels avx2`.
"""
import argparse, datetime, json, os, pathlib, platform, re, shutil, statistics, subprocess, sys, tarfile, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "llama-cpp-python==0.3.36"
TOOLS = ["llama-bench", "llama-batched-bench", "llama-server", "llama-quantize"]
TYPES = {"f32": "F32", "bf16": "BF16", "q8_0": "Q8_0", "q4_1": None}  # None: the default model as it is


def sh(*cmd, **kw):
    return subprocess.run([str(c) for c in cmd], check=True, text=True, capture_output=True, **kw).stdout


def build_peer(work, flags):
    work.mkdir(parents=True, exist_ok=True)
    bin_ = work / "build" / "bin"
    if all((bin_ / t).exists() for t in TOOLS):
        return bin_
    pip = [sys.executable, "-m", "pip"]
    subprocess.run(pip + ["install", "-q", "cmake", "ninja", "scikit-build-core"], check=True)
    subprocess.run(pip + ["download", "-q", "--no-binary", ":all:", "--no-deps", "--no-build-isolation", "-d", work, PACKAGE], check=True)
    with tarfile.open(next(work.glob("llama_cpp_python-*.tar.gz"))) as tar:
        tar.extractall(work)
    source = next(work.glob("llama_cpp_python-*/vendor/llama.cpp"))
    subprocess.run(["cmake", "-S", source, "-B", work / "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF",
                    "-DLLAMA_OPENSSL=OFF", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_UI=OFF",
                    "-DLLAMA_USE_PREBUILT_UI=OFF"] + flags.split(), check=True)
    subprocess.run(["ninja", "-C", work / "build"] + TOOLS, check=True)
    return bin_


def variants(models, default, quantize):
    models.mkdir(parents=True, exist_ok=True)
    out = {}
    for dtype, name in TYPES.items():
        path = default if name is None else models / f"{name}.gguf"
        if not path.exists():
            sh(quantize, "--allow-requantize", default, path, name, 2)
        out[dtype] = path
    return out


class Peer:
    def __init__(self, bin_, model, threads):
        self.bin, self.model, self.threads = bin_, model, threads
        best = {fa: self.single(fa)["prefill_512"] for fa in (0, 1)}
        self.fa = max(best, key=best.get)

    def single(self, fa=None):
        rows = json.loads(sh(self.bin / "llama-bench", "-m", self.model, "-t", self.threads, "-p", 512, "-n", 128, "-r", 1,
                             "-fa", self.fa if fa is None else fa, "-o", "json"))
        return {("prefill_512" if r["n_prompt"] else "decode_1"): r["avg_ts"] for r in rows}

    def batch(self):
        text = sh(self.bin / "llama-batched-bench", "-m", self.model, "-t", self.threads, "-tb", self.threads, "-c", 8192, "-b", 2048,
                  "-ub", 512, "-npp", 64, "-ntg", 64, "-npl", 16, "-fa", "on" if self.fa else "off")
        row = [r for r in text.splitlines() if re.match(r"\|\s*64 \|\s*64 \|\s*16 \|", r)][-1]
        return {"decode_batch": float(row.strip("| ").split("|")[7])}

    def file(self, prompts):
        args = f"-np 16 -c 16384 -t {self.threads} -tb {self.threads} -fa {'on' if self.fa else 'off'}"
        text = sh(sys.executable, ROOT / "scripts" / "llama_server_batch.py", prompts, "--server", self.bin / "llama-server",
                  "--model", self.model, "--server-args", args, "--max-tokens", 64)
        row = json.loads(text.splitlines()[-1])
        return row["wall_s"], row["gen_tokens"]


class Ours:
    def __init__(self, step, binary, model, dtype, threads, kernels):
        self.step, self.binary, self.model, self.dtype, self.threads = step, binary, model, dtype, threads
        self.kernels = ["--kernels", kernels] if kernels else []

    def measure(self, *what, decoder="native"):
        return json.loads(sh(self.step, "--model", self.model, "--dtype", self.dtype, "--threads", self.threads, "--decoder", decoder,
                             *self.kernels, *what))

    def file(self, prompts):
        with tempfile.TemporaryDirectory() as folder:
            stats = pathlib.Path(folder) / "stats.json"
            start = time.perf_counter()
            sh(self.binary, "run", prompts, "-m", self.model, "--dtype", self.dtype, "--threads", self.threads, "--max-tokens", 64,
               "--temperature", 0, "--stop-on", "eos", "-q", "-o", pathlib.Path(folder) / "answers.jsonl", "--stats", stats, *self.kernels)
            wall = time.perf_counter() - start
            lines = [json.loads(line) for line in open(pathlib.Path(folder) / "answers.jsonl")]
        return wall, sum(r["completion_tokens"] for r in lines), sum(r["completion_tokens"] for r in lines if not r["cached"])


def median(values):
    return statistics.median(values)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", type=pathlib.Path, default=pathlib.Path.home() / ".cache" / "llmopt-peers")
    p.add_argument("--bin", type=pathlib.Path, help="folder of an existing llama.cpp build (skips building)")
    p.add_argument("--models", type=pathlib.Path, help="folder of F32.gguf, BF16.gguf, Q8_0.gguf (made if absent)")
    p.add_argument("--model", type=pathlib.Path, help="the default Q4_1 GGUF; default: llmopt's cache")
    p.add_argument("--flags", default="-DGGML_NATIVE=ON", help="cmake flags of the peer")
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--dtypes", default="f32,bf16,q8_0,q4_1")
    p.add_argument("--skip", default="", help="of decode,batch,file,candle")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--file-repeats", type=int, default=2)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--kernels", help="force llmopt's kernel set (portable, avx2, avx512)")
    a = p.parse_args()
    skip = set(a.skip.split(","))

    subprocess.run(["cargo", "build", "--release", "--locked", "-q"], cwd=ROOT, check=True)
    text = subprocess.run(["cargo", "bench", "--locked", "--no-run", "--bench", "step"], cwd=ROOT, check=True, text=True, capture_output=True).stderr
    step = ROOT / re.search(r"\(([^)]*step-[0-9a-f]+)\)", text).group(1)
    binary = ROOT / "target" / "release" / "llmopt"
    bin_ = a.bin or build_peer(a.work, a.flags)
    default = a.model
    if default is None:
        cache = os.environ.get("LLMOPT_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "llmopt")
        default = pathlib.Path(cache) / "SmolLM2-135M-Instruct.Q4_1.gguf"
        if not default.exists():
            sh(binary, "run", ROOT / "prompts" / "hello.jsonl", "--dry-run")
    models = variants(a.models or a.work / "models", default, (a.bin or bin_) / "llama-quantize")
    prompts = ROOT / "prompts" / "prompts64.jsonl"

    result = {"date": datetime.datetime.now().isoformat(timespec="seconds"), "command": sys.argv, "machine": platform.processor() or platform.machine(),
              "cpu": next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), ""), "threads": a.threads,
              "peer": PACKAGE, "peer_flags": a.flags, "kernels": a.kernels, "commit": sh("git", "rev-parse", "--short", "HEAD", cwd=ROOT).strip(), "dtypes": {}}
    for dtype in a.dtypes.split(","):
        peer, ours = Peer(bin_, models[dtype], a.threads), Ours(step, binary, models[dtype], dtype, a.threads, a.kernels)
        samples = {"peer": {}, "ours": {}, "limits": []}
        add = lambda side, values: [samples[side].setdefault(k, []).append(v) for k, v in values.items()]
        for i in range(a.repeats):
            if "decode" not in skip:
                add("peer", peer.single())
                m = ours.measure("decode_1", "prefill_512", "limits")
                samples["limits"].append(m.pop("limits"))
                add("ours", m)
            if "batch" not in skip:
                add("peer", peer.batch())
                add("ours", ours.measure("decode_batch"))
            print(dtype, "round", i + 1, {k: round(median(samples["ours"][k]) / median(samples["peer"][k]), 2) for k in samples["ours"]}, flush=True)
        if "file" not in skip:
            for _ in range(a.file_repeats):
                wall, tokens = peer.file(prompts)
                add("peer", {"file_s": wall, "file_tokens": tokens})
                wall, tokens, generated = ours.file(prompts)
                add("ours", {"file_s": wall, "file_tokens": tokens, "file_generated": generated})
            print(dtype, "file", samples["peer"]["file_s"], samples["ours"]["file_s"], flush=True)
        if "candle" not in skip and dtype == "f32":
            add("ours", {"candle_" + k: v for k, v in ours.measure("decode_1", "prefill_512", decoder="candle").items()})
        samples["flash_attention"] = peer.fa
        result["dtypes"][dtype] = samples

    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "peers.json").write_text(json.dumps(result, indent=1))
    (a.out / "peers.md").write_text(table(result))
    print(table(result))


ROWS = [("decode_1", "decode, one sequence (128 tokens), tok/s"), ("prefill_512", "prefill, 512 tokens, tok/s"),
        ("decode_batch", "decode, batch 16 (64 + 64 tokens), tok/s"), ("file_s", "the 64-prompt file, wall s")]


def table(result):
    dtypes = result["dtypes"]
    lines = [f"# llmopt {result['commit']} beside llama.cpp ({result['peer']}, {result['peer_flags']})", "",
             f"{result['cpu']}, {result['threads']} threads, {result['date']}; kernels {result['kernels'] or 'as detected'}. Medians of interleaved "
             "runs; the ratio is llmopt over llama.cpp (above 1: llmopt is faster), with the lowest and highest ratio of the pairs.", "",
             "| measure | " + " | ".join(dtypes) + " |", "|---|" + "---|" * len(dtypes)]
    for key, title in ROWS:
        cells = []
        for s in dtypes.values():
            peer, ours = s["peer"].get(key), s["ours"].get(key)
            if not peer or not ours:
                cells.append("–")
                continue
            flip = (lambda x, y: y / x) if key == "file_s" else (lambda x, y: x / y)
            pairs = [flip(x, y) for x, y in zip(ours, peer)]
            cells.append(f"**{flip(median(ours), median(peer)):.2f}** ({min(pairs):.2f}–{max(pairs):.2f}): {median(ours):.4g} / {median(peer):.4g}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    share = lambda key: [f"{100 * median([l[key] for l in s['limits']]):.0f} %" if s["limits"] and key in s["limits"][0] else "–" for s in dtypes.values()]
    lines.append("| llmopt decode, share of read bandwidth | " + " | ".join(share("decode_share")) + " |")
    lines.append("| llmopt prefill, share of f32 FMA peak | " + " | ".join(share("prefill_share")) + " |")
    f32 = dtypes.get("f32", {}).get("ours", {})
    if "candle_decode_1" in f32:
        lines += ["", f"Stock candle-transformers (f32): decode {f32['candle_decode_1'][0]:.1f}, prefill {f32['candle_prefill_512'][0]:.1f} tok/s."]
    if any("file_s" in s["ours"] for s in dtypes.values()):
        tokens = {d: (s["peer"]["file_tokens"][-1], s["ours"]["file_tokens"][-1], s["ours"]["file_generated"][-1]) for d, s in dtypes.items() if "file_s" in s["ours"]}
        lines += ["", "File: temperature 0, at most 64 tokens, end-of-sequence honoured and nothing else; 16 of the 64 prompts repeat an earlier one exactly and 16 share "
                  "a long beginning, which llmopt answers and prefills once. llmopt's time is the whole process, loading included; the server's starts when it is "
                  "ready. Answer tokens (llama.cpp / llmopt / of these generated): " + ", ".join(f"{d} {t[0]} / {t[1]} / {t[2]}" for d, t in tokens.items()) + "."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
