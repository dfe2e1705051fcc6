"""What a stereo pair is to be like: base, strength, convergence, and which eye is made."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldstereo_ros.pipelines.stereo.warp import EYES
from worldstereo_ros.utils.errors import InputError

# What paints the rest of the holes: nothing, the bundled network, or the published ones.
GEOMETRIC, SMALL, PUBLISHED = "geometric", "small", "svd"
REFINER = "stereo"  # the network's folder in `base` of a checkpoint or of a training run
_PUBLISHED_MODEL = re.compile(rf"{PUBLISHED}:(?P<svd>.+),refiner:(?P<refiner>.+)")
HUMAN_BASE_M = 0.065  # between the eyes of most people
MAX_BASE_M, WIDE_BASE_M = 20.0, 1.0
MAX_STRENGTH = 10.0
MAX_DISPARITY = 0.25  # of the width: nearer surfaces are drawn at this disparity


@dataclass(frozen=True)
class StereoSettings:
    """What a stereo pair is to be like.

    Attributes:
        base: distance between the eyes in metres (in the unit of the depth, if that is arbitrary).
        strength: factor on all disparities; 1 = as the base says.
        convergence: distance in metres of what appears on the screen (the made eye is shifted, not turned); None:
            parallel eyes, where what is infinitely far appears on the screen and everything else before it.
        eye: the eye to make, right or left. The other eye is the camera's image, unchanged.
        memory: number of past frames that fill holes; 0: none.
        steady: masks, painted pixels and their rims are made steady over time by optical flow.
        soft_edges: edges of nearer surfaces are unmixed and mixed anew, see `soft_edges`.
        edge_px: see `warp_to_eye`; of no effect with soft edges.
        threads: number of threads.

    Raises:
        InputError: a number is out of range.
    """

    base: float = HUMAN_BASE_M
    strength: float = 1.0
    convergence: float | None = None
    eye: str = "right"
    memory: int = 6
    steady: bool = True
    soft_edges: bool = True
    edge_px: int = 1
    threads: int = 2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.base) and 0 < self.base <= MAX_BASE_M):
            raise InputError(
                f"The base is {self.base:g} m; a number above 0 and up to {MAX_BASE_M:g} was expected: the distance "
                f"between the eyes in metres, such as {HUMAN_BASE_M} (not 65 for millimetres)."
            )
        if not (math.isfinite(self.strength) and 0 < self.strength <= MAX_STRENGTH):
            raise InputError(
                f"The strength is {self.strength:g}; a number above 0 and up to {MAX_STRENGTH:g} was expected. 1 is "
                "what the base gives."
            )
        if self.convergence is not None and not (math.isfinite(self.convergence) and self.convergence > 0):
            raise InputError(
                f"The convergence is {self.convergence:g} m; a distance above 0 was expected. Without it, the eyes are "
                "parallel."
            )
        if self.eye not in EYES:
            raise InputError(f"The eye is '{self.eye}'; {' or '.join(EYES)} was expected.")
        if self.memory < 0 or self.edge_px < 0 or self.threads < 1:
            raise InputError(
                f"Memory, edge and threads are {self.memory}, {self.edge_px} and {self.threads}; at least 0, 0 and 1 "
                "were expected."
            )

    @property
    def effective_base(self) -> float:
        """Base that the disparities have, metres: base times strength."""
        return self.base * self.strength

    def focal_base(self, fx: float) -> float:
        """Disparity times depth, pixels times metres, for a focal length in pixels."""
        return fx * self.effective_base

    def offset(self, fx: float) -> float:
        """Disparity in pixels of what appears on the screen, see `warp_to_eye`; 0 for parallel eyes."""
        return 0.0 if self.convergence is None else self.focal_base(fx) / self.convergence

    @property
    def notes(self) -> list[str]:
        """Sentences for the user about unusual settings."""
        if self.base <= WIDE_BASE_M:
            return []
        return [
            f"The base is {self.base:g} m: with eyes so far apart a place looks like a small model, and much of what "
            "one eye sees is hidden from the other."
        ]

    def description(self) -> dict[str, Any]:
        """What a file beside the video states, as JSON values."""
        return {
            "base_m": self.base,
            "strength": self.strength,
            "cameras": "parallel" if self.convergence is None else "converged",
            "convergence_m": self.convergence,
            "convergence_by": None if self.convergence is None else "shift of the made eye (no keystone)",
            "made_eye": self.eye,
            "memory_frames": self.memory,
        }


def parse_published(name: str) -> tuple[Path, Path] | None:
    """Folders of Stable Video Diffusion and of RefinerNet in `svd:PATH,refiner:PATH`; None for other models.

    Raises:
        InputError: the name begins so, and lacks a part.
    """
    if not name.startswith(f"{PUBLISHED}:"):
        return None
    match = _PUBLISHED_MODEL.fullmatch(name)
    if match is None:
        raise InputError(
            f"The stereo model is '{name}'; {PUBLISHED}:PATH,refiner:PATH was expected, with the folders of Stable "
            "Video Diffusion and of Stable Diffusion 2.1."
        )
    return Path(match["svd"]), Path(match["refiner"])
