#!/usr/bin/env python3
"""Writes the tables of docs/small_model.md from rows that `worldstereo evaluate --json` left.

    scripts/write_small_model.py ROWS.json ... [--page FILE] [--check]

Of several files the later rows count. Without any, docs/small_model.json is read; with --check nothing is written, and
it fails where the page is out of date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from worldstereo_ros.evaluation.ablations import small_model_table
from worldstereo_ros.evaluation.report import read_json

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN = "<!-- tables: written by scripts/write_small_model.py -->"
END = "<!-- end of the tables -->"


def filled(page: str, tables: str) -> str:
    """The page with what stands between the two marks replaced.

    Raises:
        ValueError: the marks are missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The page has no '{BEGIN}' with '{END}' after it.")
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Writes the page, or checks it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=Path, default=[DOCS / "small_model.json"])
    parser.add_argument("--page", type=Path, default=DOCS / "small_model.md")
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args(arguments)
    try:
        rows = [row for file in asked.rows for row in read_json(file)]
        page = asked.page.read_text(encoding="utf-8")
        text = filled(page, small_model_table(rows))
    except (OSError, ValueError) as error:
        print(f"write_small_model: {error}", file=sys.stderr)
        return 1
    if asked.check:
        if text != page:
            print(f"{asked.page} is out of date; run scripts/write_small_model.py.", file=sys.stderr)
        return int(text != page)
    asked.page.write_text(text, encoding="utf-8")
    print(f"wrote {asked.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
