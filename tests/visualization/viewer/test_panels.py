"""Text and images of the viewer's page."""

from dataclasses import replace

import numpy as np
from helpers.viewer import POSES, imagined_viewable, imagined_views

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.visualization.viewer.panels import image_strip, summary, view_images


def test_summary_counts_points_and_escapes_the_name(wall_views):
    viewable = imagined_viewable(wall_views)
    text = summary(viewable, 600)
    assert "room &lt;1&gt;" in text
    assert "<1>" not in text
    assert "12,000 points, 600 of them" in text
    assert f"{viewable.observed.mean():.0%}" in text
    assert "Imagined" in text
    assert f"{(viewable.provenance == Provenance.ESTIMATED).mean():.0%} of the points. Seen by a camera" in text
    assert "Mean confidence of its distances 0." in text
    observed_only = replace(viewable, provenance=np.full(12000, 3, np.uint8), imagined=(), path=POSES[:0])
    text = summary(observed_only, 12000)
    assert "Imagined" not in text
    assert "Estimated" not in text


def test_summary_claims_nothing_of_points_of_unknown_provenance(wall_views):
    viewable = imagined_viewable(wall_views)
    unknown = replace(viewable, provenance=np.zeros(12000, np.uint8), imagined=(), observed_views=())
    text = summary(unknown, 12000)
    assert "of the points" not in text
    assert not any(name in text for name in ("Observed", "Estimated", "Imagined"))


def test_summary_explains_the_colours_of_the_cameras_that_are_drawn(wall_views):
    photo = replace(wall_views[0], estimated=np.ones((30, 40), bool))
    viewable = replace(imagined_viewable(wall_views), observed_views=(photo,), provenance=np.full(12000, 2, np.uint8))
    text = summary(viewable, 12000)
    assert "Estimated" in text
    assert "Imagined" in text
    assert "Observed" not in text  # nothing was measured
    assert "Observed" in summary(replace(viewable, observed_views=(photo, wall_views[1])), 12000)


def test_summary_leaves_out_confidences_that_nothing_gave(wall_views):
    viewable = imagined_viewable(wall_views)
    without = replace(viewable, depth_confidence=viewable.observed.astype(np.float32))
    text = summary(without, 12000)
    assert "of its distances" not in text
    assert "Mean confidence of its colours 0." in text


def test_view_images_have_captions(wall_views):
    assert len(view_images(wall_views[0])) == 2
    imagined = imagined_views(wall_views)[0]
    captions = [caption for _, caption in view_images(imagined)]
    assert len(captions) == 4
    assert any("50% observed" in caption for caption in captions)
    estimated = replace(imagined, estimated=~imagined.observed, depth_confidence=np.full((30, 40), 0.3, np.float32))
    captions = [caption for _, caption in view_images(estimated)]
    assert "Provenance: 50% observed (blue), 50% estimated (yellow)" in captions
    assert any("mean confidence 0.30 where not measured" in caption for caption in captions)
    photo = replace(wall_views[0], estimated=np.ones((30, 40), bool))
    captions = [caption for _, caption in view_images(photo)]
    assert captions[:2] == ["Observed view", "Provenance: 100% estimated (yellow)"]
    assert image_strip(imagined).count("data:image/jpeg;base64,") == 4
