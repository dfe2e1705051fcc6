"""Contact sheets of an evaluation: observed views, ground truth and the images of each pipeline.

Regions that no observed view saw are outlined in every image, and tinted in the ground truth.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.evaluation import metrics
from worldstereo_ros.evaluation.ablations import describe
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.io.images import write_image
from worldstereo_ros.utils.indices import evenly_spaced_indices
from worldstereo_ros.visualization.contact_sheet import FAINT, INK, PAPER
from worldstereo_ros.visualization.images import IMAGINED_COLOUR
from worldstereo_ros.visualization.text import draw_text

MAX_COLUMNS = 5
CELL_PX = 240  # width of an image
LEFT_PX, TOP_PX, MARGIN_PX, GAP_PX, CAPTION_PX = 168, 84, 24, 10, 20
MAX_LINE_CHARS = 20  # of a row's name
MIN_REGION_FRACTION = 0.004  # fraction of the image; smaller unseen regions are not outlined
TINT_OPACITY = 0.25  # of unseen regions in the ground truth
SMOOTHING_PX = 7  # thinner unseen regions, and thinner gaps between them, are removed


@dataclass
class SheetSection:
    """The images of one sequence under one protocol.

    Attributes:
        sequence, protocol: their names.
        observed_views: views that the pipelines are given.
        frames: which of the target views are shown.
        truths: (H, W, 3) uint8 for each of `frames`.
        unseen: (H, W) bool for each of `frames`: pixels with true depth that no observed view saw.
        rows: images of each pipeline, one for each of `frames`; None until `add` is called.
    """

    sequence: str
    protocol: str
    observed_views: list[View]
    frames: list[int]
    truths: list[np.ndarray]
    unseen: list[np.ndarray]
    rows: dict[str, list[np.ndarray | None]] = field(default_factory=dict)

    def add(self, pipeline: str, frame: int, image: np.ndarray) -> None:
        """Keeps the image (H, W, 3) uint8 of a target view, if it is one of `frames`."""
        if frame in self.frames:
            row = self.rows.setdefault(pipeline, [None] * len(self.frames))
            row[self.frames.index(frame)] = image.copy()


class ContactSheets:
    """Collects the images of an evaluation and draws them.

    Attributes:
        sections: one for each sequence and protocol with several target views.
    """

    def __init__(self) -> None:
        self.sections: list[SheetSection] = []

    def add_section(
        self,
        sequence: str,
        protocol: str,
        observed_views: list[View],
        truths: Sequence[View],
        unseen: Sequence[np.ndarray],
    ) -> SheetSection | None:
        """Starts a section; returns None if there are fewer than two target views.

        Args:
            sequence, protocol: their names.
            observed_views: views that the pipelines are given.
            truths: the target views.
            unseen: (H, W) bool of each, see `SheetSection`.
        """
        if len(truths) < 2:
            return None
        frames = evenly_spaced_indices(len(truths), MAX_COLUMNS)
        section = SheetSection(
            sequence, protocol, observed_views, frames, [truths[i].image for i in frames], [unseen[i] for i in frames]
        )
        self.sections.append(section)
        return section

    def write(self, file: Path) -> list[Path]:
        """Draws a single section into `file`, several into files next to it named by protocol and sequence.

        Raises:
            OSError: a file cannot be written.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        written = []
        for section in self.sections:
            suffix = "" if len(self.sections) == 1 else f"-{section.protocol}-{section.sequence}"
            target = file.with_name(f"{file.stem}{suffix}{file.suffix}")
            write_image(target, draw(section))
            written.append(target)
        return written


def draw(section: SheetSection) -> np.ndarray:
    """(H, W, 3) uint8: rows of observed views, ground truth and each pipeline."""
    height = round(CELL_PX * section.truths[0].shape[0] / section.truths[0].shape[1])
    row_height = height + CAPTION_PX + GAP_PX
    sheet_width = 2 * MARGIN_PX + LEFT_PX + len(section.frames) * (CELL_PX + GAP_PX) - GAP_PX
    sheet = np.full((TOP_PX + (2 + len(section.rows)) * row_height + MARGIN_PX, sheet_width, 3), PAPER, np.uint8)
    draw_text(sheet, f"{section.sequence}, {section.protocol}", (MARGIN_PX, 36), 0.75, INK, 2)
    subtitle = "Outlined: regions that no observed view saw. PSNR in dB over the whole image, and over these regions."
    draw_text(sheet, subtitle, (MARGIN_PX, 60), 0.46, FAINT)

    def draw_cell(row: int, column: int, image: np.ndarray, caption: str, unseen: np.ndarray | None = None) -> None:
        x, y = MARGIN_PX + LEFT_PX + column * (CELL_PX + GAP_PX), TOP_PX + row * row_height
        sheet[y : y + height, x : x + CELL_PX] = outlined(
            image, (CELL_PX, height), unseen, tint=TINT_OPACITY if row == 1 else 0.0
        )
        draw_text(sheet, caption, (x, y + height + 14), 0.4, FAINT)

    def draw_name(row: int, text: str) -> None:
        for number, line in enumerate(textwrap.wrap(text, MAX_LINE_CHARS)[:5]):
            draw_text(sheet, line, (MARGIN_PX, TOP_PX + row * row_height + 18 + 19 * number), 0.46, INK)

    draw_name(0, "observed")
    for column, view in enumerate(section.observed_views[: len(section.frames)]):
        draw_cell(0, column, view.image, "")
    draw_name(1, "ground truth")
    for column, (frame, truth, unseen) in enumerate(zip(section.frames, section.truths, section.unseen, strict=True)):
        draw_cell(1, column, truth, f"target view {frame + 1}: {100 * unseen.mean():.0f} % unseen", unseen)
    for row, (pipeline, images) in enumerate(section.rows.items(), start=2):
        draw_name(row, describe(pipeline).title)
        for column, (image, truth, unseen) in enumerate(zip(images, section.truths, section.unseen, strict=True)):
            if image is not None:
                draw_cell(row, column, image, _caption(image, truth, unseen), unseen)
    return sheet


def _caption(image: np.ndarray, truth: np.ndarray, unseen: np.ndarray) -> str:
    whole, inside = metrics.psnr(image, truth), metrics.psnr(image, truth, unseen)
    return f"{whole:.1f}" if inside is None else f"{whole:.1f}, unseen {inside:.1f}"


def outlined(image: np.ndarray, size: tuple[int, int], unseen: np.ndarray | None, tint: float = 0.0) -> np.ndarray:
    """The image at the size (width, height) of a cell, with unseen regions outlined and tinted."""
    cell = resize_image(image, *size, enlarge=cv2.INTER_CUBIC)
    if unseen is None:
        return cell
    mask = cv2.resize(unseen.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (SMOOTHING_PX, SMOOTHING_PX))
    mask = cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel), cv2.MORPH_OPEN, kernel)
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    large = [outline for outline in outlines if cv2.contourArea(outline) >= MIN_REGION_FRACTION * mask.size]
    cell[mask > 0] = (1 - tint) * cell[mask > 0] + tint * np.array(IMAGINED_COLOUR)
    # A light line inside a dark one is visible on every background.
    cv2.drawContours(cell, large, -1, INK, 2, cv2.LINE_AA)
    cv2.drawContours(cell, large, -1, IMAGINED_COLOUR, 1, cv2.LINE_AA)
    return cell
