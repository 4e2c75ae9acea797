#!/usr/bin/env python3
"""Shows that tests/exactness.rs bites: in a copy of the sources one sum is split, or ordered, by the number of threads, and the test must
fail. Usage: scripts/mutation_check.py [NUMBER...] (a few minutes; exit status 1 if a mutation goes unnoticed or no longer applies)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "target" / "mutation-check"

# The number of threads of the team made last, where the mutations can see it.
PLUMBING = [
    ("src/kernels/pool.rs", "    pub fn new(threads: usize) -> std::io::Result<Pool> {\n",
     "    pub fn new(threads: usize) -> std::io::Result<Pool> {\n        MUTANT.store(threads, std::sync::atomic::Ordering::Relaxed);\n"),
    ("src/kernels/pool.rs", "use std::", "pub(crate) static MUTANT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);\nuse std::"),
]
THREADS = "super::pool::MUTANT.load(std::sync::atomic::Ordering::Relaxed)"

# (what, the test that must fail, file, code, mutated code)
MUTATIONS = [
    ("float sums are split into blocks by the number of threads", "f32_and_bf16",
     "src/kernels/gemm.rs", "let kc = (g.k - k).min(BLOCK);", f"let kc = (g.k - k).min(BLOCK / {THREADS} / 2 * 2);"),
    ("4-bit sums start at a block given by the number of threads", "q4_1_weights",
     "src/kernels/gemm.rs", "for b in 0..blocks {\n            let w = w.add(b * FOUR_BLOCK);",
     f"for b in 0..blocks {{\n            let b = (b + {THREADS}) % blocks;\n            let w = w.add(b * FOUR_BLOCK);"),
    ("attention runs backwards with an even number of threads", "q8_0_weights",
     "src/kernels/units.rs", "for span in 0..spans {\n",
     f"for span in 0..spans {{\n            let span = if {THREADS} % 2 == 0 {{ spans - 1 - span }} else {{ span }};\n"),
]


def edit(file, old, new):
    path = COPY / file
    text = path.read_text()
    if old not in text:
        sys.exit(f"{file} no longer has {old!r}: write this mutation anew")
    path.write_text(text.replace(old, new, 1))


def test(name):
    """(built, passed)."""
    cargo = ["cargo", "test", "--release", "-q", "--test", "exactness"]
    environment = dict(os.environ, CARGO_TARGET_DIR=str(ROOT / "target"), RUST_BACKTRACE="0", PROPTEST_MAX_SHRINK_ITERS="0")
    build = subprocess.run(cargo + ["--no-run"], cwd=COPY, env=environment, capture_output=True, text=True)
    if build.returncode:
        print(build.stderr, file=sys.stderr)
        return False, False
    run = subprocess.run(cargo + [name], cwd=COPY, env=environment, capture_output=True, text=True)
    if "running 1 test" not in run.stdout:
        sys.exit(f"no test is called {name}")
    return True, run.returncode == 0


def main():
    unnoticed = 0
    chosen = [int(i) for i in sys.argv[1:]] or range(len(MUTATIONS))
    for what, name, file, old, new in (MUTATIONS[i] for i in chosen):
        shutil.rmtree(COPY, ignore_errors=True)
        COPY.mkdir(parents=True)
        for part in ["Cargo.toml", "Cargo.lock", "src", "tests", "benches", "prompts", "README.md"]:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, COPY / part)
            elif source.exists():
                shutil.copy(source, COPY / part)
        for change in PLUMBING + [(file, old, new)]:
            edit(*change)
        built, passed = test(name)
        verdict = "does not compile" if not built else "NOT NOTICED" if passed else "noticed"
        unnoticed += verdict != "noticed"
        print(f"{what}: {verdict} ({name})", flush=True)
    shutil.rmtree(COPY, ignore_errors=True)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
