#!/usr/bin/env bash
# Runs the recipes as far as one machine can: Slurm's array with srun and scontrol played by this script, Kubernetes' command under a
# controller that does what the file's podFailurePolicy says, GNU parallel where it is installed. Ends with 1 if something does not hold.
#   scripts/recipes/try.sh MODEL.gguf [LLMOPT]     LLMOPT: target/release/llmopt
set -u
case ${1:-} in -h | --help | '') sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
here=$(realpath "$(dirname "$0")")
model=$(realpath "$1")
llmopt=$(realpath "${2:-target/release/llmopt}")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1
mkdir bin answers data data/answers
# Every recipe calls plain `llmopt run`: with this model, one thread, few tokens, and what $EXTRA says.
printf '#!/bin/sh\nshift\nexec %s run "$@" -m "${MODEL:-%s}" --threads 1 --max-tokens 8 $EXTRA\n' "$llmopt" "$model" > bin/llmopt
printf '#!/bin/sh\nexec "$@"\n' > bin/srun
printf '#!/bin/sh\necho "$2" >> %s/requeued\n' "$folder" > bin/scontrol
chmod +x bin/*
export PATH=$folder/bin:$PATH EXTRA=
seq 1 600 | sed 's/.*/{"id":"r&","prompt":"What is & plus &?"}/' > p.jsonl
echo '{"id":"bad","prompt":""}' >> p.jsonl
failed=0
check() { if [ "$2" = 0 ]; then echo "ok      $1"; else echo "FAILED  $1"; failed=1; fi; }
answers() { cat "$@" | grep -o '"id":"[^"]*"\|"answer":.*"finish_reason"' | paste - - | sort; }
llmopt run p.jsonl -q -o whole.jsonl
same() { [ "$(answers whole.jsonl)" = "$(answers "$@")" ]; }

# Slurm: three tasks; the second has no time at first.
export SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_STEP=1 SLURM_ARRAY_TASK_COUNT=3 SLURM_ARRAY_TASK_MAX=2 SLURM_ARRAY_JOB_ID=7 SLURM_CPUS_PER_TASK=1
task() { SLURM_ARRAY_TASK_ID=$1 bash "$here/slurm.sbatch" p.jsonl answers 2> err; }
task 0; a=$?
EXTRA='--max-time 0.05' task 1; b=$?
check "slurm: a task without time (75) is put back in the queue: $(cat requeued)" "$([ $b = 0 ] && [ "$(cat requeued)" = 7_1 ]; echo $?)"
task 1; b=$?; task 2; c=$?
check "slurm: tasks end with 0, error records among them: $a $b $c" "$([ "$a$b$c" = 000 ]; echo $?)"
task 0; check "slurm: a finished task again ends with 0" $?
MODEL=none.gguf task 0; check "slurm: a bad model ends with 2 and is not put back" "$([ $? = 2 ] && [ "$(wc -l < requeued)" = 1 ]; echo $?)"
same answers/shard-*.jsonl; check "slurm: the shards' answers are those of one run" $?
cat answers/shard-*.jsonl > all.jsonl
llmopt run p.jsonl -q -o all.jsonl --resume --ordered
[ $? = 4 ] && [ "$(grep -o '^{"id":"[^"]*"' all.jsonl)" = "$(grep -o '^{"id":"[^"]*"' p.jsonl)" ]; check "slurm: joined in the input's order" $?
unset ${!SLURM_@}

# Kubernetes: the file's own command, for each index as often as the file's policy lets it.
cp p.jsonl data/prompts.jsonl
sed -n '/^            - |$/,/^          resources:/p' "$here/kubernetes.yaml" | sed '1d;$d' | sed "s|/data/|$folder/data/|g" > command.sh
never=$(grep -o 'values: \[.*\]' "$here/kubernetes.yaml" | tr -cd '0-9 ,' | tr ',' ' ')
export JOB_COMPLETIONS=3
index() { # index; $FIRST is done to its first pod
    tries=""
    for pod in 1 2 3 4 5 6; do
        JOB_COMPLETION_INDEX=$1 sh command.sh 2> err & pid=$!
        [ "$pod" = 1 ] && [ "${FIRST:-}" = TERM ] && sleep 0.3 && kill -TERM $pid
        wait $pid; status=$?
        tries="$tries $status"
        EXTRA=
        [ $status = 0 ] && return 0
        case " $never " in *" $status "*) return 1 ;; esac
    done
    return 1
}
EXTRA='--max-time 0.05'; index 0; check "kubernetes: 75 is tried again:$tries" "$([ "$tries" = ' 75 0' ]; echo $?)"
FIRST=TERM EXTRA='--threads 1 --batch-size 1'; index 1; check "kubernetes: a pod that is evicted (143) is tried again:$tries" "$([ "$tries" = ' 143 0' ]; echo $?)"
FIRST=; index 2; check "kubernetes: a shard with error records is done:$tries" "$([ "$tries" = ' 0' ]; echo $?)"
cat data/answers/shard-*.jsonl > data/all.jsonl
same data/all.jsonl; check "kubernetes: the shards' answers are those of one run" $?
rm data/answers/shard-2.jsonl
export MODEL=none.gguf; index 2; check "kubernetes: a bad model fails its index at once:$tries" "$([ "$tries" = ' 2' ]; echo $?)"
unset MODEL JOB_COMPLETIONS

if [ -n "$(command -v parallel)" ]; then
    bash "$here/parallel.sh" 2 1 < p.jsonl > parallel.jsonl 2> err
    status=$?
    same parallel.jsonl; check "GNU parallel ($(parallel --version | head -1)): the answers of one run, status $status" $?
else
    echo "skipped GNU parallel: not installed"
fi
exit $failed
