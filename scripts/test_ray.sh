#!/usr/bin/env bash
# Shows scripts/ray_batch.py on a local Ray: 200 rows of Parquet on 2 actors, answers equal to a plain run's; once more with one worker
# process killed half-way: still all, none doubled; once more over what is there: nothing is answered twice.
#   scripts/test_ray.sh [LLMOPT] [MODEL]      defaults: target/release/llmopt smollm2-135m; VENV=target/ray-venv (ray[data] is installed there)
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
cd "$(dirname "$0")/.."
LLMOPT=$(realpath "${1:-target/release/llmopt}")
model=${2:-smollm2-135m}
[ ! -e "$model" ] || model=$(realpath "$model")
venv=${VENV:-target/ray-venv}
export LLMOPT RAY_DEDUP_LOGS=1 RAY_DATA_DISABLE_PROGRESS_BARS=1
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import ray.data' 2> /dev/null || "$venv/bin/pip" install --quiet 'ray[data]'
python=$(cd "$venv" && pwd)/bin/python # Not where the link leads: that one knows no packages.
work=$(mktemp -d)
# A driver that started its cluster ends it when it ends: nothing is stopped by name.
trap 'rm -rf "$work"' EXIT
"$python" - "$work" << 'PY'
import json, sys, pyarrow as pa, pyarrow.parquet as pq
work = sys.argv[1]
rows = [{"id": f"row-{i}", "text": f"Write a word that rhymes with number {i % 37}.", "price": i / 4} for i in range(200)]
pq.write_table(pa.Table.from_pylist(rows), f"{work}/in.parquet", row_group_size=20)
with open(f"{work}/in.jsonl", "w") as out:
    out.writelines(json.dumps(row) + "\n" for row in rows)
PY
flags=(--prompt-field text --max-tokens 8 -m "$model" --threads 1)
echo "== plain run"
"$LLMOPT" run "$work/in.jsonl" -o "$work/plain.jsonl" -q "${flags[@]}"
# A cluster of our own, so that its processes are ours to kill and to end.
cat > "$work/go.py" << 'PY'
import runpy, sys, ray
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
PY
ours() { # worker processes of this test, by their model and field
    pgrep -f -- "$LLMOPT run - .*llmopt_ray" || true
}
batch() { # OUT
    "$python" "$work/go.py" scripts/ray_batch.py "$work/in.parquet" "$1" --actors 2 --batch 20 -- "${flags[@]}" > "$work/log" 2>&1 ||
        { tail -20 "$work/log"; exit 1; }
}
check() { # OUT
    "$python" - "$work" "$1" << 'PY'
import json, sys, pyarrow.dataset as ds
work, out = sys.argv[1:]
plain = {r["id"]: r["answer"] for r in map(json.loads, open(f"{work}/plain.jsonl"))}
table = ds.dataset(out, format="parquet").to_table().to_pylist()
ids = [row["id"] for row in table]
assert len(ids) == len(set(ids)) == 200, (len(ids), len(set(ids)))
assert all(row["error"] is None and row["answer"] == plain[row["id"]] for row in table)
assert all(row["price"] == int(row["id"][4:]) / 4 and row["text"] for row in table)
print(f"{len(ids)} rows, each once, all answers equal to the plain run's, other columns kept")
PY
}
echo "== 2 actors"
batch "$work/two"
check "$work/two"
echo "== one worker process killed half-way"
(
    for _ in $(seq 600); do
        set -- $(ours)
        [ $# -lt 2 ] || { sleep 0.5; kill -9 "$1" && echo "killed worker process $1" && touch "$work/was-killed"; break; }
        sleep 0.1
    done
) &
batch "$work/killed"
wait
[ -e "$work/was-killed" ] || { echo "no worker process was killed: more rows are needed"; exit 1; }
check "$work/killed"
echo "== once more over what is there"
before=$(ls "$work/killed" | wc -l)
batch "$work/killed"
check "$work/killed"
echo "files before and after: $before, $(ls "$work/killed" | wc -l)"
