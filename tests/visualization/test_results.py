"""Folders of results and their contact sheet."""

import numpy as np
import pytest
from helpers.textured_wall import CAMERA, half_imagined, textured_wall_views

from worldstereo_ros.geometry.views import View
from worldstereo_ros.visualization.results import view_contact_sheet


@pytest.fixture
def wall():
    return textured_wall_views()


def test_view_contact_sheet_has_a_column_for_the_ground_truth(wall):
    views = half_imagined(wall)
    with_truth = view_contact_sheet(views, wall, [view.image for view in wall], rows=3)
    without = view_contact_sheet(views, wall, rows=3)
    assert with_truth.shape[1] > without.shape[1]
    assert with_truth.shape[0] == without.shape[0]


def test_view_contact_sheet_sorts_the_columns_of_models_by_name(wall):
    views = half_imagined(wall)
    black_views = [View(np.zeros_like(view.image), CAMERA, view.world_from_camera) for view in views]
    one_model, two_models = (
        view_contact_sheet(views, wall, model="small", other_models=other)
        for other in (None, {"geometric": black_views})
    )
    assert two_models.shape[0] == one_model.shape[0]
    column_width = two_models.shape[1] - one_model.shape[1]
    assert column_width > 0
    # Columns: input, memory only, geometric, small, provenance.
    black = (two_models == 0).all(axis=2).mean(axis=0) > 0.5
    first, last = np.flatnonzero(black)[[0, -1]]
    assert last - first + 1 == black.sum() == 260
    assert first // column_width == 2
    with pytest.raises(ValueError, match="geometric has 3 views; 4 were expected"):
        view_contact_sheet(views, wall, other_models={"geometric": black_views[:3]})
