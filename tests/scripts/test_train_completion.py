"""Crops that the network of completions is trained on."""

import importlib.util

import numpy as np
import pytest
from helpers.paths import REPOSITORY

from worldstereo_ros.planning.cells import CellState


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_completion", REPOSITORY / "scripts" / "train_completion.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def grids(script):
    state = np.zeros((60, 90), np.uint8)
    state[20:30, 20:60], state[19, 20:60] = CellState.OBSERVED_FREE, CellState.OBSERVED_OCCUPIED
    occupied, outside = np.zeros(state.shape, bool), np.zeros(state.shape, bool)
    occupied[10:20, 20:60], outside[:3] = True, True
    return script.Grids(state[None], np.array([0.5]), occupied, outside)


def test_crops_ask_for_what_was_not_seen(script, grids):
    rng = np.random.default_rng(0)
    for _ in range(8):
        free, occupied, target, weight = script.draw_crop(grids, rng)
        assert free.shape == (script.CROP, script.CROP)
        assert free.sum() > 0
        assert not (weight[(free + occupied) > 0]).any()
        assert set(np.unique(weight)) <= {0, np.float32(script.BEYOND_WEIGHT), 1}
        assert not (free * target).any()
        assert (target >= occupied).all()
        assert (target * weight).sum() > 0
