#!/usr/bin/env python3
"""Writes tests/data/schema-suite.jsonl: of the JSON-Schema-Test-Suite (draft 2020-12) the groups about keywords and formats that
llmopt's schemas claim, one a line; the suite's licence stands in the first line.

Usage: scripts/make_schema_suite.py FOLDER > tests/data/schema-suite.jsonl
FOLDER is the suite, such as the folder `json` of the source package of PyPI's jsonschema 4.23.0, which carries it:
  pip download --no-deps --no-binary jsonschema jsonschema==4.23.0 && tar xzf jsonschema-4.23.0.tar.gz"""

import argparse
import json
from pathlib import Path

KEYWORDS = """additionalProperties allOf anchor anyOf boolean_schema const default defs enum exclusiveMaximum exclusiveMinimum
    infinite-loop-detection items maxItems maxLength maxProperties maximum minItems minLength minProperties minimum multipleOf oneOf
    pattern patternProperties prefixItems properties ref required type""".split()
FORMATS = "date-time time date duration email hostname ipv4 ipv6 uuid uri".split()


def main() -> None:
    """Prints the fixture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the suite: it has LICENSE and tests/draft2020-12")
    folder = parser.parse_args().folder
    say = lambda value: print(json.dumps(value, ensure_ascii=True, separators=(",", ":")))
    say({"suite": "JSON-Schema-Test-Suite, draft2020-12", "licence": (folder / "LICENSE").read_text()})
    for name in KEYWORDS + [f"optional/format/{name}" for name in FORMATS]:
        for group in json.loads((folder / "tests/draft2020-12" / f"{name}.json").read_text()):
            schema = group["schema"]
            if isinstance(schema, dict):
                schema.pop("$schema", None)
            tests = [[test["valid"], test["description"], test["data"]] for test in group["tests"]]
            say({"file": name.split("/")[-1], "group": group["description"], "schema": schema, "tests": tests})


if __name__ == "__main__":
    main()
