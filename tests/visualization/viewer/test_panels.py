"""Text and images of the viewer's page."""

from dataclasses import replace

import numpy as np
from helpers.viewer import POSES, imagined_viewable, imagined_views

from worldstereo_ros.visualization.viewer.panels import image_strip, summary, view_images


def test_summary_counts_points_and_escapes_the_name(wall_views):
    viewable = imagined_viewable(wall_views)
    text = summary(viewable, 600)
    assert "room &lt;1&gt;" in text
    assert "<1>" not in text
    assert "12,000 points, 600 of them" in text
    assert f"{viewable.observed.mean():.0%}" in text
    assert "Imagined" in text
    observed_only = replace(viewable, observed=np.ones(12000, bool), imagined=(), path=POSES[:0])
    assert "Imagined" not in summary(observed_only, 12000)


def test_view_images_have_captions(wall_views):
    assert len(view_images(wall_views[0])) == 2
    imagined = imagined_views(wall_views)[0]
    captions = [caption for _, caption in view_images(imagined)]
    assert len(captions) == 4
    assert any("50% observed" in caption for caption in captions)
    assert image_strip(imagined).count("data:image/jpeg;base64,") == 4
