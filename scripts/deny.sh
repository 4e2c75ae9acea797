#!/usr/bin/env bash
# Licences, bans and sources of all crates, by .deny.toml. Needs cargo-deny: cargo install --locked cargo-deny
set -eu
cd "$(dirname "$0")/.."
cargo deny --version > /dev/null 2>&1 || { echo "cargo-deny is missing: cargo install --locked cargo-deny" >&2; exit 2; }
cargo deny --locked check licenses bans sources
