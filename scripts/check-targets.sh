#!/usr/bin/env bash
# `cargo check` of what the usual build does not see: features off, the fuzz targets, and other systems as far as their std is here
# (rustup target list --installed). All in the target folder of the usual build. Exit status 1 at the first that fails.
#   scripts/check-targets.sh [features|fuzz|systems]     all unless one is named
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
cd "$(dirname "$0")/.."
want=${1:-all}
if [ "$want" = all ] || [ "$want" = features ]; then
    cargo check --release --locked --no-default-features
fi
if [ "$want" = all ] || [ "$want" = fuzz ]; then
    cargo check --release --locked --manifest-path tests/fuzz/Cargo.toml --target-dir target
fi
if [ "$want" = all ] || [ "$want" = systems ]; then
    for target in aarch64-unknown-linux-gnu aarch64-apple-darwin x86_64-pc-windows-msvc; do
        if rustup target list --installed 2> /dev/null | grep -qx "$target"; then
            # Without features: C code of dependencies would need that system's compiler.
            cargo check --release --locked --no-default-features --target "$target"
        else
            echo "check-targets: $target: its std is not installed here (rustup target add $target): NOT CHECKED" >&2
        fi
    done
fi
