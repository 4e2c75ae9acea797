#!/usr/bin/env bash
# The kernels' tests (every kernel set at odd sizes, buffers exactly as long as promised) under AddressSanitizer, and under valgrind if
# it is installed. AddressSanitizer needs a nightly feature, which RUSTC_BOOTSTRAP=1 switches on in the stable compiler. valgrind does not
# know AVX-512: there the sets that its virtual CPU has are tested. Takes minutes; builds into target/asan and target/release.
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')

echo "== AddressSanitizer"
RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" cargo test --release --target "$host" --target-dir target/asan --lib kernels::

if command -v valgrind >/dev/null; then
    echo "== valgrind"
    binary=$(cargo test --release --lib --no-run --message-format=json 2>/dev/null |
        sed -n 's/.*"executable":"\([^"]*llmopt-[^"]*\)".*/\1/p' | tail -1)
    valgrind --quiet --error-exitcode=1 --leak-check=no "$binary" --test-threads=1 kernels::tests kernels::panels kernels::arena
else
    echo "== valgrind is not installed; left out"
fi
