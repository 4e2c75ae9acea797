#!/usr/bin/env bash
# How often is the gate of `llmopt bench` wrong on this machine? Records rounds without and with a 10 % delay of the decode step, replays
# them (10,000 resamplings), then runs 5 real A/A benches and 3 with the delay through the gate. Needs a quiet machine.
#   scripts/gate-study.sh [OUT]      default OUT: results/gate-study
# ROUNDS (60), PHASE (3), RECORD_S (900) and RUN_S (120) in the environment change its size.
set -eu
out=${1:-results/gate-study}
rounds=${ROUNDS:-60} phase=${PHASE:-3} record_s=${RECORD_S:-900} run_s=${RUN_S:-120}
llmopt=${LLMOPT:-target/release/llmopt}
mkdir -p "$out"
plan=(bench --phase "$phase" --concurrency none --format csv -q)

record() { # NAME ARGS...: one long bench, its result kept as OUT/NAME.json
    local name=$1 folder; shift
    folder=$(mktemp -d)
    "$llmopt" "${plan[@]}" --rounds "$rounds" --time-budget "$record_s" --out "$folder" "$@" > /dev/null
    cp "$folder"/*/result.json "$out/$name.json"
    rm -r "$folder"
}

record plain
record delayed --test-delay 10
{
    echo "# Error rates of the gate"
    echo
    echo "\`scripts/gate-study.sh\` on $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), phase $phase, $(date -u +%F)."
    echo
    echo "## False alarms: the same program on both sides"
    echo
    "$llmopt" bench --replay "$out/plain.json"
    echo
    echo "## Detection: the decode step 10 % slower"
    echo
    "$llmopt" bench --replay "$out/plain.json" --replay-against "$out/delayed.json"
    echo
    echo "## Whole runs against the recorded one (--max-regression ${MAX_REGRESSION:-3})"
    echo
    for run in "A/A 1" "A/A 2" "A/A 3" "A/A 4" "A/A 5" "delayed 1" "delayed 2" "delayed 3"; do
        delay=0
        case $run in delayed*) delay=10 ;; esac
        folder=$(mktemp -d)
        status=0
        lines=$("$llmopt" "${plan[@]}" --time-budget "$run_s" --out "$folder" --test-delay "$delay" --baseline "$out/plain.json" \
            --max-regression "${MAX_REGRESSION:-3}" 2>&1 > /dev/null) || status=$?
        echo "* $run: exit status $status. $(echo "$lines" | tr '\n' ' ')"
        rm -r "$folder"
    done
} > "$out/README.md"
cat "$out/README.md"
