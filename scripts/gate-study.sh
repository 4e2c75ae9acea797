#!/usr/bin/env bash
# How often is the gate of `llmopt bench` wrong on this machine? Records rounds without and with a 10 % delay of every forward pass, replays
# them (10,000 resamplings for each line), then runs 5 real A/A benches and 3 with the delay through the gate. Needs a quiet machine.
#   scripts/gate-study.sh [OUT]      default OUT: results/gate-study
# In the environment: ROUNDS (60 recorded), RUN_ROUNDS (24 of each real run), PHASE (3: the phase with the quickest rounds, about 3 s on two
# cores), MAX_REGRESSION (3), DELAY (10), and LLMOPT_ARGS for more arguments, such as another model. With the defaults about 20 minutes.
set -eu
out=${1:-results/gate-study}
rounds=${ROUNDS:-60} run_rounds=${RUN_ROUNDS:-24} phase=${PHASE:-3} threshold=${MAX_REGRESSION:-3} delay=${DELAY:-10}
llmopt=${LLMOPT:-target/release/llmopt}
mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# shellcheck disable=SC2206 # arguments are meant to be split
plan=(bench --phase "$phase" --rounds-only --time-budget 3000 --progress never ${LLMOPT_ARGS:-})

record() { # NAME ARGS...: one long bench, its result kept as OUT/NAME.json
    local name=$1; shift
    echo "recording $rounds rounds: $name" >&2
    "$llmopt" "${plan[@]}" --rounds "$rounds" --out "$scratch/$name" -q "$@" > /dev/null
    cp "$scratch/$name"/*/result.json "$out/$name.json"
}

run() { # NAME DELAY: one real bench through the gate, as a line of the report
    local name=$1 status=0 lines
    echo "real run: $name" >&2
    lines=$("$llmopt" "${plan[@]}" --rounds "$run_rounds" --out "$scratch/runs" --test-delay "$2" --baseline "$out/plain.json" \
        --max-regression "$threshold" 2>&1 > /dev/null) || status=$?
    # 0: the gate passed; 3: it failed. Anything else is no answer.
    case $status in 0 | 3) ;; *) echo "$lines" >&2; exit "$status" ;; esac
    echo "* $name: exit status $status. $(echo "$lines" | sed -n 's/^llmopt: gate: //p' | paste -sd ';' | sed 's/;/; /g')"
}

begin=$SECONDS
record plain
record delayed --test-delay "$delay"
report=$scratch/README.md
{
    echo "# Error rates of the gate"
    echo
    echo "\`scripts/gate-study.sh\` on $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), phase $phase, $(date -u +%F), $("$llmopt" --version)."
    echo "The delay makes every forward pass of every configuration take $delay % longer; the fixed reference is not delayed."
    echo
    echo "## False alarms: the same program on both sides"
    echo
    "$llmopt" bench --replay "$out/plain.json"
    echo
    echo "## Detection: every forward pass $delay % longer"
    echo
    "$llmopt" bench --replay "$out/plain.json" --replay-against "$out/delayed.json"
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
