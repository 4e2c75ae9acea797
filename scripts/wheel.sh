#!/usr/bin/env bash
# Builds a wheel with maturin, installs it into an empty virtual environment and runs `llmopt` from there.
#   scripts/wheel.sh [OUT] [maturin's flags]     default OUT: target/wheels
# FEATURES=parquet (the default) or none; GLIBC=2.17 builds for Linux from 2014 on, with zig as the C compiler and linker (PyPI's ziglang);
# MODEL=FILE answers a prompt with that model from the installed wheel.
# Needs python3 with venv and pip; maturin is installed into a virtual environment of its own below target/.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
cd "$(dirname "$0")/.."
python=$(command -v python3 || command -v python)
# $PWD/ because Windows has no realpath -m for what is not there yet.
case ${1:-target/wheels} in /* | ?:*) out=${1:-} ;; *) out=$PWD/${1:-target/wheels} ;; esac
shift || true
features=${FEATURES-parquet}
tools=$PWD/target/wheel-tools
programs() { if [ -d "$1/Scripts" ]; then echo "$1/Scripts"; else echo "$1/bin"; fi; }
"$python" -m venv "$tools"
need=maturin
flags=(--release --locked --out "$out" --features "$features")
if [ -n "${GLIBC:-}" ]; then
    need='maturin ziglang'
    flags+=(--zig --compatibility "manylinux_${GLIBC/./_}" --target "$(uname -m)-unknown-linux-gnu")
fi
# shellcheck disable=SC2086 # two names
"$(programs "$tools")/python" -m pip install --quiet --disable-pip-version-check $need
rm -rf "$out"
PATH=$(programs "$tools"):$PATH
(cd scripts/wheel && maturin build "${flags[@]}" "$@")
wheel=$(ls "$out"/*.whl)
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
"$python" -m venv "$empty/venv"
installed=$(programs "$empty/venv")
"$installed/python" -m pip install --quiet --disable-pip-version-check --no-index "$wheel"
model=${MODEL:+$(realpath "$MODEL")}
cd "$empty"
"$installed/llmopt" --version
"$installed/llmopt" run --help > /dev/null
if [ -n "$model" ]; then
    "$installed/llmopt" run -p hi -m "$model" --max-tokens 8 -q
fi
ls -l "$wheel" "$installed"/llmopt*
