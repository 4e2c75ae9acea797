#!/usr/bin/env bash
# Licences, bans and sources of all crates, by .deny.toml, and the advisories about them. Needs cargo-deny: cargo install --locked cargo-deny
# Exit status: 0 all is well, 1 something is not, 2 cargo-deny is missing, 3 the advisory database could not be fetched: nothing is known
# of advisories then, so that this is no pass.
set -u
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,4s/^# //p' "$0"; exit 0 ;; esac
cargo deny --version > /dev/null 2>&1 || {
    echo "deny: cargo-deny is missing, NOTHING WAS CHECKED: cargo install --locked cargo-deny" >&2
    exit 2
}
cargo deny --locked check licenses bans sources || exit 1
if ! cargo deny --locked fetch db; then
    echo "deny: the advisory database cannot be fetched from here: ADVISORIES WERE NOT CHECKED" >&2
    exit 3
fi
cargo deny --locked check --disable-fetch advisories || exit 1
