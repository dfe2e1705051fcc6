"""Contact sheets."""

import numpy as np
import pytest

from worldstereo_ros.visualization.contact_sheet import contact_sheet
from worldstereo_ros.visualization.text import PAPER


def test_contact_sheet_leaves_cells_without_an_image_empty():
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    sheet = contact_sheet([[None, image]], ["a", "b"], ["row"], title="t")
    assert sheet.std() > 0
    empty_cell = sheet[90:270, 120:370]
    assert (empty_cell == PAPER).all()


@pytest.mark.parametrize("title", ["short", "a title that is much wider than its column and has to be drawn smaller"])
def test_contact_sheet_keeps_column_titles_within_their_column(title):
    image = np.zeros((60, 80, 3), np.uint8)
    sheet = contact_sheet([[image, image]], [title, ""], [""], title="", cell_width=160)
    first, second = 24 + 92, 24 + 92 + 160 + 8
    titles = (sheet[50:80] != PAPER).any(axis=(0, 2))
    assert titles[first : second - 8].any()
    assert not titles[second:].any()


def test_contact_sheet_draws_the_legend_at_the_upper_right():
    image = np.zeros((60, 80, 3), np.uint8)
    red, blue = (200, 20, 20), (20, 20, 200)
    sheet = contact_sheet([[image] * 3], [""] * 3, [""], title="t", legend=[(red, "one"), (blue, "two")])
    columns = [np.flatnonzero((sheet[:50] == colour).all(axis=2).any(axis=0)) for colour in (red, blue)]
    assert len(columns[0]) == len(columns[1]) > 10
    assert sheet.shape[1] / 2 < columns[0].max() < columns[1].min()
