#!/usr/bin/env bash
# GNU parallel cuts a stream of records into blocks and keeps one llmopt for each: parallel.sh PROCESSES THREADS [flags of run] < prompts.jsonl
# Records need ids of their own: a default id is the line within a block. Blocks are small, since answers take longer than reading.
set -euo pipefail
processes=$1 threads=$2
shift 2
exec parallel --pipe --round-robin --block 64k --jobs "$processes" --line-buffer llmopt run - --input-format jsonl -o - -q --threads "$threads" "$@"
