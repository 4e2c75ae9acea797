#!/usr/bin/env bash
# Runs the `run:` steps of .github/workflows/speed.yml here, in their order, as a runner would: first as the main branch without a baseline,
# then once more against the baseline that the first pass kept. Checkout, caches and uploads are left out.
#   scripts/gate-locally.sh [--quick]     --quick puts --quick into the bench's flags; WORK=target/gate-locally
# LLMOPT=PROGRAM measures that program, and leaves the Build step out too.
# Exit status: that of the second pass's bench (0 or 3), or of the step that failed.
set -euo pipefail
quick=
case ${1:-} in -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;; --quick) quick=1 ;; esac
cd "$(dirname "$0")/.."
work=${WORK:-target/gate-locally}
rm -rf "$work"
mkdir -p "$work"
python3 - "$work" "$quick" << 'PY'
import re, sys
work, quick = sys.argv[1], sys.argv[2]
steps, name, at = [], None, None
for line in open(".github/workflows/speed.yml"):
    indent = len(line) - len(line.lstrip())
    if m := re.match(r"\s*- name: (.*)", line):
        name, at = m[1], None
    elif m := re.match(r"\s*run: \|", line):
        steps.append([name, ""]); at = indent
    elif m := re.match(r"\s*run: (.+)", line):
        steps.append([name, m[1] + "\n"]); at = None
    elif at is not None and line.strip() and indent <= at:
        at = None
    elif at is not None:
        steps[-1][1] += line
assert [s[0] for s in steps] == ["Build", "Bench", "New baseline"], steps
for i, (name, text) in enumerate(steps):
    if quick:
        text = text.replace("--rounds 24 --time-budget 600", "--quick")
    open(f"{work}/{i}.sh", "w").write("# " + name + "\n" + text)
PY
root=$PWD
program=${LLMOPT:+$(realpath "$LLMOPT")}
for pass in 1 2; do
    for step in "$work"/0.sh "$work"/1.sh "$work"/2.sh; do
        echo "== pass $pass: $(head -1 "$step")"
        status=0
        if [ -n "$program" ] && [ "$(basename "$step")" = 0.sh ]; then
            rm -rf "$work/target" "$work/bench-results"
            mkdir -p "$work/target/release"
            ln -s "$program" "$work/target/release/llmopt"
            echo "left out: $program"
            continue
        fi
        # As a runner does: bash -e, the summary page in a file, results fresh for each job.
        (
            mkdir -p "$work/home-$pass"
            cd "$work"
            [ "$(basename "$step")" != 0.sh ] || rm -rf bench-results
            [ -n "$program" ] || ln -sfn "$root/target" target
            [ -e Cargo.toml ] || ln -sfn "$root/Cargo.toml" Cargo.toml
            if [ "$(basename "$step")" = 0.sh ]; then cd "$root"; fi
            GITHUB_STEP_SUMMARY=$root/$work/summary-$pass.md bash -e "$root/$step"
        ) || status=$?
        [ "$status" = 0 ] || { echo "pass $pass ended with $status"; exit "$status"; }
    done
done
ls "$work"/summary-*.md "$work"/bench-results/*/junit.xml
