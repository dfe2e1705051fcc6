"""Text in images."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np

INK, FAINT, PAPER = (30, 34, 40), (150, 154, 160), (250, 250, 248)  # RGB of text, secondary text, background
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_text(
    image: np.ndarray,
    text: str,
    position: tuple[int, int],
    size: float = 0.46,
    colour: Sequence[int] = INK,
    weight: int = 1,
) -> None:
    """Draws one line of text into an image, in place.

    Args:
        image: (H, W, 3) uint8.
        text: ASCII; letters with accents are drawn without them, other characters as question marks.
        position: (x, y) in pixels, the left end of the baseline.
        size: scale of OpenCV's Hershey font; 1 is about 22 pixels high.
        colour: RGB, 0 to 255.
        weight: thickness of the strokes in pixels.
    """
    cv2.putText(image, _ascii(text), position, _FONT, size, tuple(colour), weight, cv2.LINE_AA)


def text_width(text: str, size: float = 0.46, weight: int = 1) -> int:
    """Width in pixels of a line that `draw_text` draws."""
    return cv2.getTextSize(_ascii(text), _FONT, size, weight)[0][0]


def _ascii(text: str) -> str:
    # The font has no other characters, and OpenCV ends the process on parts of names that are not UTF-8.
    letters = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(letters).encode("ascii", errors="replace").decode()
