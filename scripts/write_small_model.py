#!/usr/bin/env python3
"""Writes the tables of docs/benchmarks/small_model.md from rows that `worldstereo evaluate --json` wrote.

    scripts/write_small_model.py ROWS.json ... [--page FILE] [--check]

If several files have a row for the same measurement, the last one is used. Without a file, small_model.json beside the
page is read. With --check nothing is written, and it fails if the page is out of date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from worldstereo_ros.evaluation.ablations import small_model_table
from worldstereo_ros.evaluation.report import read_json

BENCHMARKS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
BEGIN = "<!-- tables: written by scripts/write_small_model.py -->"
END = "<!-- end of the tables -->"


def filled(page: str, tables: str) -> str:
    """Returns the page with the text between the two marks replaced.

    Raises:
        ValueError: If a mark is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The page has no '{BEGIN}' with '{END}' after it.")
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Writes the page, or checks it. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=Path, default=[BENCHMARKS / "small_model.json"])
    parser.add_argument("--page", type=Path, default=BENCHMARKS / "small_model.md")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    try:
        rows = [row for file in options.rows for row in read_json(file)]
        page = options.page.read_text(encoding="utf-8")
        text = filled(page, small_model_table(rows))
    except (OSError, ValueError) as error:
        print(f"write_small_model: {error}", file=sys.stderr)
        return 1
    if options.check:
        if text != page:
            print(f"{options.page} is out of date; run scripts/write_small_model.py.", file=sys.stderr)
        return int(text != page)
    options.page.write_text(text, encoding="utf-8")
    print(f"wrote {options.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
