#!/usr/bin/env python3
"""Answers the rows of Parquet files with llmopt on Ray Data: rows in, Parquet files with `id`, `answer`, `error` and the rows' other columns out.

usage: scripts/ray_batch.py IN.parquet OUT_FOLDER [--actors N] [--id COLUMN] [--batch ROWS] [-- FLAGS OF llmopt run]
   e.g. scripts/ray_batch.py tickets.parquet answers --actors 2 -- --threads 1 --template 'Summarise: {{ ticket_text }}' --max-tokens 64

Each actor keeps one `llmopt run -` (found on PATH, or LLMOPT) for its whole life, so a model is loaded once an actor; it asks Ray for as many CPUs as
`--threads` says (1 unless given). A row that cannot be answered has `error` instead of failing the job. A worker process that dies is started anew and
the rows it owed are sent again; an actor that dies is replaced by Ray. Started again with the same OUT_FOLDER, rows whose id is there are left
out (errors are data: delete their rows to try them again). Needs ray[data]; a running cluster is used where RAY_ADDRESS names one.
"""
import argparse, json, os, pathlib, subprocess, sys, threading


class Worker:
    """One llmopt process, fed line by line."""

    def __init__(self, flags, id_column):
        self.command = [os.environ.get("LLMOPT", "llmopt"), "run", "-", "--input-format", "jsonl", "-o", "-", "-q", "--id-field", "llmopt_ray", *flags]
        self.id_column, self.sent, self.process = id_column, 0, None

    def lines(self, owed):
        """Sends the rows that are owed and yields the answers that come before the process ends or all are there."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        process, count = self.process, len(owed)
        text = [json.dumps({**row, "llmopt_ray": key}, default=str) + "\n" for key, row in owed.items()]

        def send():
            try:
                process.stdin.write("".join(text))
                process.stdin.flush()
            except OSError:
                pass  # It died: its answers end too.

        writer = threading.Thread(target=send, daemon=True)  # Both pipes may be full: neither may wait for the other.
        writer.start()
        while count and (line := process.stdout.readline()).endswith("\n"):
            count -= 1
            yield json.loads(line)
        writer.join(timeout=10)

    def __call__(self, table):
        import pyarrow as pa

        rows, owed = table.to_pylist(), {}
        for row in rows:
            self.sent += 1
            owed[f"{self.sent}"] = row  # Never used twice by this process, whatever ids the rows have and however often Ray retries.
        answers, keys, lives = {}, list(owed), 4
        while owed and lives:
            for record in self.lines(owed):
                if owed.pop(record["id"], None) is not None:
                    answers[record["id"]] = record
            if owed:
                lives -= 1
                status = self.process.wait()
                if status in (1, 2):  # Bad flags or model: another try would end alike.
                    raise RuntimeError(f"llmopt ended with {status}: {' '.join(self.command)}")
        if owed:
            raise RuntimeError("llmopt died four times over one batch")
        errors = [(answers[key].get("error") or {}).get("message") for key in keys]
        columns = {"id": [row[self.id_column] for row in rows], "answer": [answers[key]["answer"] for key in keys], "error": pa.array(errors, pa.string())}
        columns.update({name: table[name] for name in table.column_names if name not in columns and name != self.id_column})
        return pa.table(columns)


def main():
    typed = sys.argv[1:]
    cut = typed.index("--") if "--" in typed else len(typed)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--id", default="id", help="the column that names a row (default: id)")
    parser.add_argument("--batch", type=int, default=64, help="rows that an actor is given at a time")
    args, flags = parser.parse_args(typed[:cut]), typed[cut + 1 :]
    threads = int(flags[flags.index("--threads") + 1]) if "--threads" in flags else 1
    flags += [] if "--threads" in flags else ["--threads", "1"]
    import pyarrow.dataset, ray, ray.data

    rows = ray.data.read_parquet(args.input)
    if args.id not in rows.schema().names:
        sys.exit(f"ray_batch: {args.input} has no column '{args.id}'; name one with --id")
    if args.out.exists() and any(args.out.glob("*.parquet")):
        done = set(pyarrow.dataset.dataset(args.out, format="parquet").to_table(columns=["id"])["id"].to_pylist())
        rows = rows.filter(lambda row: row[args.id] not in done)
    pool = ray.data.ActorPoolStrategy(size=args.actors)
    rows.repartition(max(1, rows.count() // args.batch)).map_batches(
        Worker, fn_constructor_args=(flags, args.id), compute=pool, num_cpus=threads, batch_size=args.batch, batch_format="pyarrow"
    ).write_parquet(str(args.out))


if __name__ == "__main__":
    main()
