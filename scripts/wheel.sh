#!/usr/bin/env bash
# Builds a wheel with maturin, installs it into an empty virtual environment and runs `llmopt` from there.
#   scripts/wheel.sh [OUT] [maturin's flags]     default OUT: target/wheels; FEATURES=parquet (the default) or none
# Needs python3 with venv and pip; maturin is installed into a virtual environment of its own below target/.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-target/wheels}")
shift || true
features=${FEATURES-parquet}
tools=target/wheel-tools
[ -x "$tools/bin/maturin" ] || { python3 -m venv "$tools"; "$tools/bin/pip" install --quiet maturin; }
maturin=$(realpath "$tools/bin/maturin")
rm -rf "$out"
(cd scripts/wheel && "$maturin" build --release --locked --out "$out" --features "$features" "$@")
wheel=$(ls "$out"/*.whl)
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
python3 -m venv "$empty/venv"
"$empty/venv/bin/pip" install --quiet --no-index "$wheel"
cd "$empty"
venv/bin/llmopt --version
venv/bin/llmopt run --help > /dev/null
ls -l "$wheel" venv/bin/llmopt
