#!/usr/bin/env python3
"""Shows that tests/exactness.rs bites: in a copy of the sources one sum is split, or ordered, by the number of threads, and the test must
fail; where the copy only notes the number of threads, it must pass. Usage: scripts/mutation_check.py [--check | NUMBER...]
Some minutes (the library is built for each, optimised little); exit status 1 if a mutation goes unnoticed or no longer applies.
--check builds nothing: it says whether each mutation finds its code exactly once (tests/architecture.rs runs it)."""
import sys

if "--help" in sys.argv or "-h" in sys.argv:
    sys.exit(print(__doc__))

import os
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))
COPY = Path(TARGET) / "mutation-check"

# The number of threads of the team made last, where the mutations can see it.
PLUMBING = [
    ("src/kernels/pool.rs", "    pub fn new(threads: usize) -> std::io::Result<Pool> {\n",
     "    pub fn new(threads: usize) -> std::io::Result<Pool> {\n        MUTANT.store(threads, std::sync::atomic::Ordering::Relaxed);\n"),
    ("src/kernels/pool.rs", "/// What a phase runs: (worker, unit).\n",
     "pub(crate) static MUTANT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);\n/// What a phase runs: (worker, unit).\n"),
]
THREADS = "super::pool::MUTANT.load(std::sync::atomic::Ordering::Relaxed)"

# (what, the test that must fail, edits: file, code, mutated code)
MUTATIONS = [
    ("float sums are split into blocks by the number of threads", "f32_and_bf16", [
        ("src/kernels/gemm.rs",
         "for block in 0..g.k.div_ceil(BLOCK).max(1) {",
         f"let most = BLOCK / {THREADS} / 2 * 2;\n        for block in 0..g.k.div_ceil(most).max(1) {{"),
        ("src/kernels/gemm.rs", "float_block::<S, W, 2>(g, panel, block * BLOCK)", "float_block::<S, W, 2>(g, panel, block * most)"),
        ("src/kernels/gemm.rs", "float_block::<S, W, 1>(g, panel, block * BLOCK)", "float_block::<S, W, 1>(g, panel, block * most)"),
        ("src/kernels/gemm.rs", "let kc = (g.k - k).min(BLOCK);", f"let kc = (g.k - k).min(BLOCK / {THREADS} / 2 * 2);")]),
    ("4-bit sums run backwards with an even number of threads", "q4_1_weights", [
        ("src/kernels/gemm.rs", "let mut left = g.blocks;\n",
         f"let mut left = g.blocks;\n        let back = {THREADS} % 2 == 0 && left % Q::SUPER == 0 && left > 0;\n"
         "        if back {\n            group = group.wrapping_add((left / Q::SUPER - 1) * Q::BYTES);\n"
         "            x = x.wrapping_add(left - Q::SUPER);\n        }\n"),
        ("src/kernels/gemm.rs", "group = group.wrapping_add(Q::BYTES);\n",
         "if back {\n                x = x.wrapping_sub(2 * parts);\n                group = group.wrapping_sub(Q::BYTES);\n"
         "            } else {\n                group = group.wrapping_add(Q::BYTES);\n            }\n")]),
    ("attention runs backwards with an even number of threads", "q8_0_weights", [
        ("src/kernels/attention.rs", "for span in behind..spans {\n",
         f"for span in behind..spans {{\n            let span = if {THREADS} % 2 == 0 {{ spans - 1 - (span - behind) }} else {{ span }};\n"
         "            next = Span::of(a, &u, span);\n")]),
]
# First the copy with nothing but the plumbing: the tests pass there.
CONTROL = ("control: the number of threads is noted and not used", [name for _, name, _ in MUTATIONS])


def applied(edits):
    """The files that these edits change, as they are then; what does not stand in its file exactly once is an error."""
    texts = {}
    for file, old, new in edits:
        text = texts.setdefault(file, (ROOT / file).read_text())
        if text.count(old) != 1:
            raise LookupError(f"{file} has {text.count(old)} times, not once: {old!r}; write this mutation anew")
        texts[file] = text.replace(old, new)
    return texts


def check():
    wrong = 0
    for what, _, edits in MUTATIONS:
        try:
            applied(PLUMBING + edits)
        except LookupError as error:
            wrong += 1
            print(f"{what}: {error}", file=sys.stderr)
    print("every mutation finds its code" if not wrong else f"{wrong} of {len(MUTATIONS)} mutations no longer find their code")
    return 1 if wrong else 0


def copy(edits):
    try:
        texts = applied(PLUMBING + edits)
    except LookupError as error:
        sys.exit(str(error))
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    for part in ["Cargo.toml", "Cargo.lock", "src", "tests", "benches", "prompts", "README.md"]:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, COPY / part)
        elif source.exists():
            shutil.copy(source, COPY / part)
    for file, text in texts.items():
        (COPY / file).write_text(text)


def test(names):
    """(built, the tests of these names that passed)."""
    cargo = ["cargo", "--config", "profile.release.package.llmopt.opt-level=1", "test", "--release", "--locked", "-q", "--test", "exactness"]
    environment = dict(os.environ, CARGO_TARGET_DIR=TARGET, CARGO_INCREMENTAL="1", RUST_BACKTRACE="0",
                       PROPTEST_MAX_SHRINK_ITERS="0")
    build = subprocess.run(cargo + ["--no-run"], cwd=COPY, env=environment, capture_output=True, text=True)
    if build.returncode:
        print(build.stderr, file=sys.stderr)
        return False, []
    passed = []
    for name in names:
        run = subprocess.run(cargo + [name], cwd=COPY, env=environment, capture_output=True, text=True)
        if "running 1 test" not in run.stdout:
            sys.exit(f"no test is called {name}, or several are: {run.stdout[-500:]}")
        said = [line.strip() for line in run.stdout.splitlines() if "Test failed" in line or "other scores" in line or "other tokens" in line]
        print(f"    {name}: {'passed' if run.returncode == 0 else (said or ['failed'])[0][:150]}", flush=True)
        passed += [name] * (run.returncode == 0)
    return True, passed


def main():
    if sys.argv[1:] == ["--check"]:
        return check()
    wrong = 0
    chosen = [MUTATIONS[int(i)] for i in sys.argv[1:]] or MUTATIONS
    for what, names, edits in [(*CONTROL, [])] * (len(sys.argv) == 1) + [(what, [name], edits) for what, name, edits in chosen]:
        began = time.time()
        print(f"{what}", flush=True)
        copy(edits)
        built, passed = test(names)
        if edits:
            verdict = "does not compile" if not built else "NOT NOTICED" if passed else "noticed"
        else:
            verdict = "passes" if passed == names else "FAILS: what follows proves nothing"
        wrong += verdict not in ("noticed", "passes")
        print(f"  → {verdict} ({time.time() - began:.0f} s)", flush=True)
    shutil.rmtree(COPY, ignore_errors=True)
    print("every mutation was noticed" if not wrong else f"{wrong} went wrong", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
