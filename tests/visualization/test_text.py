"""Text in images."""

import numpy as np
import pytest

from worldstereo_ros.visualization.text import draw_text, text_width


@pytest.mark.parametrize(
    ("text", "drawn"),
    [("K\u00fcche", "Kuche"), ("Ku\u0308che", "Kuche"), ("caf\u00e9 \u5ba4", "cafe ?"), ("b\udcff", "b?")],
)
def test_letters_are_drawn_without_accents(text, drawn):
    images = [np.zeros((40, 200, 3), np.uint8) for _ in range(2)]
    for image, line in zip(images, (text, drawn), strict=True):
        draw_text(image, line, (4, 30), colour=(255, 255, 255))
    assert images[0].any()
    np.testing.assert_array_equal(*images)
    assert text_width(text) == text_width(drawn)
