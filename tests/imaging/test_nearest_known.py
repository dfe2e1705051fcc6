"""The nearest known pixel of each pixel."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.imaging.nearest_known import nearest_known


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 1.0))
def test_values_come_from_the_nearest_known_pixel(seed: int, share: float) -> None:
    """The distance is right within the 3 % of its approximation, and the value is one of a pixel at that distance."""
    random = np.random.default_rng(seed)
    known = random.random((17, 23)) < share
    known[random.integers(17), random.integers(23)] = True
    values = np.arange(known.size, dtype=np.float32).reshape(known.shape)
    nearest, distance = nearest_known(values, known)
    y, x = np.mgrid[:17, :23]
    rows, columns = np.nonzero(known)
    least = np.hypot(y[..., None] - rows, x[..., None] - columns).min(axis=-1)
    np.testing.assert_allclose(distance, least, rtol=0.03, atol=1e-3)
    row, column = np.divmod(nearest.astype(int), 23)
    assert known[row, column].all()
    np.testing.assert_allclose(np.hypot(y - row, x - column), least, rtol=0.06, atol=1e-3)
    assert (nearest[known] == values[known]).all()
