"""White or black borders around the picture that a camera driver leaves when it registers or rectifies images.

Such a border is not part of the place: warped into other views it becomes a streak. It is cut off only if it cannot be
a bright ceiling or a dark floor: constant extreme colour over the whole length of the side, a sharp end parallel to the
side, and the same colour on the opposite side too. For curved black borders see `curved_borders`.
"""

from __future__ import annotations

import numpy as np

from worldstereo_ros.imaging.curved_borders import inside_curved_border

MAX_BORDER = 0.08  # of the width or height, on each side
MIN_BORDER_PX = 2
WHITE_LEVEL, BLACK_LEVEL = 235, 20  # a border is brighter, or darker, in all channels
COLOUR_TOLERANCE = 16  # grey levels, of a border's pixels after JPEG compression
MIN_SHARE = 0.97  # of a line's pixels that have the border's colour; compression changes some
# The share falls to this within STEP_PX lines: the evidence for a border, and enough once two other sides have one
# (a bright window may touch a white border).
STEP_SHARE, WEAK_STEP_SHARE = 0.6, 0.93
STEP_PX = 3
RINGING_PX = 1  # next to the border, cut off too
MIN_SIZE_PX = 64  # smaller images are left as they are


def valid_area(image: np.ndarray) -> tuple[slice, slice]:
    """Finds the part of an image inside its white or black border.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        Slices of the rows and columns inside the border; all of them, `(slice(0, H), slice(0, W))`, if there is none.
        A border on one side, or on two adjacent ones, is not cut off, since it may belong to the place.
    """
    height, width = image.shape[:2]
    whole = slice(0, height), slice(0, width)
    if min(height, width) < MIN_SIZE_PX:
        return whole
    curved = inside_curved_border(image)
    if curved != whole:
        return curved
    columns = image.swapaxes(0, 1)
    sides = [image, image[::-1], columns, columns[::-1]]  # lines from each side inwards: top, bottom, left, right
    colours = [_border_colour(lines[0]) for lines in sides]
    found = [0 if c is None else _border_width(lines, c, STEP_SHARE) for lines, c in zip(sides, colours, strict=True)]
    for first, second in ((0, 1), (2, 3)):
        one, other = colours[first], colours[second]
        if not (found[first] and found[second]) or one is None or other is None:
            continue
        if np.abs(one - other).max() > COLOUR_TOLERANCE:
            continue
        widths = []
        for lines, colour, width_px in zip(sides, colours, found, strict=True):
            same = colour is not None and np.abs(colour - one).max() <= COLOUR_TOLERANCE
            widths.append((width_px or _border_width(lines, one, WEAK_STEP_SHARE)) if same else 0)
        top, bottom, left, right = widths
        return slice(top, height - bottom), slice(left, width - right)
    return whole


def _border_colour(line: np.ndarray) -> np.ndarray | None:
    """(3,) median colour of an image's outermost line (L, 3), None if it is not extreme all along."""
    colour = np.median(line, axis=0)
    extreme = (colour >= WHITE_LEVEL).all() or (colour <= BLACK_LEVEL).all()
    return colour if extreme and _share(line[None], colour)[0] >= MIN_SHARE else None


def _border_width(lines: np.ndarray, colour: np.ndarray, step_share: float) -> int:
    """Number of lines to cut off from the start of `lines` (N, L, 3), 0 = no border."""
    limit = int(MAX_BORDER * len(lines))
    shares = _share(lines[: limit + STEP_PX + 1], colour)
    inside = np.nonzero(shares < MIN_SHARE)[0]
    if not len(inside) or not MIN_BORDER_PX <= inside[0] <= limit:
        return 0
    step = np.nonzero(shares[inside[0] : inside[0] + STEP_PX] <= step_share)[0]
    return int(inside[0] + step[0] + RINGING_PX) if len(step) else 0


def _share(lines: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """(N,) share of the pixels of each line (N, L, 3) that have a colour."""
    return (np.abs(lines.astype(np.int16) - colour.astype(np.int16)).max(axis=-1) <= COLOUR_TOLERANCE).mean(axis=-1)
