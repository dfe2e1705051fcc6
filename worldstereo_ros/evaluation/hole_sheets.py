"""Sheets of what a pipeline imagined in holes: its worst, its median and its best views.

Views are ordered by the sliced Wasserstein distance of their patches in holes, see `hole_metrics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldstereo_ros.evaluation.contact_sheets import CELL_PX, outlined
from worldstereo_ros.io.images import write_image
from worldstereo_ros.visualization.contact_sheet import contact_sheet

VIEWS_PER_GROUP = 10


@dataclass(frozen=True)
class RankedView:
    """A view of a pipeline, reduced to a cell of the sheet.

    Attributes:
        distance: of its patches in holes from the true ones.
        name: sequence, protocol and number.
        image, truth: (h, w, 3) uint8; holes are outlined in both.
    """

    distance: float
    name: str
    image: np.ndarray
    truth: np.ndarray


class HoleSheets:
    """Collects views of pipelines, over all sequences and protocols."""

    def __init__(self) -> None:
        self._views: dict[str, list[RankedView]] = {}

    def add(
        self, pipeline: str, name: str, distance: float, image: np.ndarray, truth: np.ndarray, unseen: np.ndarray
    ) -> None:
        """Adds a view.

        Args:
            pipeline: its name.
            name: of the view.
            distance: see `RankedView`.
            image, truth: (H, W, 3) uint8.
            unseen: (H, W) bool, pixels that no observed view saw.
        """
        size = (CELL_PX, round(CELL_PX * image.shape[0] / image.shape[1]))
        cells = [outlined(one, size, unseen) for one in (image, truth)]
        self._views.setdefault(pipeline, []).append(RankedView(distance, name, *cells))

    def draw(self, pipeline: str) -> np.ndarray:
        """(H, W, 3) uint8: for each group of views the truth above what was imagined."""
        ranked = sorted(self._views[pipeline], key=lambda view: view.distance, reverse=True)
        count = min(VIEWS_PER_GROUP, max(1, len(ranked) // 3))
        middle = (len(ranked) - count) // 2
        groups = {"worst": ranked[:count], "median": ranked[middle : middle + count], "best": ranked[-count:]}
        parts = [
            contact_sheet(
                [[view.truth for view in views], [view.image for view in views]],
                [f"{view.name}: {view.distance:.4f}" for view in views],
                ["truth", "imagined"],
                title=f"{pipeline}: the {name} views",
                subtitle="Outlined: holes, seen by no observed view. Figures: distance of patches from true ones.",
                cell_width=CELL_PX,
            )
            for name, views in groups.items()
        ]
        return np.concatenate(parts)

    def write(self, file: Path) -> list[Path]:
        """Writes a sheet for each pipeline beside `file`, named by the pipeline. Returns their paths.

        Raises:
            OSError: a file cannot be written.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        written = []
        for pipeline in self._views:
            safe = "".join(letter if letter.isalnum() or letter in "+-_." else "_" for letter in pipeline)
            written.append(file.with_name(f"{file.stem}-holes-{safe}{file.suffix}"))
            write_image(written[-1], self.draw(pipeline))
        return written
