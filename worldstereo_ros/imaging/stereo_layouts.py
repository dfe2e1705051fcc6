"""Puts the two eyes of a stereo pair into one image: side by side, one above the other, or as an anaglyph."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.utils.errors import InputError

# Least-squares projection for red-cyan glasses (Dubois 2001, "A projection method to generate anaglyph stereo images").
# Rows: red, green, blue of the anaglyph; columns: red, green, blue of an eye.
DUBOIS_LEFT = np.array(
    [[0.4561, 0.500484, 0.176381], [-0.0400822, -0.0378246, -0.0157589], [-0.0152161, -0.0205971, -0.00546856]]
)
DUBOIS_RIGHT = np.array(
    [[-0.0434706, -0.0879388, -0.00155529], [0.378476, 0.73364, -0.0184503], [-0.0721527, -0.112961, 1.2264]]
)


@dataclass(frozen=True)
class StereoLayout:
    """How both eyes lie in the images of a file.

    Attributes:
        name: value of `--format`.
        suffix: end of the file's name, by which players know the layout.
        columns, rows: eyes beside and above each other; 1 and 1 for an anaglyph and for one eye.
        halved: each eye is squeezed to half its size along the side where the eyes adjoin.
        packing: number of the arrangement in H.264's frame packing message (ITU-T H.264, table D-8), None if there is
            none.
    """

    name: str
    suffix: str
    columns: int = 1
    rows: int = 1
    halved: bool = False
    packing: int | None = None

    def arrange(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Both eyes in one image.

        Args:
            left, right: (H, W, 3) uint8 RGB.

        Returns:
            (H', W', 3) uint8 RGB, with an even height and width, which videos need: the last row and column of each eye
            are repeated where its size is odd. The left eye is on the left, or above.

        Raises:
            InputError: the eyes differ in size.
        """
        if left.shape != right.shape:
            raise InputError(f"The eyes have shapes {left.shape} and {right.shape}; equal ones were expected.")
        if self.columns * self.rows == 1:
            return pad_to_even(anaglyph(left, right))
        eyes = [left, right]
        if self.halved:
            height, width = left.shape[:2]
            size = (-(-width // self.columns), -(-height // self.rows))
            eyes = [cv2.resize(eye, size, interpolation=cv2.INTER_AREA) for eye in eyes]
        return np.concatenate([pad_to_even(eye) for eye in eyes], axis=1 if self.columns > 1 else 0)


LAYOUTS = {
    layout.name: layout
    for layout in (
        StereoLayout("sbs", "_LRF_Full_SBS", columns=2, packing=3),
        StereoLayout("half-sbs", "_LR", columns=2, halved=True, packing=3),
        StereoLayout("tb", "_TBF_fulltb", rows=2, packing=4),
        StereoLayout("half-tb", "_TB", rows=2, halved=True, packing=4),
        StereoLayout("anaglyph", "_redcyan"),
    )
}
LEFT_RIGHT = "left-right"  # two files
FORMATS = (*LAYOUTS, LEFT_RIGHT)


def anaglyph(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Anaglyph for red-cyan glasses, red on the left eye.

    Args:
        left, right: (H, W, 3) uint8 RGB.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    mixed = cv2.transform(left.astype(np.float32), DUBOIS_LEFT) + cv2.transform(right.astype(np.float32), DUBOIS_RIGHT)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def pad_to_even(image: np.ndarray) -> np.ndarray:
    """Repeats the last row and column of an image (H, W, 3) where its height or width is odd."""
    height, width = image.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return image
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
