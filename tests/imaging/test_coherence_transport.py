"""Images that continue into their holes along their lines."""

import cv2
import numpy as np
import pytest

from worldstereo_ros.imaging.coherence_transport import continue_image


def distance_to(known: np.ndarray) -> np.ndarray:
    return cv2.distanceTransform((~known).astype(np.uint8), cv2.DIST_L2, 5)


def fill(
    image: np.ndarray, known: np.ndarray, reach: float = 99.0, **options: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    depth = options.get("depth", np.ones(known.shape, np.float32))
    least = options.get("min_depth", np.zeros(known.shape, np.float32))
    return continue_image(image, known, distance_to(known), reach, depth, least)


def stripes(angle: float) -> np.ndarray:
    """(80, 120, 3) uint8: dark and bright stripes of eight pixels, smooth, across this direction."""
    y, x = np.mgrid[:80, :120]
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * np.pi / 8)
    return np.repeat((127 + 100 * np.clip(3 * wave, -1, 1))[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("angle", [0.0, 0.4, -0.5, np.pi / 2])
def test_stripes_continue(angle: float) -> None:
    """A hole of ten pixels in stripes has a tenth of the error of its mean colour."""
    truth = stripes(angle)
    known = np.ones(truth.shape[:2], bool)
    known[35:45, 50:70] = False
    image = np.where(known[..., None], truth, 0).astype(np.uint8)
    filled, where = fill(image, known)
    assert (where == ~known).all()
    error = ((filled - truth)[~known] ** 2).mean()
    assert error < 0.1 * truth[~known].astype(np.float32).var()
    assert (filled[known] == truth[known]).all()


def test_a_line_continues_beyond_the_side() -> None:
    truth = np.full((60, 100, 3), 200, np.uint8)
    cv2.line(truth, (0, 50), (99, 10), (20, 20, 20), 5)
    known = np.broadcast_to(np.arange(100) < 85, (60, 100)).copy()
    filled, _ = fill(np.where(known[..., None], truth, 99).astype(np.uint8), known)
    dark = filled[..., 0] < 110
    overlap = (dark & (truth[..., 0] < 110))[:, 85:97].sum() / (truth[:, 85:97, 0] < 110).sum()
    assert overlap > 0.7


def test_only_what_is_near_and_deep_enough_continues() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, :10], image[:, 30:] = (250, 0, 0), (0, 250, 0)
    known = np.zeros((40, 40), bool)
    known[:, :10] = known[:, 30:] = True
    depth = np.where(np.arange(40)[None] < 20, np.float32(1), np.float32(3)) * np.ones((40, 1), np.float32)
    filled, where = fill(image, known, reach=4.0, depth=depth)
    assert where[:, 10:14].all()
    assert where[:, 26:30].all()
    assert not where[:, 15:25].any()
    assert (filled[:, 10:14, 0] > 200).all()
    assert (filled[:, 26:30, 1] > 200).all()
    # The red thing is nearer than what may be here: only green continues, through all of the hole that it reaches.
    filled, where = fill(image, known, depth=depth, min_depth=np.full((40, 40), 2.0, np.float32))
    assert (filled[where][:, 0] == 0).all()
    assert (filled[where][:, 1] > 200).all()
    assert where[:, 26:30].all()
    assert not where[:, 10].any()


def test_nothing_known_and_nothing_missing() -> None:
    image = np.full((8, 8, 3), 7, np.uint8)
    for known in (np.zeros((8, 8), bool), np.ones((8, 8), bool)):
        filled, where = fill(image, known)
        assert (filled == image).all()
        assert not where.any()
