#!/usr/bin/env bash
# Runs one fuzz target for some seconds: scripts/fuzz.sh TARGET SECONDS. Targets: the files of tests/fuzz/fuzz_targets.
# Needs cargo-fuzz and a nightly toolchain (or RUSTC_BOOTSTRAP=1, set below where there is none). New inputs are kept outside
# the repository, in target/fuzz-corpus/TARGET; tests/fuzz/corpus/TARGET holds the small committed seeds. A finding is written to tests/fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:?usage: scripts/fuzz.sh TARGET SECONDS; targets: $(cd tests/fuzz/fuzz_targets && ls | sed 's/\.rs$//' | tr '\n' ' ')}
seconds=${2:?usage: scripts/fuzz.sh TARGET SECONDS}
toolchain=+nightly
if ! cargo +nightly --version >/dev/null 2>&1; then
    toolchain=
    export RUSTC_BOOTSTRAP=1
fi
mkdir -p "target/fuzz-corpus/$target" "tests/fuzz/corpus/$target"
# 64 KiB hold the smallest valid models; allocations above 512 MiB and inputs above 10 s count as findings.
exec cargo $toolchain fuzz run --fuzz-dir tests/fuzz --target-dir target/fuzz "$target" "target/fuzz-corpus/$target" "tests/fuzz/corpus/$target" -- \
    -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=2048 -malloc_limit_mb=512 -timeout=10 -print_final_stats=1 \
    $( [ -f "tests/fuzz/$target.dict" ] && echo "-dict=tests/fuzz/$target.dict" )
