#!/usr/bin/env python3
"""Writes tests/data/shards.tsv: ids and the part of a sharded run that each belongs to, by Python's hashlib.

Usage: python3 scripts/shards.py > tests/data/shards.tsv
A line: the id as JSON, then its part of 2, of 7 and of 1000, all counted from 0."""

import argparse
import hashlib
import json


def part(identifier: str, parts: int) -> int:
    """The part of a record: the first 8 bytes of the SHA-256 of its id, big-endian, modulo the number of parts."""
    return int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:8], "big") % parts


def main() -> None:
    """Prints the fixture."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    ids = ["", "a", "1", "1.0", "tickets.csv:17", "-:3", "Füße/日本語.txt", "🦀", "two\nlines", "x" * 300]
    ids += [f"id-{n}" for n in range(100)]
    for identifier in ids:
        print(json.dumps(identifier, ensure_ascii=False), *(part(identifier, n) for n in (2, 7, 1000)), sep="\t")


if __name__ == "__main__":
    main()
