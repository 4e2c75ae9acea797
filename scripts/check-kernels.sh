#!/usr/bin/env bash
# The kernels at odd sizes and steps of tiny models under AddressSanitizer, and under valgrind (memcheck) if it is installed; whole models,
# the right ones of tests/families.rs and the malformed ones of tests/malformed.rs, under AddressSanitizer. In all of them
# weights, keys and values lie in heap blocks exactly as long as promised (`--cfg watched_arenas`), so that a read one lane past the end
# is seen; that it is seen is tried first. Ends with 1 at the first finding.
#   scripts/check-kernels.sh [asan|models|valgrind]     all unless one is named; the first two share a build, the last has its own (minutes)
#
# AddressSanitizer is a nightly feature, which RUSTC_BOOTSTRAP=1 switches on in the stable compiler; only this package is instrumented, so
# that the dependencies need not be built again. It runs every kernel set of the CPU. valgrind's CPU has no AVX-512: there the sets are
# portable and AVX2, and only the shorter tests run. The tests print the sets they ran.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
cd "$(dirname "$0")/.."
mkdir -p target

# A wrapper instead of RUSTFLAGS: it sees the crates of this package alone, and cargo keeps its results apart from ordinary ones.
# Optimised little: what is read and written is the same.
build() { # NAME FLAGS TARGETS → paths of the tests' programs, a line each, the unit tests' first
    printf '#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec "$@" --cfg watched_arenas %s\n' "$2" >"target/rustc-$1"
    chmod +x "target/rustc-$1"
    # shellcheck disable=SC2086
    RUSTC_WORKSPACE_WRAPPER=$PWD/target/rustc-$1 cargo --config 'profile.release.package.llmopt.opt-level=1' \
        test --release --locked $3 --no-run --message-format=json | python3 -c '
import json, sys
built = [m for m in map(json.loads, sys.stdin) if m.get("executable") and m["profile"]["test"]]
print(*(m["executable"] for m in sorted(built, key=lambda m: m["target"]["name"] != "llmopt")), sep="\n")'
}
check() { # COMMAND...: the tests' program under what watches it, then TESTS
    if "${@:1:$#-1}" --ignored a_read_past_the_end_of_an_arena_is_seen >target/watched.log 2>&1 ||
        ! grep -q "heap-buffer-overflow\|Invalid read" target/watched.log; then
        cat target/watched.log
        echo "a read past the end of an arena went unseen: nothing below would mean anything"
        exit 1
    fi
    echo "a read past the end is seen: $(grep -o "heap-buffer-overflow\|Invalid read of size 1" target/watched.log | head -1)"
    # shellcheck disable=SC2086
    "${@:1:$#-1}" --nocapture ${!#} 2>&1 | grep -v '^$'
}

what=${1:-all}
case $what in all | asan | models | valgrind) ;; *) echo "check-kernels: asan, models or valgrind, not '$what'" >&2; exit 2 ;; esac
if [ "$what" != valgrind ]; then
    echo "== AddressSanitizer"
    mapfile -t programs < <(build asan -Zsanitizer=address "--lib --test families --test malformed")
    # Allocations that are meant to fail do; leaks are not what is looked for.
    export RUST_BACKTRACE=0 ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
    [ "$what" = models ] || check "${programs[0]}" "kernels:: decoder::native::"
    if [ "$what" != asan ]; then
        echo "== whole models under AddressSanitizer"
        for program in "${programs[@]:1}"; do
            # Its shadow takes 20 TB of address space: what counts address space is left out.
            "$program" --nocapture --skip the_program_ends_with_status_2 --skip claim_to_be_large 2>&1 | grep -v '^$'
        done
    fi
fi
if [ "$what" = all ] || [ "$what" = valgrind ]; then
    echo "== valgrind"
    command -v valgrind >/dev/null || { echo "valgrind is not installed; left out" && exit; }
    program=$(build heap "" --lib)
    # Workers that spin would otherwise wait for each other a whole time slice.
    check valgrind --quiet --error-exitcode=1 --leak-check=no --fair-sched=yes "$program" --test-threads=1 \
        "kernels::tests kernels::panels kernels::arena decoder::native::tests::argmax decoder::native::tests::logits"
fi
