"""Stage 6: all parts of the distilled model together, on the true clips, along its own few steps.

Branches that were trained on the undistilled backbone drive the distilled one as they are. A small model has no
capacity to spare, though: what its branches and its backbone do for each other can be made to fit.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from worldstereo_ros.training.clips import Shelf
from worldstereo_ros.training.distill import DistillStage
from worldstereo_ros.training.loop import Player, parameters_of
from worldstereo_ros.training.run import Run


class PolishStage(DistillStage):
    """See the module, and `loop.Stage`."""

    def __init__(self, run: Run, training: Shelf, validation: Shelf) -> None:
        super().__init__(run, training, validation, "polish")

    def _make_players(self) -> list[Player]:
        return [Player("student", parameters_of(self.model), self._regression, self.settings.learning_rate)]

    def _regression(self) -> tuple[torch.Tensor, dict[str, float]]:
        return functional.mse_loss(self._paint(self._clips, gradient=True), self._clips.latents), {}
