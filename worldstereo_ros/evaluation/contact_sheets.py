"""Contact sheets of an evaluation: for one sequence, what was given, the truth, and what each pipeline shows.

What no given view saw is outlined in every picture, and tinted in the truth: there a pipeline had to imagine.
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
from worldstereo_ros.io.images import write_image
from worldstereo_ros.visualization.contact_sheet import FAINT, INK, PAPER
from worldstereo_ros.visualization.images import IMAGINED_COLOUR

COLUMNS = 5
CELL = 240  # pixels across
LEFT, TOP, MARGIN, GAP, CAPTION = 168, 84, 24, 10, 20
LETTERS = 20  # of a row's name in a line
LEAST_REGION = 0.004  # of the picture: smaller unseen regions are not outlined
TINT = 0.25  # of what was unseen in the truth
SMOOTHING = 7  # pixels of a cell: what is thinner is neither outlined nor cut out
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass
class Block:
    """The pictures of one sequence under one protocol.

    Attributes:
        sequence, protocol: their names.
        given: the views that were given.
        frames: which of the asked frames are shown.
        truths: (H, W, 3) uint8 for each of `frames`.
        unseen: (H, W) bool for each of `frames`, True = with true depth, and no given view saw it.
        rows: pipeline to its pictures, one for each of `frames`; None until it came.
    """

    sequence: str
    protocol: str
    given: list[View]
    frames: list[int]
    truths: list[np.ndarray]
    unseen: list[np.ndarray]
    rows: dict[str, list[np.ndarray | None]] = field(default_factory=dict)

    def add(self, pipeline: str, frame: int, image: np.ndarray) -> None:
        """Keeps the picture (H, W, 3) uint8 of an asked frame, if it is one of those that are shown."""
        if frame in self.frames:
            row = self.rows.setdefault(pipeline, [None] * len(self.frames))
            row[self.frames.index(frame)] = image.copy()


class Sheets:
    """Collects the pictures of an evaluation and draws them.

    Attributes:
        blocks: one for each sequence and protocol with several asked frames.
    """

    def __init__(self) -> None:
        self.blocks: list[Block] = []

    def block(
        self, sequence: str, protocol: str, given: list[View], truths: Sequence[View], unseen: Sequence[np.ndarray]
    ) -> Block | None:
        """A new block; None where there are fewer than two asked frames to show.

        Args:
            sequence, protocol: their names.
            given: the views that were given.
            truths: the asked frames.
            unseen: (H, W) bool of each, see `Block`.
        """
        if len(truths) < 2:
            return None
        frames = sorted({int(i) for i in np.linspace(0, len(truths) - 1, min(COLUMNS, len(truths))).round()})
        block = Block(sequence, protocol, given, frames, [truths[i].image for i in frames], [unseen[i] for i in frames])
        self.blocks.append(block)
        return block

    def write(self, file: Path) -> list[Path]:
        """Draws every block: one into `file`, several into files beside it with protocol and sequence in their names.

        Raises:
            OSError: a file cannot be written.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        written = []
        for block in self.blocks:
            name = file.name if len(self.blocks) == 1 else f"{file.stem}-{block.protocol}-{block.sequence}{file.suffix}"
            write_image(file.with_name(name), draw(block))
            written.append(file.with_name(name))
        return written


def draw(block: Block) -> np.ndarray:
    """(H, W, 3) uint8: a block's contact sheet, one row for what was given, the truth and each pipeline."""
    height = round(CELL * block.truths[0].shape[0] / block.truths[0].shape[1])
    row_height = height + CAPTION + GAP
    columns = len(block.frames)
    sheet = np.full(
        (TOP + (2 + len(block.rows)) * row_height + MARGIN, 2 * MARGIN + LEFT + columns * (CELL + GAP) - GAP, 3),
        PAPER,
        np.uint8,
    )
    _write(sheet, f"{block.sequence}, {block.protocol}", (MARGIN, 36), 0.75, INK, 2)
    _write(
        sheet,
        "Outlined, and tinted in the truth: what no given view saw. PSNR in dB: whole frame, and there.",
        (MARGIN, 60),
    )

    def place(row: int, column: int, image: np.ndarray, caption: str, unseen: np.ndarray | None = None) -> None:
        x, y = MARGIN + LEFT + column * (CELL + GAP), TOP + row * row_height
        sheet[y : y + height, x : x + CELL] = _cell(image, (CELL, height), unseen, tint=TINT if row == 1 else 0.0)
        _write(sheet, caption, (x, y + height + 14), 0.4)

    def name(row: int, text: str) -> None:
        for number, line in enumerate(textwrap.wrap(text, LETTERS)[:5]):
            _write(sheet, line, (MARGIN, TOP + row * row_height + 18 + 19 * number), 0.46, INK)

    name(0, "given")
    for column, view in enumerate(block.given[:columns]):
        place(0, column, view.image, "")
    name(1, "truth")
    for column, (frame, truth, unseen) in enumerate(zip(block.frames, block.truths, block.unseen, strict=True)):
        place(1, column, truth, f"asked view {frame + 1}: {100 * unseen.mean():.0f} % unseen", unseen)
    for row, (pipeline, pictures) in enumerate(block.rows.items(), start=2):
        name(row, describe(pipeline).title)
        for column, (picture, truth, unseen) in enumerate(zip(pictures, block.truths, block.unseen, strict=True)):
            if picture is not None:
                place(row, column, picture, _caption(picture, truth, unseen), unseen)
    return sheet


def _caption(picture: np.ndarray, truth: np.ndarray, unseen: np.ndarray) -> str:
    whole, inside = metrics.psnr(picture, truth), metrics.psnr(picture, truth, unseen)
    return f"{whole:.1f}" if inside is None else f"{whole:.1f}, unseen {inside:.1f}"


def _cell(image: np.ndarray, size: tuple[int, int], unseen: np.ndarray | None, tint: float = 0.0) -> np.ndarray:
    """The picture at the size (width, height) of a cell, with the outline of what was unseen."""
    shrinks = size[0] < image.shape[1]
    cell = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    if unseen is None:
        return cell
    mask = cv2.resize(unseen.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (SMOOTHING, SMOOTHING))
    mask = cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel), cv2.MORPH_OPEN, kernel)
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    large = [outline for outline in outlines if cv2.contourArea(outline) >= LEAST_REGION * mask.size]
    cell[mask > 0] = (1 - tint) * cell[mask > 0] + tint * np.array(IMAGINED_COLOUR)
    # A light line inside a dark one is seen on every ground.
    cv2.drawContours(cell, large, -1, INK, 2, cv2.LINE_AA)
    cv2.drawContours(cell, large, -1, IMAGINED_COLOUR, 1, cv2.LINE_AA)
    return cell


def _write(
    picture: np.ndarray,
    text: str,
    at: tuple[int, int],
    size: float = 0.46,
    colour: tuple[int, int, int] = FAINT,
    weight: int = 1,
) -> None:
    cv2.putText(picture, text, at, _FONT, size, colour, weight, cv2.LINE_AA)
