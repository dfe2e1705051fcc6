#!/usr/bin/env python3
"""Writes the tables of docs/benchmarks/provenance.md from docs/benchmarks/provenance.json.

    scripts/write_provenance.py [--measure --data DIR [--every 8]] [--part library] [--check]

With --measure the figures are measured first, with `worldstereo evaluate --truth`, the same with --remember, and
benchmarks/bench_node_truth.py; DIR holds the two recordings. --part measures one of them only. With --check nothing is
written, and it fails if the page is out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from worldstereo_ros.evaluation.truth import TruthRow, from_dict, read_truth, to_dict, truth_means

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "provenance.md"
FIGURES = PAGE.with_suffix(".json")
END = "<!-- end -->"
RECORDINGS = ("rgbd_hololens_office_a", "rgbd_tum_fr3_cabinet")
WORLDS, WORLD_NAME = "worlds:test:4", re.compile(r"(test|validation|train)\d+-")
PIPELINES = ("geometric", "small")
PARTS = ("library", "remember", "node")
PROTOCOLS = {"library": (), "remember": ("single", "sparse"), "node": ("single", "sparse", "mono")}
MEAN_OF_WORLDS = "mean of the worlds"

Rows = dict[tuple[str, str, str, str], TruthRow]  # by sequence, protocol, pipeline and class


def main(arguments: Sequence[str]) -> int:
    """Measures if asked to, and writes or checks the page. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure first")
    parser.add_argument("--data", type=Path, help="folder of the recordings")
    parser.add_argument("--every", type=int, default=8, help="every n-th held-out view")
    parser.add_argument("--part", action="append", choices=PARTS, help="measure this only; repeatable")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    figures = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}
    if options.measure:
        if options.data is None:
            parser.error("--measure needs --data")
        for part in options.part or PARTS:
            figures[part] = [to_dict(row) for row in measured(part, options.data, options.every)]
            FIGURES.write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    text = filled(page, {part: [from_dict(row) for row in figures.get(part, [])] for part in PARTS})
    if options.check:
        if text != page:
            print(f"{PAGE} is out of date; run scripts/write_provenance.py.", file=sys.stderr)
        return int(text != page)
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


def measured(part: str, recordings: Path, every: int) -> list[TruthRow]:
    """Measures one part; the commands print their own tables."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = {
            "library": ["-m", "worldstereo_ros.cli", "evaluate", "--truth"],
            "remember": ["-m", "worldstereo_ros.cli", "evaluate", "--truth", "--remember"],
            "node": [str(ROOT / "benchmarks" / "bench_node_truth.py")],
        }[part]
        for data in (WORLDS, *(str(recordings / name) for name in RECORDINGS)):
            command += ["--data", data]
        for protocol in PROTOCOLS[part]:
            command += ["--protocol", protocol]
        for pipeline in PIPELINES:
            command += ["--pipeline", pipeline]
        subprocess.run([sys.executable, *command, "--every", str(every), "--json", str(file)], check=True, cwd=ROOT)
        return read_truth(file)


def filled(page: str, parts: dict[str, list[TruthRow]]) -> str:
    """Returns the page with the text between each mark and the end mark replaced by its table.

    Raises:
        ValueError: a mark is missing.
    """
    library, remember, node = (by_key(parts[part]) for part in PARTS)
    tables = {
        "observed": observed_table(library),
        "estimated": estimated_table(library),
        "imagined": imagined_table(library),
        "calibration": calibration_table(library, remember),
        "unseen": unseen_table(library),
        "node": node_table(node, library),
    }
    for name, table in tables.items():
        before, begin, rest = page.partition(f"<!-- {name} -->")
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ValueError(f"{PAGE} has no '<!-- {name} -->' with '{END}' after it.")
        page = f"{before}{begin}\n{table}\n{end}{after}"
    return page


def by_key(rows: Iterable[TruthRow]) -> Rows:
    """The rows by their names, with those of the means of the worlds."""
    rows = list(rows)
    means = truth_means([row for row in rows if WORLD_NAME.match(row.sequence)])
    rows += [replace(row, sequence=MEAN_OF_WORLDS) for row in means]
    return {(row.sequence, row.protocol, row.pipeline, row.label): row for row in rows}


def sequences_of(rows: Rows) -> list[str]:
    """Worlds, their mean, recordings."""
    names = list(dict.fromkeys(key[0] for key in rows))
    return sorted(names, key=lambda name: 0 if WORLD_NAME.match(name) else 1 if name == MEAN_OF_WORLDS else 2)


def places_of(rows: Rows) -> list[str]:
    """The mean of the worlds, and each recording."""
    return [name for name in sequences_of(rows) if not WORLD_NAME.match(name)]


def protocols_of(rows: Rows) -> list[str]:
    """Protocols in the order of measurement."""
    return list(dict.fromkeys(key[1] for key in rows))


def pipelines_of(rows: Rows) -> list[str]:
    """Pipelines in the order of measurement."""
    return list(dict.fromkeys(key[2] for key in rows))


def number(value: float | None, digits: int = 2) -> str:
    """A figure as text: .978, 1.000, -."""
    if value is None:
        return "-"
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text.replace("-0.", "-.")


def markdown(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cells(
    heading: str, rows: Rows, label: str, columns: Sequence[tuple[str, str]], cell: Callable[[TruthRow], str]
) -> str:
    """A table with a line for each sequence and a column for each (protocol, pipeline); `heading` names the figures."""
    lines = []
    for sequence in sequences_of(rows):
        found = [rows.get((sequence, protocol, pipeline, label)) for protocol, pipeline in columns]
        lines.append(
            [f"`{sequence}`" if sequence != MEAN_OF_WORLDS else sequence, *(cell(r) if r else "-" for r in found)]
        )
    return markdown([heading, *(f"{protocol}, {pipeline}" for protocol, pipeline in columns)], lines)


def imagined_rows(rows: Rows) -> Iterator[tuple[list[str], TruthRow]]:
    """The rows of imagined pixels, each after its first cells: protocol, place and pipeline."""
    for protocol in protocols_of(rows):
        for place in places_of(rows):
            for pipeline in pipelines_of(rows):
                row = rows.get((place, protocol, pipeline, "imagined"))
                if row is not None:
                    yield [protocol, place, pipeline], row


def observed_table(rows: Rows) -> str:
    """Precision and recall of observed pixels, for each sequence."""
    columns = [(protocol, name) for protocol in protocols_of(rows) if protocol != "mono" for name in pipelines_of(rows)]

    def cell(row: TruthRow) -> str:
        return f"{number(row.precision, 3)} / {number(row.recall, 3)}"

    return cells("precision / recall", rows, "observed", columns, cell)


def estimated_table(rows: Rows) -> str:
    """Precision, recall and share of estimated pixels, for each sequence."""
    columns = [("mono", name) for name in pipelines_of(rows)]
    columns += [(protocol, name) for protocol in ("single", "sparse") for name in pipelines_of(rows)]

    def cell(row: TruthRow) -> str:
        recall = "" if row.protocol != "mono" else f" / {number(row.recall)}"
        return f"{number(row.precision)}{recall} ({100 * (row.share or 0):.1f} %)"

    return cells("precision / recall (share)", rows, "estimated", columns, cell)


def imagined_table(rows: Rows) -> str:
    """Accuracy and ranks of imagined pixels."""
    lines = []
    for names, row in imagined_rows(rows):
        if row.pixels:
            figures = (row.precision, row.right_depth, row.recall, row.confidence, row.depth_confidence)
            ranks = (row.rank_imagined, row.rank_all, row.rank_depth)
            lines.append([*names, f"{100 * (row.share or 0):.0f} %", *map(number, (*figures, *ranks))])
    headings = [
        "protocol",
        "data",
        "pipeline",
        "share",
        "right colour",
        "right depth",
        "recall",
        "confidence",
        "of depth",
    ]
    return markdown([*headings, "rank, imagined", "rank, all", "rank of depth"], lines)


def calibration_table(library: Rows, remember: Rows) -> str:
    """Calibration of imagined pixels at the first request, and at the third with `remember`."""
    lines = []
    for protocol in protocols_of(remember) or protocols_of(library):
        for place in places_of(library):
            for pipeline in pipelines_of(library):
                line = [protocol, place, pipeline]
                for rows in (library, remember):
                    row = rows.get((place, protocol, pipeline, "imagined"))
                    names = ("confidence", "right_colour", "ece_colour", "ece_depth")
                    line += [number(getattr(row, name)) if row else "-" for name in names]
                lines.append(line)
    headings = ["protocol", "data", "pipeline", "confidence", "right colour", "ECE colour", "ECE depth"]
    return markdown([*headings, *(f"{name}, third request" for name in headings[3:])], lines)


def unseen_table(rows: Rows) -> str:
    """Confidence of views that show almost nothing that was seen."""
    lines = []
    for names, row in imagined_rows(rows):
        if row.unseen_views:
            figures = (row.unseen_confidence, row.unseen_right_colour)
            lines.append([*names, str(row.unseen_views), *map(number, figures)])
    return markdown(["protocol", "data", "pipeline", "views", "confidence", "right colour"], lines)


def node_table(node: Rows, library: Rows) -> str:
    """Precision and recall through the node beside those in Python, for the recordings."""
    lines = []
    for (sequence, protocol, pipeline, label), row in node.items():
        other = library.get((sequence, protocol, pipeline, label))
        if row.pixels and WORLD_NAME.match(sequence) is None:
            pairs = [(row.precision, other.precision if other else None), (row.recall, other.recall if other else None)]
            figures = [text for pair in pairs for text in (number(pair[0], 3), number(pair[1], 3))]
            lines.append([protocol, sequence, pipeline, label, *figures])
    lines.sort(key=lambda line: list(PROTOCOLS["node"]).index(line[0]))
    return markdown(["protocol", "data", "pipeline", "class", "precision", "in Python", "recall", "in Python"], lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
