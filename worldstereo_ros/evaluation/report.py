"""Results of an evaluation: rows of metrics, their means, the table and the JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from rich.table import Table

from worldstereo_ros.evaluation.output import read_rows, write_rows
from worldstereo_ros.evaluation.tables import Column, build_table, format_value


@dataclass(frozen=True)
class Row:
    """Metrics of one pipeline on one sequence under one protocol; None where a metric does not apply.

    Attributes:
        sequence, protocol, pipeline: names.
        frames: evaluated views.
        psnr, ssim: means over whole frames; PSNR in dB.
        psnr_seen, psnr_unseen: PSNR over the pixels that an observed view saw, and over those that none saw.
        coverage: fraction of the pixels that memory covers.
        observed_precision, observed_recall: precision and recall of the mask of observed pixels, against the pixels
            that were seen.
        abs_rel, delta_1_25: depth errors, see `metrics.depth_error`.
        seconds_per_view: time of a view.
        cloud_precision, cloud_recall, cloud_f1: see `metrics.cloud_scores`, within 5 cm.
        psnr_revisited_imagined: PSNR of two imaginations of the same poses against each other, over the pixels that no
            observed view covers.
        steps: denoising steps of a clip.
        colour_drift, contrast_kept: `metrics.colour_and_contrast` of the same two imaginations.
        seam, joint: jumps of grey level where a turn closes and at its other joints, see `panorama.closure`.
        psnr_constant: PSNR of the mean colour of the observed images, over the pixels of psnr_unseen.
        psnr_unseen_blurred: PSNR of the views blurred by 8 pixels, over the pixels of psnr_unseen.
        psnr_constant_wholly_unseen, psnr_blurred_wholly_unseen: the same two, of views that are more than 95 % unseen.
        hf_ratio_holes: contrast of the detail in holes, imagined over true; 1 = as sharp as the truth.
        patch_kid_holes, patch_swd_holes: distance between the distributions of imagined and of true patches in holes,
            of their features and of their pixels; 0 = alike.
        st_lpips_holes: mean ST-LPIPS in holes, see `perceptual`.
        latent_grid: share of gradients in holes that repeat every 8 or 16 pixels, imagined over true.
        warp_error: difference of neighbouring views where both show the same surface, in holes.
        ece_colour, ece_depth: expected calibration error of both confidences over imagined pixels.
        curves: metrics of each evaluated view, in order.
        poses: given or estimated, of the photographs that the protocols interpolation and extrapolation give.
        ate_percent, rotation_degrees: errors of estimated poses, see `given_photographs.GivenPhotographs`.
        st_lpips: mean ST-LPIPS over whole frames.
        psnr_covered: PSNR over the pixels that the geometry of the given photographs covers, the same for all rows.
        drift_pixels: how far imagined views are from the pose that was asked for, by what they show, see
            `reconstruction.relocalisation`.
        drifted: share of the imagined views that stayed out of the geometry.
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
    psnr_constant: float | None = None
    psnr_unseen_blurred: float | None = None
    psnr_constant_wholly_unseen: float | None = None
    psnr_blurred_wholly_unseen: float | None = None
    hf_ratio_holes: float | None = None
    patch_kid_holes: float | None = None
    patch_swd_holes: float | None = None
    st_lpips_holes: float | None = None
    latent_grid: float | None = None
    warp_error: float | None = None
    ece_colour: float | None = None
    ece_depth: float | None = None
    curves: dict[str, list[float | None]] | None = None
    poses: str | None = None
    ate_percent: float | None = None
    rotation_degrees: float | None = None
    st_lpips: float | None = None
    psnr_covered: float | None = None
    drift_pixels: float | None = None
    drifted: float | None = None


METRICS = tuple(field.name for field in fields(Row) if field.name not in ("curves", "poses"))[4:]
SUMMARY_METRICS = (
    "psnr", "psnr_unseen", "psnr_revisited_imagined", "seam", "joint", "cloud_f1", "ate_percent", "rotation_degrees",
    "st_lpips", "psnr_covered", "steps", "seconds_per_view",
)  # fmt: skip
HOLE_METRICS = (
    "psnr_unseen", "psnr_constant", "psnr_unseen_blurred", "psnr_constant_wholly_unseen", "psnr_blurred_wholly_unseen",
    "hf_ratio_holes", "patch_kid_holes", "patch_swd_holes", "st_lpips_holes", "latent_grid", "warp_error", "ece_colour",
    "ece_depth",
)  # fmt: skip
CAPTION = (
    "constant: the mean colour of what was observed. blurred: by 8 px. wholly unseen: views more than 95 % unseen. "
    "detail: its contrast, imagined over true; 1 is as sharp. KID, SWD, ST-LPIPS: distances, 0 is alike. grid: "
    "repeated gradients, imagined over true. warp: difference of neighbouring views."
)
HEADINGS = {
    "psnr": ("PSNR", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "psnr_seen": ("PSNR seen", "{:.2f}"),
    "psnr_unseen": ("PSNR unseen", "{:.2f}"),
    "coverage": ("coverage", "{:.2f}"),
    "observed_precision": ("obs. prec.", "{:.3f}"),
    "observed_recall": ("obs. recall", "{:.3f}"),
    "abs_rel": ("AbsRel", "{:.3f}"),
    "delta_1_25": ("δ<1.25", "{:.3f}"),
    "seconds_per_view": ("s/view", "{:.3f}"),
    "cloud_precision": ("cloud prec.", "{:.3f}"),
    "cloud_recall": ("cloud recall", "{:.3f}"),
    "cloud_f1": ("cloud F1", "{:.3f}"),
    "psnr_revisited_imagined": ("PSNR revisited", "{:.2f}"),
    "steps": ("steps", "{:.0f}"),
    "colour_drift": ("colour drift", "{:.2f}"),
    "contrast_kept": ("contrast ratio", "{:.3f}"),
    "seam": ("seam", "{:.2f}"),
    "joint": ("joint", "{:.2f}"),
    "ate_percent": ("ATE %", "{:.2f}"),
    "rotation_degrees": ("rotation °", "{:.2f}"),
    "st_lpips": ("ST-LPIPS", "{:.3f}"),
    "psnr_covered": ("PSNR covered", "{:.2f}"),
    "drift_pixels": ("drift px", "{:.1f}"),
    "drifted": ("drifted", "{:.2f}"),
    "psnr_constant": ("PSNR\nconstant", "{:.2f}"),
    "psnr_unseen_blurred": ("PSNR\nblurred", "{:.2f}"),
    "psnr_constant_wholly_unseen": ("wholly unseen\nconstant", "{:.2f}"),
    "psnr_blurred_wholly_unseen": ("wholly unseen\nblurred", "{:.2f}"),
    "hf_ratio_holes": ("detail", "{:.2f}"),
    "patch_kid_holes": ("patch\nKID", "{:.3f}"),
    "patch_swd_holes": ("patch\nSWD", "{:.4f}"),
    "st_lpips_holes": ("ST-LPIPS", "{:.3f}"),
    "latent_grid": ("grid", "{:.2f}"),
    "warp_error": ("warp", "{:.3f}"),
    "ece_colour": ("ECE\ncolour", "{:.3f}"),
    "ece_depth": ("ECE\ndepth", "{:.3f}"),
}


def mean(values: list[float | None]) -> float | None:
    """Mean of the values that are not None; None if there are none."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def means(rows: Sequence[Row]) -> list[Row]:
    """One row for each protocol, poses and pipeline with several sequences: means of the metrics, sum of the frames."""
    groups: dict[tuple[str, str | None, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.protocol, row.poses, row.pipeline), []).append(row)
    return [
        Row("mean", protocol, pipeline, sum(row.frames for row in group), **_means(group), poses=poses)
        for (protocol, poses, pipeline), group in groups.items()
        if len(group) > 1
    ]


def _means(group: list[Row]) -> dict[str, Any]:
    return {name: mean([getattr(row, name) for row in group]) for name in METRICS}


def one_line(row: Row) -> str:
    """A row as one line of text, for progress output."""
    metrics = [
        f"{HEADINGS[name][0]} {format_value(value, HEADINGS[name][1])}"
        for name in SUMMARY_METRICS
        if (value := getattr(row, name)) is not None
    ]
    poses = f", {row.poses} poses" if row.poses else ""
    return f"{row.protocol}, {row.sequence}{poses}, {row.pipeline}: {', '.join(metrics) or 'no metrics'}"


def format_table(rows: list[Row]) -> Table:
    """A table for the terminal: for each protocol the rows of every sequence, then their means."""
    headings = {name: heading for name, heading in HEADINGS.items() if name not in HOLE_METRICS}
    return _table(rows, headings, "Means over frames; see docs/benchmarks/evaluation.md", None)


def format_hole_table(rows: list[Row]) -> Table | None:
    """A table of the figures of holes; None if no row has any."""
    if not any(getattr(row, name) is not None for row in rows for name in HOLE_METRICS):
        return None
    return _table(rows, {name: HEADINGS[name] for name in HOLE_METRICS}, "In holes: pixels that no view saw", CAPTION)


def _table(rows: list[Row], headings: dict[str, tuple[str, str]], title: str, caption: str | None) -> Table:
    ordered: list[Row] = []
    averages = means(rows)
    for protocol in dict.fromkeys(row.protocol for row in rows):
        ordered += [row for row in (*rows, *averages) if row.protocol == protocol]
    # Names of pipelines are long, and their ends tell them apart.
    columns = [
        *(Column(name, attrgetter(name), label=True) for name in ("protocol", "sequence")),
        *([Column("poses", attrgetter("poses"), label=True)] if any(row.poses for row in rows) else []),
        Column("pipeline", attrgetter("pipeline"), label=True, fold=True),
        Column("frames", attrgetter("frames")),
    ]
    columns += [
        Column(heading, attrgetter(name), form)
        for name, (heading, form) in headings.items()
        if any(getattr(row, name) is not None for row in rows)
    ]
    return build_table(
        ordered,
        columns,
        title=title,
        caption=caption,
        bold=lambda row: row.sequence == "mean",
        ends_section=lambda i: i + 1 == len(ordered) or ordered[i + 1].sequence != ordered[i].sequence,
    )


def write_json(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows and their means, see `output.write_rows`."""
    write_rows(path, [asdict(row) for row in rows], [asdict(row) for row in means(rows)])


def read_json(path: Path) -> list[Row]:
    """Reads the rows that `write_json` wrote.

    Raises:
        InputError: the file holds something else.
    """
    return read_rows(path, lambda row: Row(**row), "worldstereo evaluate --json")
