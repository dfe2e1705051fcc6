"""Posed sequences: what is written is read back."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers.textured_wall import CAMERA, half_imagined, textured_wall_views
from PIL import Image

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.io import posed_sequences
from worldstereo_ros.io.datasets import DatasetError, open_sequence
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.io.view_labels import PROVENANCE_COLOURS


def test_written_sequence_is_read_back(tmp_path):
    views = half_imagined(textured_wall_views())
    write_sequence(tmp_path, views)
    sequence = open_sequence(tmp_path)
    assert sequence.camera == CAMERA
    for view, read in zip(views, sequence, strict=True):
        np.testing.assert_array_equal(read.image, view.image)
        np.testing.assert_allclose(read.depth, view.depth, atol=5e-4)
        np.testing.assert_allclose(read.world_from_camera, view.world_from_camera, atol=1e-7)
    mask = cv2.imread(str(tmp_path / "observed" / "000001.png"), cv2.IMREAD_UNCHANGED)
    assert (mask[:, :40] == 255).all()
    assert (mask[:, 40:] == 0).all()


def test_files_that_are_named_by_no_number_are_passed_over(tmp_path):
    """A superscript is a digit to Python, but no number."""
    write_sequence(tmp_path, textured_wall_views())
    for name in ("\u00b2.png", "preview.png", "-1.png"):
        shutil.copy(tmp_path / "frames" / "000000.png", tmp_path / "frames" / name)
    assert len(open_sequence(tmp_path)) == len(textured_wall_views())


def test_labels_are_read_back(tmp_path):
    rng = np.random.default_rng(0)
    views = [
        replace(
            view,
            estimated=rng.random((60, 80)) < 0.3,
            confidence=rng.random((60, 80), dtype=np.float32),
            depth_confidence=rng.random((60, 80), dtype=np.float32),
        )
        for view in half_imagined(textured_wall_views())
    ]
    write_sequence(tmp_path, views)
    for view, read in zip(views, open_sequence(tmp_path), strict=True):
        assert not read.is_observation
        np.testing.assert_array_equal(read.provenance, view.provenance)
        assert set(np.unique(read.provenance)) == {1, 2, 3}
        np.testing.assert_allclose(read.confidence, view.confidence, atol=0.5 / 255 + 1e-6)
        np.testing.assert_allclose(read.depth_confidence, view.depth_confidence, atol=0.5 / 255 + 1e-6)
    # A subset reads the labels of its own views.
    np.testing.assert_array_equal(open_sequence(tmp_path)[2:][0].provenance, views[2].provenance)


def test_provenance_images_hold_the_classes_and_show_them(tmp_path):
    (view, *_) = half_imagined(textured_wall_views())
    view = replace(view, estimated=np.arange(60)[:, None].repeat(80, 1) < 20)
    write_sequence(tmp_path, [view])
    path = tmp_path / "provenance" / "000000.png"
    np.testing.assert_array_equal(np.asarray(Image.open(path)), view.provenance)
    shown = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    for kind in (Provenance.IMAGINED, Provenance.ESTIMATED, Provenance.OBSERVED):
        assert (shown[view.provenance == kind] == PROVENANCE_COLOURS[kind]).all()


def test_observation_with_estimated_depth_is_read_as_such(tmp_path):
    measured, photo = textured_wall_views()[:2]
    photo = replace(photo, estimated=np.ones((60, 80), bool), depth_confidence=np.full((60, 80), 0.4, np.float32))
    write_sequence(tmp_path, [measured, photo])
    first, second = open_sequence(tmp_path)
    assert first.is_observation
    assert second.is_observation
    assert first.observed_mask.all()
    assert first.depth_confidence is None
    assert second.estimated_mask.all()
    np.testing.assert_allclose(second.depth_confidence, 0.4, atol=1 / 255)


def test_sequences_without_provenance_have_their_observed_masks(tmp_path):
    views = half_imagined(textured_wall_views())
    write_sequence(tmp_path, views)
    shutil.rmtree(tmp_path / "provenance")
    (read, *_) = open_sequence(tmp_path)
    np.testing.assert_array_equal(read.observed, views[0].observed)
    assert not read.estimated_mask.any()


def test_labels_of_an_earlier_sequence_are_removed(tmp_path):
    views = textured_wall_views()
    write_sequence(tmp_path, half_imagined(views))
    write_sequence(tmp_path, [replace(view, depth=None) for view in views])
    for view in open_sequence(tmp_path):
        assert view.is_observation
        assert view.depth is None


def test_confidence_of_a_sensor_is_not_read_as_a_label(tmp_path):
    write_sequence(tmp_path, textured_wall_views())
    (tmp_path / "confidence").mkdir()
    cv2.imwrite(str(tmp_path / "confidence" / "000000.png"), np.full((60, 80), 2, np.uint8))
    assert open_sequence(tmp_path)[0].confidence is None


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (np.full((60, 80), 7, np.uint8), "0 .unknown., 1 .imagined."),
        (np.ones((60, 80, 3), np.uint8), "0 .unknown., 1 .imagined."),
        (np.ones((6, 8), np.uint8), "The label 'estimated' of view 1 in .* is 8x6"),
        (None, "is not a readable image. It is a text file"),
    ],
)
def test_invalid_provenance_is_an_error(tmp_path, broken, words):
    write_sequence(tmp_path, half_imagined(textured_wall_views()))
    path = tmp_path / "provenance" / "000001.png"
    if broken is None:
        path.write_bytes(b"no image")
    else:
        cv2.imwrite(str(path), broken)
    sequence = open_sequence(tmp_path)
    with pytest.raises(DatasetError, match=words):
        sequence[1]
    assert sequence[0].observed.any()


def test_coverage_is_nan_without_a_coverage_mask():
    view = textured_wall_views()[0]
    assert np.isnan(ImaginedView(view.image, CAMERA, view.world_from_camera).coverage)
    assert half_imagined([view])[0].coverage == 0.5


def test_write_sequence_rejects_views_of_different_cameras(tmp_path):
    views = textured_wall_views()
    with pytest.raises(ValueError, match="different cameras"):
        write_sequence(tmp_path, [views[0], views[1].resized(40, 30)])


# --- writing ---------------------------------------------------------------------------------------------------------


def test_frames_of_a_longer_earlier_sequence_are_removed(tmp_path):
    views = half_imagined(textured_wall_views())
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "000099.png").write_bytes(b"mine")
    write_sequence(tmp_path, views)
    write_sequence(tmp_path, views[:2])
    assert sorted(p.name for p in (tmp_path / "frames").iterdir()) == ["000000.png", "000001.png", "000099.png"]
    assert len(list((tmp_path / "provenance").iterdir())) == len(list((tmp_path / "depth").iterdir())) == 2
    assert len(open_sequence(tmp_path)) == 2


def test_an_interrupted_sequence_leaves_the_earlier_one(tmp_path):
    views = textured_wall_views()
    write_sequence(tmp_path, views[:2])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    class Interrupted(list):
        def __iter__(self):
            yield from views[2:4]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        posed_sequences._write_files(tmp_path, views[0].camera, Interrupted())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["depth", "frames", "intrinsics.json", "poses.txt"]


@pytest.mark.parametrize("folder", ["new", os.fsdecode(b"b\xff\xfed")])
def test_sequences_in_folders_that_are_not_utf8_are_read_back(tmp_path, folder):
    views = textured_wall_views()[:2]
    write_sequence(tmp_path / folder / "seq", views)
    np.testing.assert_array_equal(open_sequence(tmp_path / folder / "seq")[1].image, views[1].image)


FULL_DISK = """
import resource, signal, sys
import numpy as np
from helpers.textured_wall import textured_wall_views
from worldstereo_ros.io import posed_sequences
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.utils.atomic_files import WriteError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
try:
    write_sequence(sys.argv[1], textured_wall_views())
except WriteError as error:
    print("rejected:", error)
"""


def test_full_disk_leaves_the_earlier_sequence(tmp_path):
    write_sequence(tmp_path, textured_wall_views()[:2])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "could not be written: File too large" in done.stdout
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
