"""Rows of figures, their means, the table and the JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from worldstereo_ros.utils.errors import InputError


@dataclass(frozen=True)
class Row:
    """The figures of one pipeline on one sequence under one protocol; None where one does not apply.

    PSNR in dB, coverage and provenance as shares 0..1, cloud figures at 5 cm. `psnr_revisited_imagined` compares two
    imaginations of the same poses, where no given view covers them; `steps` are those of one clip's denoising.
    `colour_drift` (grey levels) and `contrast_kept` (a ratio) compare the same two imaginations; `seam` and `joint`
    (grey levels) are those of a turn, see `stitching.Closure`. `curves` are figures of each judged view, in order.
    """

    sequence: str
    protocol: str
    pipeline: str
    frames: int
    psnr: float | None = None
    ssim: float | None = None
    psnr_seen: float | None = None
    psnr_unseen: float | None = None
    coverage: float | None = None
    observed_precision: float | None = None
    observed_recall: float | None = None
    abs_rel: float | None = None
    delta_1_25: float | None = None
    seconds_per_view: float | None = None
    cloud_precision: float | None = None
    cloud_recall: float | None = None
    cloud_f1: float | None = None
    psnr_revisited_imagined: float | None = None
    steps: float | None = None
    colour_drift: float | None = None
    contrast_kept: float | None = None
    seam: float | None = None
    joint: float | None = None
    curves: dict[str, list[float | None]] | None = None


FIGURES = tuple(field.name for field in fields(Row) if field.name != "curves")[4:]
IN_SHORT = (
    "psnr", "psnr_unseen", "psnr_revisited_imagined", "seam", "joint", "cloud_f1", "steps", "seconds_per_view",
)  # fmt: skip
HEADINGS = {
    "psnr": ("PSNR", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "psnr_seen": ("seen", "{:.2f}"),
    "psnr_unseen": ("unseen", "{:.2f}"),
    "coverage": ("cover", "{:.2f}"),
    "observed_precision": ("obs. prec.", "{:.3f}"),
    "observed_recall": ("obs. recall", "{:.3f}"),
    "abs_rel": ("AbsRel", "{:.3f}"),
    "delta_1_25": ("δ<1.25", "{:.3f}"),
    "seconds_per_view": ("s/view", "{:.3f}"),
    "cloud_precision": ("cloud prec.", "{:.3f}"),
    "cloud_recall": ("cloud rec.", "{:.3f}"),
    "cloud_f1": ("F1", "{:.3f}"),
    "psnr_revisited_imagined": ("again", "{:.2f}"),
    "steps": ("steps", "{:.0f}"),
    "colour_drift": ("drift", "{:.2f}"),
    "contrast_kept": ("contrast", "{:.3f}"),
    "seam": ("seam", "{:.2f}"),
    "joint": ("joint", "{:.2f}"),
}


def mean(values: list[float | None]) -> float | None:
    """The mean of the values that are not None; None if all are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def means(rows: list[Row]) -> list[Row]:
    """The mean over sequences of each protocol and pipeline that has several; `frames` is their sum."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.protocol, row.pipeline), []).append(row)
    return [
        Row("mean", protocol, pipeline, sum(row.frames for row in group), **_means(group))
        for (protocol, pipeline), group in groups.items()
        if len(group) > 1
    ]


def _means(group: list[Row]) -> dict[str, Any]:
    return {name: mean([getattr(row, name) for row in group]) for name in FIGURES}


def one_line(row: Row) -> str:
    """A row as a sentence for those who wait for the others."""
    figures = [
        f"{HEADINGS[name][0]} {_text(value, HEADINGS[name][1])}"
        for name in (
            "psnr",
            "psnr_unseen",
            "psnr_revisited_imagined",
            "seam",
            "joint",
            "cloud_f1",
            "steps",
            "seconds_per_view",
        )
        if (value := getattr(row, name)) is not None
    ]
    return f"{row.protocol}, {row.sequence}, {row.pipeline}: {', '.join(figures) or 'no figures'}"


def format_table(rows: list[Row]) -> Table:
    """A table for the terminal: per protocol the rows of each sequence and then their means."""
    ordered: list[Row] = []
    averages = means(rows)
    for protocol in dict.fromkeys(row.protocol for row in rows):
        ordered += [row for row in (*rows, *averages) if row.protocol == protocol]
    shown = [name for name in FIGURES if any(getattr(row, name) is not None for row in rows)]
    table = Table(title="Whole-frame figures are means over frames; see docs/evaluation.md")
    for heading in ("protocol", "sequence"):
        table.add_column(heading, no_wrap=True)
    table.add_column("pipeline", overflow="fold")  # names with options are long, and their ends tell them apart
    table.add_column("frames", justify="right")
    for name in shown:
        table.add_column(HEADINGS[name][0], justify="right")
    for index, row in enumerate(ordered):
        last = index + 1 == len(ordered) or ordered[index + 1].sequence != row.sequence
        figures = [_text(getattr(row, name), HEADINGS[name][1]) for name in shown]
        style = "bold" if row.sequence == "mean" else None
        cells = (row.protocol, row.sequence, row.pipeline, str(row.frames), *figures)
        table.add_row(*cells, style=style, end_section=last)
    return table


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def write_json(rows: list[Row], path: Path) -> None:
    """Writes {"rows": [...], "means": [...]}, null where a figure does not apply."""
    content = {"rows": [asdict(row) for row in rows], "means": [asdict(row) for row in means(rows)]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> list[Row]:
    """The rows that `write_json` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds no rows of `worldstereo evaluate --json` ({error}).") from None
