"""Pictures and folders that a run leaves, and the commands that leave them."""

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from worldstereo_ros.cli.doctor import examine
from worldstereo_ros.cli.imagine import ImagineRequest, run_imagine
from worldstereo_ros.cli.main import app
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import estimate_up_direction
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.io.video import write_video
from worldstereo_ros.memory.archive import load_archive
from worldstereo_ros.visualization.cloud_overview import cloud_overview
from worldstereo_ros.visualization.contact_sheet import contact_sheet
from worldstereo_ros.visualization.images import IMAGINED_COLOUR, OBSERVED_COLOUR, depth_image, provenance_overlay
from worldstereo_ros.visualization.results import view_contact_sheet

CAMERA = Camera.from_fov(80, 60, 1.2)


@pytest.fixture
def wall():
    """Views of a textured wall 3 m ahead, from a camera that moves to the right."""
    rng = np.random.default_rng(0)
    texture = cv2.resize(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8), (80, 60), interpolation=cv2.INTER_CUBIC)
    poses = trajectory("right", np.eye(4), 4, distance=0.3)
    depth = np.full((60, 80), 3, np.float32)
    return [View(texture, CAMERA, pose, depth, stamp_ns=i) for i, pose in enumerate(poses)]


def imagined(view, index, count):
    observed = np.zeros((60, 80), bool)
    observed[:, :40] = True
    return ImaginedView(
        view.image,
        CAMERA,
        view.world_from_camera,
        view.depth,
        observed,
        conditioning=view.image,
        covered=observed,
        index=index,
        count=count,
    )


def test_a_written_sequence_is_read_back(wall, tmp_path):
    views = [imagined(view, i, 4) for i, view in enumerate(wall)]
    write_sequence(tmp_path, views)
    back = open_sequence(tmp_path)
    assert back.camera == CAMERA
    for view, read in zip(views, back, strict=True):
        np.testing.assert_array_equal(read.image, view.image)
        np.testing.assert_allclose(read.depth, view.depth, atol=5e-4)
        np.testing.assert_allclose(read.world_from_camera, view.world_from_camera, atol=1e-7)
    mask = cv2.imread(str(tmp_path / "observed" / "000001.png"), cv2.IMREAD_UNCHANGED)
    assert (mask[:, :40] == 255).all()
    assert (mask[:, 40:] == 0).all()


def test_a_view_that_does_not_say_what_memory_covered_claims_no_coverage(wall):
    view = wall[0]
    silent = ImaginedView(view.image, CAMERA, view.world_from_camera)
    assert np.isnan(silent.coverage)
    assert imagined(view, 0, 1).coverage == 0.5


def test_views_of_different_cameras_are_no_sequence(wall, tmp_path):
    with pytest.raises(ValueError, match="different cameras"):
        write_sequence(tmp_path, [wall[0], wall[1].resized(40, 30)])


def test_the_mask_picture_says_which_is_which():
    observed = np.zeros((4, 4), bool)
    observed[0] = True
    picture = provenance_overlay(np.zeros((4, 4, 3), np.uint8), observed, strength=1.0)
    assert (picture[0] == OBSERVED_COLOUR).all()
    assert (picture[1:] == IMAGINED_COLOUR).all()


def test_unknown_depth_is_grey_and_near_is_brighter_than_far():
    depth = np.array([[0.0, 1.0, 4.0]], np.float32)
    picture = depth_image(depth, far=5.0).astype(int)
    assert (picture[0, 0] == 128).all()
    assert picture[0, 1].sum() > picture[0, 2].sum()


def test_a_sheet_has_a_cell_for_every_picture(wall):
    views = [imagined(view, i, 4) for i, view in enumerate(wall)]
    with_truth = view_contact_sheet(views, wall, [view.image for view in wall], rows=3)
    without = view_contact_sheet(views, wall, rows=3)
    assert with_truth.shape[1] > without.shape[1]
    assert with_truth.shape[0] == without.shape[0]
    empty = contact_sheet([[None, wall[0].image]], ["a", "b"], ["row"], title="t")
    assert empty.std() > 0


def test_what_others_imagined_stands_beside(wall):
    views = [imagined(view, i, 4) for i, view in enumerate(wall)]
    dark = [View(np.zeros_like(view.image), CAMERA, view.world_from_camera) for view in views]
    plain, both = (view_contact_sheet(views, wall, name="small", beside=other) for other in (None, {"geometric": dark}))
    assert both.shape[0] == plain.shape[0]
    column = both.shape[1] - plain.shape[1]
    assert column > 0
    # Columns stand in the order of their names: given, memory, geometric, small, which is which.
    black = (both == 0).all(axis=2).mean(axis=0) > 0.5
    first, last = np.flatnonzero(black)[[0, -1]]
    assert last - first + 1 == black.sum() == 260
    assert first // column == 2
    with pytest.raises(ValueError, match="4 views and 3 of geometric"):
        view_contact_sheet(views, wall, beside={"geometric": dark[:3]})


def test_the_cloud_is_seen_from_above_with_its_path(wall):
    points = np.stack([np.linspace(-2, 2, 500), np.full(500, 1.0), np.linspace(1, 4, 500)], axis=1).astype(np.float32)
    colours = np.full((500, 3), (0, 200, 0), np.uint8)
    path = np.stack([view.world_from_camera for view in wall])
    up = estimate_up_direction(path)
    np.testing.assert_array_equal(up, [0, -1, 0])
    picture = cloud_overview(points, colours, np.ones(500, bool), np.full(500, 0.05, np.float32), path, up=up)
    assert ((picture[..., 1] > 150) & (picture[..., 0] < 60)).sum() > 100  # the green points
    assert ((picture[..., 0] > 180) & (picture[..., 1] < 90)).sum() > 20  # the red path


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_videos_hold_their_frames(wall, tmp_path, name):
    write_video(tmp_path / name, [np.roll(wall[0].image, 20 * shift, axis=1) for shift in range(4)], fps=4)
    clip = cv2.VideoCapture(str(tmp_path / name))
    assert int(clip.get(cv2.CAP_PROP_FRAME_COUNT)) == 4


def test_imagine_leaves_pictures_and_a_map(wall, tmp_path):
    write_sequence(tmp_path / "in", wall)
    request = ImagineRequest(source=tmp_path / "in", path="orbit", views=3, seeds=2)
    views = run_imagine(request, tmp_path / "out")
    assert len(views) == 3
    assert len(load_archive(tmp_path / "out" / "world.wsmap").cloud) > 1000
    for name in ("contact_sheet.png", "imagined.mp4", "cloud.ply", "cloud.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_the_command_imagines_along_the_path_of_another_sequence(wall, tmp_path):
    write_sequence(tmp_path / "in", wall)
    arguments = [
        "imagine",
        str(tmp_path / "in"),
        "--path",
        str(tmp_path / "in"),
        "--views",
        "2",
        "--out",
        str(tmp_path / "o"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    saved = open_sequence(tmp_path / "o" / "imagined")
    np.testing.assert_allclose(saved.poses[-1], wall[-1].world_from_camera, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["imagine"], "Name one source"),
        (["imagine", "nowhere"], "nothing at nowhere"),
        (["imagine", "{seq}", "--path", "sideways"], "sideways"),
        (["imagine", "{seq}", "--model", "crystal-ball"], "crystal-ball"),
        (["imagine", "{seq}", "--device", "abacus"], "abacus"),
        (["imagine", "--bag", "nowhere.mcap"], "no recording"),
        (["export", "nowhere.wsmap", "a.ply"], "nowhere.wsmap"),
        (["view", "nowhere"], "nowhere"),
        (["evaluate", "--data", "nowhere"], "nowhere"),
        (["demo", "--sequence", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_done_ends_with_one_sentence(arguments, words, wall, tmp_path, monkeypatch):
    write_sequence(tmp_path / "seq", wall)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [argument.format(seq=tmp_path / "seq") for argument in arguments])
    assert result.exit_code == 1, result.output
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_the_doctor_finds_what_the_core_needs():
    findings = {finding.name: finding for finding in examine()}
    assert findings["torch"].ok
    assert findings["numba"].ok
    assert all(finding.ok or finding.fix for finding in findings.values())
