"""Arrays of dataclasses in files."""

from dataclasses import dataclass

import numpy as np
import pytest

from worldstereo_ros.training.data.array_files import ArrayFields


@dataclass(frozen=True)
class Pair(ArrayFields):
    one: np.ndarray
    two: np.ndarray


def test_arrays_return_as_they_were(tmp_path):
    pair = Pair(np.arange(6, dtype=np.float16).reshape(2, 3), np.array([True, False]))
    pair.save(tmp_path / "pair.npz")
    loaded = Pair.load(tmp_path / "pair.npz")
    assert isinstance(loaded, Pair)
    for name, array in pair.arrays().items():
        np.testing.assert_array_equal(getattr(loaded, name), array)
        assert getattr(loaded, name).dtype == array.dtype
    assert [file.name for file in tmp_path.iterdir()] == ["pair.npz"]


def test_a_file_without_an_array_is_refused(tmp_path):
    np.savez(tmp_path / "half.npz", one=np.zeros(3))
    with pytest.raises(KeyError, match="two"):
        Pair.load(tmp_path / "half.npz")
