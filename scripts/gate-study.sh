#!/usr/bin/env bash
# How often is the gate of `llmopt bench` wrong on this machine? Records rounds without and with a 10 % delay of every forward pass, replays
# them (10,000 resamplings for each line), then records 5 whole A/A runs and 3 with the delay and judges them. Needs a quiet machine.
#   scripts/gate-study.sh [OUT]      default OUT: results/gate-study
# In the environment: ROUNDS (60 recorded), RUN_ROUNDS (24 of each whole run), PHASE (3: the phase with the quickest rounds, about 3 s on two
# cores), MAX_REGRESSION (3), DELAY (10), PAUSE (0 seconds between whole runs; 3600 makes a day of them), and LLMOPT_ARGS for more
# arguments, such as another model. With the defaults about 20 minutes.
set -eu
case ${1:-} in -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
cd "$(dirname "$0")/.."
out=${1:-results/gate-study}
rounds=${ROUNDS:-60} run_rounds=${RUN_ROUNDS:-24} phase=${PHASE:-3} threshold=${MAX_REGRESSION:-3} delay=${DELAY:-10} pause=${PAUSE:-0}
cargo build --release --quiet --example gate_study
study=${STUDY:-target/release/examples/gate_study}
mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

record() { # FILE ROUNDS DELAY
    # shellcheck disable=SC2086 # arguments are meant to be split
    "$study" record --phase "$phase" --rounds "$2" --delay "$3" --out "$1" ${LLMOPT_ARGS:-}
}

run() { # NAME DELAY: one whole run, as a line of the report
    local name=$1 status=0 line
    echo "whole run: $name" >&2
    record "$scratch/run.json" "$run_rounds" "$2"
    line=$("$study" gate --max-regression "$threshold" "$out/plain.json" "$scratch/run.json") || status=$?
    # 0: the gate passed; 3: it failed. Anything else is no answer.
    case $status in 0 | 3) ;; *) exit "$status" ;; esac
    echo "* $name, $(date -u +%H:%M): exit status $status, $line"
    sleep "$pause"
}

begin=$SECONDS
echo "recording $rounds rounds twice" >&2
record "$out/plain.json" "$rounds" 0
record "$out/delayed.json" "$rounds" "$delay"
report=$scratch/README.md
{
    echo "# Error rates of the gate"
    echo
    echo "\`scripts/gate-study.sh\` on $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), phase $phase, $(date -u +%F)."
    echo "The delay makes every forward pass of every configuration take $delay % longer; the fixed reference is not delayed."
    echo
    echo "## False alarms: the same program on both sides"
    echo
    "$study" replay "$out/plain.json"
    echo
    echo "## Detection: every forward pass $delay % longer"
    echo
    "$study" replay "$out/plain.json" "$out/delayed.json"
    echo
    echo "\"Same slices\" draws what two runs with one \`--seed\` compare: the same slices on both sides. \"Blocks\" draws consecutive rounds of any slices."
    echo
    echo "## Whole runs of $run_rounds rounds against the recorded one (--max-regression $threshold)"
    echo
    for i in 1 2 3 4 5; do run "A/A $i" 0; done
    for i in 1 2 3; do run "delayed $i" "$delay"; done
} > "$report"
# Written only when it is whole.
cp "$report" "$out/README.md"
cat "$out/README.md"
echo "took $(((SECONDS - begin) / 60)) min $(((SECONDS - begin) % 60)) s" >&2
