#!/usr/bin/env bash
# Runs one fuzz target for some seconds: scripts/fuzz.sh TARGET SECONDS. Targets: the files of tests/fuzz/fuzz_targets.
# Needs cargo-fuzz and a nightly toolchain (or RUSTC_BOOTSTRAP=1, set below where there is none). New inputs are kept outside
# the repository, in target/fuzz-corpus/TARGET; tests/fuzz/corpus/TARGET holds the small committed seeds. A finding is written to
# tests/fuzz/artifacts. With PLAIN=1 only llmopt and the template engine are instrumented, without AddressSanitizer, by the stable
# compiler and with the dependencies of the release build as they are: minutes instead of an hour to build on two cores.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
cd "$(dirname "$0")/.."
target=${1:?usage: scripts/fuzz.sh TARGET SECONDS; targets: $(cd tests/fuzz/fuzz_targets && ls | sed 's/\.rs$//' | tr '\n' ' ')}
seconds=${2:?usage: scripts/fuzz.sh TARGET SECONDS}
mkdir -p "target/fuzz-corpus/$target" "tests/fuzz/corpus/$target" tests/fuzz/artifacts
# 64 KiB hold the smallest valid models; allocations above 512 MiB and inputs above 10 s count as findings.
options=(-max_total_time="$seconds" -max_len=65536 -rss_limit_mb=2048 -malloc_limit_mb=512 -timeout=10 -print_final_stats=1)
[ -f "tests/fuzz/$target.dict" ] && options+=(-dict="tests/fuzz/$target.dict")
corpora=("target/fuzz-corpus/$target" "tests/fuzz/corpus/$target")
if [ -n "${PLAIN:-}" ]; then
    cat > target/fuzz-rustc.sh <<'RUSTC'
#!/usr/bin/env bash
rustc=$1; shift
case " $* " in
    *"--crate-name llmopt "*src/lib.rs* | *fuzz_targets/* | *"--crate-name minijinja "*)
        RUSTC_BOOTSTRAP=1 exec "$rustc" "$@" --cfg fuzzing -Cdebug-assertions=on -Coverflow-checks=on -Cpasses=sancov-module \
            -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
            -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares ;;
    *) exec "$rustc" "$@" ;;
esac
RUSTC
    chmod +x target/fuzz-rustc.sh
    # A copy of the release build, or a build of its own where there is none.
    [ -d target/fuzz-plain ] || { mkdir -p target/fuzz-plain && { cp -a target/release target/fuzz-plain/ 2>/dev/null || true; }; }
    RUSTC_WRAPPER=$PWD/target/fuzz-rustc.sh CARGO_INCREMENTAL=0 cargo build --release --manifest-path tests/fuzz/Cargo.toml \
        --target-dir target/fuzz-plain --config profile.release.debug=0 --bin "$target"
    # Without AddressSanitizer nothing counts single allocations: the address space is the limit.
    ulimit -v 6000000
    exec "target/fuzz-plain/release/$target" "${corpora[@]}" "${options[@]}" -artifact_prefix="tests/fuzz/artifacts/$target-"
fi
toolchain=+nightly
if ! cargo +nightly --version >/dev/null 2>&1; then
    toolchain=
    export RUSTC_BOOTSTRAP=1
fi
exec cargo $toolchain fuzz run --fuzz-dir tests/fuzz --target-dir target/fuzz "$target" "${corpora[@]}" -- "${options[@]}"
