"""What every training stage adds: which pipelines to measure, their table, and whether the order is as expected.

`docs/small_model.md` is written from here (`scripts/write_small_model.py`), so that no figure is typed by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from worldstereo_ros.evaluation.pipeline_options import UNALIGNED, PipelineName
from worldstereo_ros.evaluation.report import Row, mean
from worldstereo_ros.models.worldstereo.masks import MODES
from worldstereo_ros.utils.errors import InputError

TITLES = {"open3d+telea": "Open3D + Telea", "splat+telea": "splat + Telea", "geometric": "geometric"}
TITLES[UNALIGNED] = "geometric, unaligned"
BACKBONE, GGM, SSM, DISTILLED = "backbone alone", "+ GGM", "+ GGM + SSM", "distilled"
FINETUNED = f"{DISTILLED}, finetuned"
STAGES = {"camera": GGM, "memory": SSM, "memory-dmd": DISTILLED}
WORLDS = ("training", "validation", "test", "demo")  # how the names of procedural worlds begin
REACH_DB = 0.5  # what distillation may lose
REACH_TIME = 0.15  # the part of the time that it may take: 4 of 40 steps, and coding
# What the last stage, composed, should add to geometric: of a group, a figure, in words, dB.
TARGETS = (
    ("Unseen worlds", "psnr", "on whole frames", 1.5),
    ("Unseen worlds", "psnr_unseen", "on unseen pixels", 3.0),
    ("Real sequences", "psnr", "on whole frames", 0.0),
    ("Real sequences", "psnr_unseen", "on unseen pixels", 0.5),
    ("Unseen worlds", "psnr_seen", "on seen pixels", -0.1),
    ("Real sequences", "psnr_seen", "on seen pixels", -0.1),
)


@dataclass(frozen=True)
class Description:
    """What a pipeline's name means in the table.

    Attributes:
        stage: the title without whether observed pixels are composed.
        composed: remembered pictures are shown where a sensor saw what the view shows; None: it has no such choice.
    """

    stage: str
    composed: bool | None

    @property
    def title(self) -> str:
        """For people."""
        return self.stage if self.composed in (None, True) else f"{self.stage}, not composed"


def describe(pipeline: str) -> Description:
    """What a pipeline's name means.

    Raises:
        ValueError: it is no name of a pipeline.
    """
    if pipeline in TITLES:
        return Description(TITLES[pipeline], None)
    name = PipelineName.parse(pipeline)
    options = dict(name.options)
    composed = bool(options.pop("compose", True))
    variant = "memory-dmd" if name.model == "small" else name.model.rpartition(":")[2].removeprefix("worldstereo-")
    stage = STAGES.get(variant, name.model)
    if name.model == "small" or (stage == DISTILLED and Path(name.model.rpartition(":")[0]).name == "finetuned"):
        stage = FINETUNED
    if not options.pop("control", True):
        stage = BACKBONE if stage == GGM else f"{stage}, no GGM"
    if not options.pop("memory", True):
        stage += ", no references"
    if (attention := options.pop("reference_attention", "full")) != "full":
        stage += f", {attention}"
    if (steps := options.pop("steps", None)) is not None and steps != (4 if stage.startswith(DISTILLED) else 40):
        stage += f", {steps} steps"
    return Description(stage + "".join(f", {option} {value:g}" for option, value in options.items()), composed)


def stage_pipelines(root: str | Path) -> list[str]:
    """The pipelines of the table for a training run's folder, for the variants that are there.

    Args:
        root: a checkpoint's root, with `worldstereo-camera`, `worldstereo-memory`, `worldstereo-memory-dmd`, and in it
            perhaps a folder `finetuned`; or `small`, for what ships with the package.

    Raises:
        ValueError: none of them is there.
    """
    from worldstereo_ros.models.checkpoints.hub import list_variants

    here = [name.removeprefix("worldstereo-") for name in list_variants(str(root))]
    if not here:
        raise InputError(f"{root} has no worldstereo-camera, worldstereo-memory or worldstereo-memory-dmd to measure.")
    wanted = {
        "camera": ["control=false", ""],
        "memory": ["", "memory=false"],
        "memory-dmd": ["", "memory=false"],
    }
    places = [(root, variant, cases) for variant, cases in wanted.items() if variant in here]
    finetuned = Path(root) / "finetuned"
    if finetuned.is_dir():
        places.append((finetuned, "memory-dmd", wanted["memory-dmd"]))
    names = []
    for place, variant, cases in places:
        for case in cases:
            names += [_name(place, variant, case), _name(place, variant, case, "compose=false")]
    if "memory" in here:
        for mode in MODES[1:]:
            names.append(_name(root, "memory", f"reference_attention={mode}", "compose=false"))
    return ["open3d+telea", "geometric", *names]


def _name(root: str | Path, variant: str, *options: str) -> str:
    said = "&".join(option for option in options if option)
    return f"{root}:{variant}" + (f"?{said}" if said else "")


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column: its heading, the protocol and the figure it shows, and how it is written."""

    heading: str
    protocol: str
    figure: str
    form: str


COLUMNS = (
    Column("single: PSNR", "single", "psnr", "{:.2f}"),
    Column("unseen", "single", "psnr_unseen", "{:.2f}"),
    Column("SSIM", "single", "ssim", "{:.3f}"),
    Column("sparse: PSNR", "sparse", "psnr", "{:.2f}"),
    Column("unseen", "sparse", "psnr_unseen", "{:.2f}"),
    Column("SSIM", "sparse", "ssim", "{:.3f}"),
    Column("revisit: given", "revisit", "psnr", "{:.2f}"),
    Column("imagined", "revisit", "psnr_revisited_imagined", "{:.2f}"),
    Column("steps", "single", "steps", "{:.0f}"),
    Column("s/view", "single", "seconds_per_view", "{:.2f}"),
)
GROUPS = ("Unseen worlds", "Real sequences")


def small_model_table(rows: Sequence[Row]) -> str:
    """Markdown: a table for unseen worlds and one for real sequences, the references' attention, and the findings.

    Args:
        rows: of `evaluate`, for any of the pipelines of `stage_pipelines`; of two rows of the same sequence, protocol
            and pipeline the later one counts.

    Raises:
        ValueError: there are no rows, or two pipelines would stand in the same line of the table.
    """
    table = _Table(rows)
    parts = []
    for group in GROUPS:
        lines = [line for line in table.lines if not _is_attention(line.stage)]
        if any(table.frames(group, line) for line in lines):
            parts.append(_markdown(table, group, lines, COLUMNS))
    attention = [line for line in table.lines if line.composed is False and _is_attention(line.stage, full=True)]
    if len(attention) > 1:
        chosen = [column for column in COLUMNS if column.protocol in ("single", "sparse")]
        for group in GROUPS:
            if any(table.frames(group, line) for line in attention):
                parts.append(_markdown(table, group, attention, chosen, ": what references may be attended to"))
    said = findings(rows)
    if said:
        parts.append("### What was expected\n\n" + "\n".join(f"- {sentence}" for sentence in said))
    return "\n\n".join(parts) + "\n"


def findings(rows: Sequence[Row]) -> list[str]:
    """One sentence for each expectation that the rows can answer, with its figures and whether it holds."""
    table = _Table(rows)
    out = []

    def both(stage: str, figure: str) -> float | None:
        """Mean over `single` and `sparse` on unseen worlds, the model's own pixels."""
        line = Description(stage, False)
        return mean([table.figure(GROUPS[0], line, protocol, figure) for protocol in ("single", "sparse")])

    for figure, unit, form in (("psnr", " dB PSNR", "{:.2f}"), ("ssim", " SSIM", "{:.3f}")):
        values = {stage: both(stage, figure) for stage in (BACKBONE, GGM, SSM)}
        there = {stage: value for stage, value in values.items() if value is not None}
        if len(there) > 1:
            ladder = " < ".join(f"{stage} ({form.format(value)})" for stage, value in there.items())
            listed = list(there.values())
            out.append(_said(f"{ladder} in{unit}", all(a < b for a, b in pairwise(listed))))
    slow, fast = both(SSM, "psnr"), both(DISTILLED, "psnr")
    slow_time, fast_time = both(SSM, "seconds_per_view"), both(DISTILLED, "seconds_per_view")
    if slow is not None and fast is not None:
        text = f"Distilled ({fast:.2f} dB) is within {REACH_DB} dB of all steps ({slow:.2f} dB)"
        out.append(_said(text, fast >= slow - REACH_DB))
    if slow_time and fast_time:
        share = f"{100 * fast_time / slow_time:.0f} % of the time of all steps"
        text = f"Distilled takes {share}, at most {100 * REACH_TIME:.0f} %"
        out.append(_said(text, fast_time <= REACH_TIME * slow_time))
    for stage in (SSM, DISTILLED, FINETUNED):
        figures = [
            table.figure(GROUPS[0], Description(name, False), "revisit", "psnr_revisited_imagined")
            for name in (stage, f"{stage}, no references")
        ]
        if figures[0] is not None and figures[1] is not None:
            text = f"{stage}: what was imagined comes back nearer with references ({figures[0]:.2f} dB) than without"
            out.append(_said(f"{text} ({figures[1]:.2f} dB)", figures[0] > figures[1]))
    last = FINETUNED if FINETUNED in {line.stage for line in table.lines} else DISTILLED
    for group, figure, words, more in TARGETS:
        for protocol in ("single", "sparse"):
            ours = table.figure(group, Description(last, True), protocol, figure)
            theirs = table.figure(group, Description("geometric", None), protocol, figure)
            if ours is not None and theirs is not None:
                text = f"{group}, {protocol}, {words}: {last}, composed, has {ours - theirs:+.2f} dB of geometric"
                out.append(
                    _said(f"{text} ({ours:.2f} and {theirs:.2f} dB); {more:+g} was wanted", ours - theirs >= more)
                )
    return out


def _said(text: str, holds: bool) -> str:
    return f"{text}: **{'yes' if holds else 'no'}**."


def _is_attention(stage: str, *, full: bool = False) -> bool:
    return stage in [f"{SSM}, {mode}" for mode in MODES[1:]] or (full and stage == SSM)


class _Table:
    """Rows by group and line; figures are means over sequences."""

    def __init__(self, rows: Sequence[Row]) -> None:
        if not rows:
            raise InputError("There are no rows to make a table of.")
        latest = {(row.sequence, row.protocol, row.pipeline): row for row in rows}
        names: dict[Description, str] = {}
        self._rows: dict[tuple[str, Description, str], list[Row]] = {}
        for row in latest.values():
            if row.protocol not in {column.protocol for column in COLUMNS}:
                continue
            line = describe(row.pipeline)
            if names.setdefault(line, row.pipeline) != row.pipeline:
                raise InputError(
                    f"'{names[line]}' and '{row.pipeline}' would stand in the same line, '{line.title}'; "
                    "give rows of one of them."
                )
            group = GROUPS[0] if row.sequence.startswith(WORLDS) else GROUPS[1]
            self._rows.setdefault((group, line, row.protocol), []).append(row)
        self.lines = list(names)

    def rows(self, group: str, line: Description, protocol: str | None = None) -> list[Row]:
        """Of a group and a line, and of one protocol if it is named."""
        protocols = dict.fromkeys(column.protocol for column in COLUMNS) if protocol is None else [protocol]
        return [row for name in protocols for row in self._rows.get((group, line, name), [])]

    def frames(self, group: str, line: Description) -> int:
        """How many frames were judged."""
        return sum(row.frames for row in self.rows(group, line))

    def figure(self, group: str, line: Description, protocol: str, figure: str) -> float | None:
        """The mean of a figure over the sequences of a group."""
        return mean([getattr(row, figure) for row in self.rows(group, line, protocol)])


def _markdown(
    table: _Table, group: str, lines: Iterable[Description], columns: Sequence[Column], what: str = ""
) -> str:
    lines = [line for line in lines if table.frames(group, line)]
    shown = [
        column
        for column in columns
        if any(table.figure(group, line, column.protocol, column.figure) is not None for line in lines)
    ]
    sequences = {row.sequence for line in lines for row in table.rows(group, line)}
    frames = max(table.frames(group, line) for line in lines)
    out = [
        f"### {group}{what}",
        "",
        f"Means over {len(sequences)} sequences, {frames} judged frames a line.",
        "",
        "| | composed | " + " | ".join(column.heading for column in shown) + " |",
        "| --- | --- |" + " --- |" * len(shown),
    ]
    for line in lines:
        composed = {None: "", True: "yes", False: "no"}[line.composed]
        figures = [_text(table.figure(group, line, c.protocol, c.figure), c.form) for c in shown]
        out.append(f"| {line.stage} | {composed} | " + " | ".join(figures) + " |")
    return "\n".join(out)


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
