"""Ablations of the small model: pipelines for each training stage, their table, and checks of what each stage adds.

`scripts/write_small_model.py` writes docs/benchmarks/small_model.md with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from worldstereo_ros.evaluation.pipeline_options import UNALIGNED, PipelineName
from worldstereo_ros.evaluation.report import Row, mean
from worldstereo_ros.evaluation.tables import format_value
from worldstereo_ros.models.worldstereo.masks import MODES
from worldstereo_ros.utils.errors import InputError

TITLES = {"open3d+telea": "Open3D + Telea", "splat+telea": "splat + Telea", "geometric": "geometric"}
TITLES[UNALIGNED] = "geometric, unaligned"
BACKBONE, GGM, SSM, DISTILLED = "backbone alone", "+ GGM", "+ GGM + SSM", "distilled"
FINETUNED = f"{DISTILLED}, finetuned"
STAGES = {"camera": GGM, "memory": SSM, "memory-dmd": DISTILLED}
WORLD_PREFIXES = ("training", "validation", "test", "demo")  # how the names of procedural worlds begin
MAX_DISTILLATION_LOSS_DB = 0.5
MAX_DISTILLED_TIME_RATIO = 0.15  # 4 of 40 steps, and the autoencoder
# What the last stage, composed, is to gain over the geometric pipeline: group, metric, its name, minimum in dB.
TARGET_GAINS = (
    ("Unseen worlds", "psnr", "on whole frames", 1.5),
    ("Unseen worlds", "psnr_unseen", "on unseen pixels", 3.0),
    ("Real sequences", "psnr", "on whole frames", 0.0),
    ("Real sequences", "psnr_unseen", "on unseen pixels", 0.5),
    ("Unseen worlds", "psnr_seen", "on seen pixels", -0.1),
    ("Real sequences", "psnr_seen", "on seen pixels", -0.1),
)


@dataclass(frozen=True)
class Description:
    """A pipeline as a line of the table.

    Attributes:
        stage: title of the training stage, with the options that differ from its defaults.
        composed: whether observed pixels are composed from memory; None for pipelines without this option.
    """

    stage: str
    composed: bool | None

    @property
    def title(self) -> str:
        """The stage, and whether observed pixels are composed."""
        return self.stage if self.composed in (None, True) else f"{self.stage}, not composed"


def describe(pipeline: str) -> Description:
    """Describes a pipeline by its name, as given to `worldstereo evaluate --pipeline`.

    Raises:
        InputError: the name is not valid.
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
    for option, value in options.items():
        stage += f", {option} {value:g}" if isinstance(value, float) else f", {option} {value}"
    return Description(stage, composed)


def stage_pipelines(root: str | Path) -> list[str]:
    """Names of the pipelines in the table, for the variants that a training run has.

    Args:
        root: a checkpoint root with `worldstereo-camera`, `worldstereo-memory` or `worldstereo-memory-dmd`, and
            possibly a checkpoint root `finetuned` in it; or `small` for the bundled weights.

    Raises:
        InputError: there is none of them.
    """
    from worldstereo_ros.models.checkpoints.hub import list_variants

    variants = [name.removeprefix("worldstereo-") for name in list_variants(str(root))]
    if not variants:
        raise InputError(f"{root} has no worldstereo-camera, worldstereo-memory or worldstereo-memory-dmd to measure.")
    options = {
        "camera": ["control=false", ""],
        "memory": ["", "memory=false"],
        "memory-dmd": ["", "memory=false"],
    }
    checkpoints = [(root, variant, cases) for variant, cases in options.items() if variant in variants]
    finetuned = Path(root) / "finetuned"
    if finetuned.is_dir():
        checkpoints.append((finetuned, "memory-dmd", options["memory-dmd"]))
    names = []
    for folder, variant, cases in checkpoints:
        for case in cases:
            names += [_name(folder, variant, case), _name(folder, variant, case, "compose=false")]
    if "memory" in variants:
        for mode in MODES[1:]:
            names.append(_name(root, "memory", f"reference_attention={mode}", "compose=false"))
    return ["open3d+telea", "geometric", *names]


def _name(root: str | Path, variant: str, *options: str) -> str:
    query = "&".join(option for option in options if option)
    return f"{root}:{variant}" + (f"?{query}" if query else "")


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column: heading, protocol, metric, and format of the numbers."""

    heading: str
    protocol: str
    metric: str
    form: str


COLUMNS = (
    Column("single: PSNR", "single", "psnr", "{:.2f}"),
    Column("unseen", "single", "psnr_unseen", "{:.2f}"),
    Column("SSIM", "single", "ssim", "{:.3f}"),
    Column("sparse: PSNR", "sparse", "psnr", "{:.2f}"),
    Column("unseen", "sparse", "psnr_unseen", "{:.2f}"),
    Column("SSIM", "sparse", "ssim", "{:.3f}"),
    Column("revisit: observed", "revisit", "psnr", "{:.2f}"),
    Column("imagined", "revisit", "psnr_revisited_imagined", "{:.2f}"),
    Column("steps", "single", "steps", "{:.0f}"),
    Column("s/view", "single", "seconds_per_view", "{:.2f}"),
)
GROUPS = ("Unseen worlds", "Real sequences")


def small_model_table(rows: Sequence[Row]) -> str:
    """The tables in Markdown: unseen worlds, real sequences, attention over references, and the findings.

    Args:
        rows: result of `evaluate`, for any of the pipelines of `stage_pipelines`; of several rows of the same sequence,
            protocol and pipeline the last one counts.

    Raises:
        InputError: there are no rows, or two pipelines have the same line in the table.
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
                parts.append(_markdown(table, group, attention, chosen, ": attention over references"))
    found = findings(rows)
    if found:
        parts.append("### Findings\n\n" + "\n".join(f"- {sentence}" for sentence in found))
    return "\n\n".join(parts) + "\n"


def findings(rows: Sequence[Row]) -> list[str]:
    """One sentence for each expectation that the rows can confirm or refute, with the values and yes or no."""
    table = _Table(rows)
    out = []

    def unseen_worlds_mean(stage: str, metric: str) -> float | None:
        """Mean over `single` and `sparse` on unseen worlds, without composing."""
        line = Description(stage, False)
        return mean([table.metric(GROUPS[0], line, protocol, metric) for protocol in ("single", "sparse")])

    for metric, unit, form in (("psnr", " dB PSNR", "{:.2f}"), ("ssim", " SSIM", "{:.3f}")):
        values = {stage: unseen_worlds_mean(stage, metric) for stage in (BACKBONE, GGM, SSM)}
        measured = {stage: value for stage, value in values.items() if value is not None}
        if len(measured) > 1:
            order = " < ".join(f"{stage} ({form.format(value)})" for stage, value in measured.items())
            holds = all(a < b for a, b in pairwise(measured.values()))
            out.append(_finding(f"{order} in{unit}", holds))
    teacher, student = (unseen_worlds_mean(stage, "psnr") for stage in (SSM, DISTILLED))
    teacher_s, student_s = (unseen_worlds_mean(stage, "seconds_per_view") for stage in (SSM, DISTILLED))
    if teacher is not None and student is not None:
        text = f"Distilled ({student:.2f} dB) is within {MAX_DISTILLATION_LOSS_DB} dB of all steps ({teacher:.2f} dB)"
        out.append(_finding(text, student >= teacher - MAX_DISTILLATION_LOSS_DB))
    if teacher_s and student_s:
        ratio = f"{100 * student_s / teacher_s:.0f} % of the time of all steps"
        text = f"Distilled takes {ratio}, at most {100 * MAX_DISTILLED_TIME_RATIO:.0f} %"
        out.append(_finding(text, student_s <= MAX_DISTILLED_TIME_RATIO * teacher_s))
    for stage in (SSM, DISTILLED, FINETUNED):
        with_references, without = (
            table.metric(GROUPS[0], Description(name, False), "revisit", "psnr_revisited_imagined")
            for name in (stage, f"{stage}, no references")
        )
        if with_references is not None and without is not None:
            text = f"{stage}: revisited imagined views agree better with references ({with_references:.2f} dB)"
            out.append(_finding(f"{text} than without ({without:.2f} dB)", with_references > without))
    last = FINETUNED if FINETUNED in {line.stage for line in table.lines} else DISTILLED
    for group, metric, words, gain in TARGET_GAINS:
        for protocol in ("single", "sparse"):
            ours = table.metric(group, Description(last, True), protocol, metric)
            theirs = table.metric(group, Description("geometric", None), protocol, metric)
            if ours is not None and theirs is not None:
                text = f"{group}, {protocol}, {words}: {last}, composed, has {ours - theirs:+.2f} dB over geometric"
                text += f" ({ours:.2f} and {theirs:.2f} dB); the target is {gain:+g}"
                out.append(_finding(text, ours - theirs >= gain))
    return out


def _finding(text: str, holds: bool) -> str:
    return f"{text}: **{'yes' if holds else 'no'}**."


def _is_attention(stage: str, *, full: bool = False) -> bool:
    return stage in [f"{SSM}, {mode}" for mode in MODES[1:]] or (full and stage == SSM)


class _Table:
    """Rows by group and line; metrics are means over sequences."""

    def __init__(self, rows: Sequence[Row]) -> None:
        if not rows:
            raise InputError("There are no rows; run `worldstereo evaluate --json` first.")
        latest = {(row.sequence, row.protocol, row.pipeline): row for row in rows}
        names: dict[Description, str] = {}
        self._rows: dict[tuple[str, Description, str], list[Row]] = {}
        for row in latest.values():
            if row.protocol not in {column.protocol for column in COLUMNS}:
                continue
            line = describe(row.pipeline)
            if names.setdefault(line, row.pipeline) != row.pipeline:
                raise InputError(
                    f"'{names[line]}' and '{row.pipeline}' would have the same line, '{line.title}'; "
                    "give rows of one of them only."
                )
            group = GROUPS[0] if row.sequence.startswith(WORLD_PREFIXES) else GROUPS[1]
            self._rows.setdefault((group, line, row.protocol), []).append(row)
        self.lines = list(names)

    def rows(self, group: str, line: Description, protocol: str | None = None) -> list[Row]:
        """Rows of a group and a line; of one protocol if it is given."""
        protocols = dict.fromkeys(column.protocol for column in COLUMNS) if protocol is None else [protocol]
        return [row for name in protocols for row in self._rows.get((group, line, name), [])]

    def frames(self, group: str, line: Description) -> int:
        """Number of evaluated frames."""
        return sum(row.frames for row in self.rows(group, line))

    def metric(self, group: str, line: Description, protocol: str, metric: str) -> float | None:
        """Mean of a metric over the sequences of a group."""
        return mean([getattr(row, metric) for row in self.rows(group, line, protocol)])


def _markdown(
    table: _Table, group: str, lines: Iterable[Description], columns: Sequence[Column], suffix: str = ""
) -> str:
    lines = [line for line in lines if table.frames(group, line)]
    shown = [
        column
        for column in columns
        if any(table.metric(group, line, column.protocol, column.metric) is not None for line in lines)
    ]
    sequences = {row.sequence for line in lines for row in table.rows(group, line)}
    frames = max(table.frames(group, line) for line in lines)
    out = [
        f"### {group}{suffix}",
        "",
        f"Means over {len(sequences)} sequences, {frames} evaluated frames a line.",
        "",
        "| | composed | " + " | ".join(column.heading for column in shown) + " |",
        "| --- | --- |" + " --- |" * len(shown),
    ]
    for line in lines:
        composed = {None: "", True: "yes", False: "no"}[line.composed]
        values = [format_value(table.metric(group, line, c.protocol, c.metric), c.form) for c in shown]
        out.append(f"| {line.stage} | {composed} | " + " | ".join(values) + " |")
    return "\n".join(out)
