#!/usr/bin/env bash
# The machine fails, and llmopt says so: memory limits, a small full disk, one core, a closed home, load. Prints a line for each check
# and ends with 1 if one failed. Usage: scripts/faults.sh [LLMOPT] [MODEL] [PROMPTS]
#   LLMOPT   the program (default target/release/llmopt)
#   MODEL    a small .gguf file, such as tests/common writes (default $TINY, else the alias)
#   PROMPTS  how many prompts the load test has (default 100000)
set -u
case "${1:-}" in -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
llmopt=$(realpath "${1:-target/release/llmopt}")
model=${2:-${TINY:-smollm2-135m}}
[ -e "$model" ] && model=$(realpath "$model")
prompts=${3:-100000}
folder=$(mktemp -d)
trap 'umount "$folder/disk" 2>/dev/null; rm -rf "$folder"' EXIT
cd "$folder" || exit 1
failed=0
check() { # name, condition's status
    if [ "$2" = 0 ]; then echo "ok      $1"; else echo "FAILED  $1"; failed=1; fi
}
run() { "$llmopt" run -m "$model" "$@"; }
seq 1 50 | sed 's/.*/What is & plus &?/' > p.txt

# Memory: at each limit status 0, 2 or 75 and one clear line; never a signal, never an abort.
statuses=""
for mb in $(seq 64 7 1024); do
    (ulimit -v $((mb * 1024)); run p.txt --limit 2 --max-tokens 4 > out 2> err)
    status=$?
    # Only where the status changes.
    [ "$status" = "${last:-}" ] || statuses="$statuses $mb:$status"
    last=$status
    case $status in
        0) ;;
        2 | 75) [ "$(wc -l < err)" = 1 ] || check "one line at ulimit -v ${mb} MB" 1 ;;
        *) check "ulimit -v ${mb} MB: status $status, $(head -c 200 err)" 1 ;;
    esac
done
check "ulimit -v sweep:$statuses" 0

# A disk of 64 KB fills up: whole lines only, status 1; with more room the run goes on and keeps them.
mkdir disk
if mount -t tmpfs -o size=64k tmpfs disk 2> /dev/null; then
    seq 1 400 | sed 's/.*/What is & plus &?/' > many.txt
    run many.txt -q --max-tokens 8 -o disk/out.jsonl 2> err
    status=$?
    [ $status = 1 ] && grep -q disk/out.jsonl err && [ "$(tail -c 1 disk/out.jsonl | xxd -p)" = 0a ]
    check "full disk: status $status, $(wc -l < disk/out.jsonl) whole lines" $?
    cp disk/out.jsonl kept.jsonl
    mount -o remount,size=4m disk
    run many.txt -q --max-tokens 8 -o disk/out.jsonl --resume
    [ "$(wc -l < disk/out.jsonl)" = 400 ] && cmp -n "$(stat -c %s kept.jsonl)" kept.jsonl disk/out.jsonl
    check "resumed with room: $(wc -l < disk/out.jsonl) lines, the first $(wc -l < kept.jsonl) kept" $?
else
    echo "skipped full disk: no right to mount a tmpfs"
fi

# One core; more threads than cores; few descriptors; a small stack; closed home and working folder.
taskset -c 0 "$llmopt" run -m "$model" p.txt -v --limit 4 --max-tokens 4 > out 2> err
[ $? = 0 ] && grep -q "1 thread," err
check "one core: $(grep -o '[0-9]* thread' err)" $?
run p.txt -q --limit 4 --max-tokens 4 --threads 4 | sort > many; run p.txt -q --limit 4 --max-tokens 4 --threads 1 | sort > one
[ "$(wc -l < many)" = 4 ] && [ "$(grep -o '"answer":.*"finish' many)" = "$(grep -o '"answer":.*"finish' one)" ]
check "four threads give the answers of one" $?
(ulimit -n 16; run p.txt -q --limit 2 --max-tokens 4 > out); check "ulimit -n 16" $?
(ulimit -s 1024; run p.txt -q --limit 2 --max-tokens 4 > out); check "ulimit -s 1024" $?
mkdir closed && cp p.txt closed && chmod 555 closed
(cd closed && env -u HOME TMPDIR=/none "$llmopt" run -m "$model" p.txt -q --limit 2 --max-tokens 4 > ../out)
[ -e "$model" ] || true
check "read-only folder, no HOME, bad TMPDIR" $?

# A stopped process goes on.
seq 1 20000 | sed 's/.*/What is & plus &?/' > long.txt
"$llmopt" run -m "$model" long.txt -q --max-tokens 4 -o stopped.jsonl & pid=$!
sleep 0.5; kill -STOP $pid; stopped=$?; sleep 0.1; before=$(wc -l < stopped.jsonl); sleep 2; after=$(wc -l < stopped.jsonl); kill -CONT $pid; wait $pid
[ $? = 0 ] && [ $stopped = 0 ] && [ "$before" = "$after" ] && [ "$after" -lt 20000 ] && [ "$(wc -l < stopped.jsonl)" = 20000 ]
check "stopped for 2 s at $after of 20000 answers and continued" $?

# Load: memory and speed are flat.
rss() { # prompts → peak resident memory in KB and seconds
    seq 1 "$1" | sed 's/.*/What is & plus &?/' > load.txt
    /usr/bin/time -f '%M %e' "$llmopt" run -m "$model" load.txt -q --max-tokens 4 -o /dev/null --overwrite 2>&1 | tail -1
}
if [ -x /usr/bin/time ] && [ "$prompts" -gt 0 ]; then
    read -r small small_s <<< "$(rss 1000)"
    read -r large large_s <<< "$(rss "$prompts")"
    # What is in flight, plus at most 32 bytes a record.
    [ "$large" -le $((small + 32 * prompts / 1024 + 4096)) ]
    check "peak memory: $small KB at 1000 prompts in $small_s s, $large KB at $prompts in $large_s s" $?
    dry() {
        seq 1 "$1" | sed 's/.*/{"id":"r&","prompt":"What is & plus &?"}/' > load.jsonl
        /usr/bin/time -f '%M %e' "$llmopt" run -m "$model" load.jsonl -q --dry-run 2>&1 > /dev/null | tail -1
    }
    read -r small small_s <<< "$(dry 1000)"
    read -r large large_s <<< "$(dry 1000000)"
    [ "$large" -le $((small + 20 * 1024)) ]
    check "dry run: $small KB at 1000 prompts, $large KB at a million in $large_s s" $?
fi
exit $failed
