#!/usr/bin/env python3
"""Writes the table of docs/models.md between its marks: each fixture of tests/data/families, from which containers it is computed, and how
many greedy ids and scores are compared with transformers. It reads what tests/families.rs refuses and what tests/families_gguf.rs converts;
tests/families.rs fails where the table is not what this script writes.

usage: scripts/models_table.py
"""
import json
import pathlib
import re
import sys

if "--help" in sys.argv or "-h" in sys.argv:
    print(__doc__)
    sys.exit(0)

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- scripts/models_table.py -->", "<!-- end -->"


def pairs(text, name):
    body = re.search(rf"const {name}: [^=]+= &\[(.*?)\n\];", text, re.S).group(1)
    return dict(re.findall(r'\(\s*"([^"]+)",\s*"([^"]+)",?\s*\)', body))


def main():
    families = (ROOT / "tests/families.rs").read_text()
    gguf = (ROOT / "tests/families_gguf.rs").read_text()
    refused, names = pairs(families, "REFUSED"), pairs(gguf, "NAMES")
    skipped = re.findall(r'"([^"]+)"', re.search(r"if \[([^\]]+)\]\.contains\(&family\)", gguf).group(1))
    rows, ids, right = [], 0, 0
    for path in sorted((ROOT / "tests/data/families").glob("*.json")):
        fixture = json.loads(path.read_text())
        family, kind = fixture["family"], fixture["config"]["model_type"]
        compared = sum(len(case["greedy"]) for case in fixture["cases"])
        scores = sum(len(case["scores"]) for case in fixture["cases"])
        if family in refused:
            rows.append(f"| {family} | `{kind}` | refused: {refused[family]} | – | – |")
            continue
        right, ids = right + 1, ids + compared
        other = f"`{names[kind]}`, equal" if kind in names and family not in skipped else "–"
        rows.append(f"| {family} | `{kind}` | {compared} ids, {scores} scores | {other} | f32 bf16 |")
    head = "| fixture | `model_type` | safetensors beside transformers | GGUF beside safetensors | same bits |\n|---|---|---|---|---|"
    table = "\n".join([head, *rows])
    line = f"{right} right with {ids} greedy ids equal to transformers', {len(refused)} refused by name."
    path = ROOT / "docs/models.md"
    text = path.read_text()
    before, rest = text.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{line}\n\n{table}\n{END}{rest.split(END)[1]}")
    print(line)


if __name__ == "__main__":
    main()
