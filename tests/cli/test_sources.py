"""What `worldstereo imagine` observes, along which path, and what it says about both."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.textured_wall import textured_wall_views
from PIL import Image
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.cli.sources import MAX_PHOTO_PIXELS, Recording, parse_frames, parse_size, resize_views
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.io.bags.write_views import write_views
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.io.images import write_image
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.io.video import write_video
from worldstereo_ros.utils.errors import InputError


def _imagine(*arguments):
    """Runs the command with a model without networks; returns its text on one line."""
    result = CliRunner().invoke(app, ["imagine", *map(str, arguments), "--model", "geometric"])
    return result.exit_code, " ".join((result.stdout + result.stderr).split())


@pytest.fixture
def sequence(tmp_path):
    write_sequence(tmp_path / "in", textured_wall_views())
    return tmp_path / "in"


def _write_photo(path, orientation=1, focal=None, size=(80, 60)):
    image = Image.fromarray(textured_wall_views()[0].image).resize(size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    if focal:
        exif.get_ifd(0x8769)[0xA405] = focal
    image.save(path, exif=exif)
    return path


# --- the frames that are observed ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "positions"), [("2", [2]), ("3,1", [3, 1]), ("-1", [3])])
def test_observe_names_frames(sequence, tmp_path, frames, positions):
    code, text = _imagine(sequence, "--observe", frames, "--views", 2, "--out", tmp_path / "out")
    assert code == 0, text
    saved, views = open_sequence(tmp_path / "out" / "observed"), textured_wall_views()
    np.testing.assert_allclose(saved.poses, [views[i].world_from_camera for i in positions], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--observe", "9"], "has no frame 9; its 4 frames are 0 to 3. -1 is the last one."),
        (["--observe", "0,x"], "numbers separated by commas"),
        (["--observe", "1,1"], "one of them twice"),
        (["--observe", "1", "--observations", 2], "one of the two was expected"),
        (["--size", "80"], "WIDTHxHEIGHT"),
        (["--size", "8x8"], "16 to 8192 pixels a side"),
        (["--fov", "70"], "has intrinsics, which --fov would contradict"),
        (["--pose-topic", "/odom"], "--pose-topic is an option of bags"),
        (["--rectified", "true"], "--rectified is an option of bags"),
        (["--path", "sideways"], "not a path of in, which has none"),
        (["--distance", "nan"], "a number of metres was expected"),
        (["--path", "{seq}", "--distance", "2"], "has its own"),
        (["--path", "turn", "--distance", "2"], "the preset turn has none"),
        (["--path", ""], "The path '' is not a preset"),
        (["--clearance", "-1"], "The clearance is -1 m; more than 0"),
        (["--clearance", "1e308"], "at most 100 was expected"),
        (["--distance", "1e300"], "more than 1e+09 m from the origin"),
        (["--variant", "camera"], "has no networks, and --variant is for those"),
        (["--prompt", "a kitchen"], "has no networks, and --prompt is for those"),
    ],
)
def test_options_that_do_not_fit_are_refused(sequence, tmp_path, arguments, words):
    arguments = [str(argument).format(seq=sequence) for argument in arguments]
    code, text = _imagine(sequence, *arguments, "--out", tmp_path / "out")
    assert code == 1
    assert words in text
    assert "Unexpected" not in text
    assert not (tmp_path / "out").exists()


def test_fewer_frames_than_asked_for_are_said(sequence, tmp_path):
    code, text = _imagine(sequence, "--observations", 9, "--views", 2, "--out", tmp_path / "out")
    assert code == 0, text
    assert "9 frames were to be observed; in has 4." in text


def test_a_video_without_poses_gives_one_frame_as_a_photo(tmp_path):
    images = [np.roll(textured_wall_views()[0].image, 10 * shift, axis=1) for shift in range(5)]
    write_video(tmp_path / "walk.mp4", images, fps=5)
    code, text = _imagine(tmp_path / "walk.mp4", "--views", 2, "--out", tmp_path / "first")
    assert code == 0, text
    assert "walk.mp4 has 5 frames and no poses: its frame 0 is used, as a photo would be. --observe N chooses" in text
    assert "60 degrees wide, which is assumed" in text
    code, text = _imagine(tmp_path / "walk.mp4", "--observe", 3, "--views", 2, "--out", tmp_path / "out")
    assert code == 0, text
    (observed,) = open_sequence(tmp_path / "out" / "observed")
    differences = [np.abs(observed.image.astype(int) - image).mean() for image in images]
    assert np.argmin(differences) == 3
    for options in (["--observations", 2], ["--observe", "0,4"]):
        options = [*options, "--pose-source", "recorded", "--out", tmp_path / "no"]
        code, text = _imagine(tmp_path / "walk.mp4", *options)
        assert code == 1
        assert "only one of its 5 frames can be observed" in text


def test_frames_without_intrinsics_may_differ_in_size_and_one_may_be_damaged(tmp_path):
    (tmp_path / "walk" / "frames").mkdir(parents=True)
    (tmp_path / "walk" / "frames" / "000000.jpg").write_bytes(b"")
    _write_photo(tmp_path / "walk" / "frames" / "000001.jpg", orientation=6, focal=26)
    _write_photo(tmp_path / "walk" / "frames" / "000002.jpg", size=(48, 40))
    code, text = _imagine(tmp_path / "walk", "--views", 2, "--out", tmp_path / "out")
    assert code == 0, text
    assert "1 damaged frame left out." in text
    assert "its frame 1 is used" in text
    assert "26 mm for 35 mm film" in text
    assert open_sequence(tmp_path / "out" / "observed")[0].image.shape == (80, 60, 3)
    code, text = _imagine(tmp_path / "walk", "--observe", 2, "--views", 2, "--out", tmp_path / "out")
    assert code == 0, text
    assert "which is assumed: walk has neither" in text
    assert open_sequence(tmp_path / "out" / "observed")[0].image.shape == (40, 48, 3)


def test_depth_of_frames_without_poses_is_measured(sequence, tmp_path):
    (sequence / "poses.txt").unlink()
    code, text = _imagine(sequence, "--observe", 2, "--views", 2, "--out", tmp_path / "out")
    assert code == 0, text
    assert "estimating" not in text
    expected = textured_wall_views()[2].depth
    np.testing.assert_allclose(open_sequence(tmp_path / "out" / "observed")[0].depth, expected, atol=1e-3)


def test_options_of_recorded_paths_are_for_these(tmp_path):
    write_views(tmp_path / "bag", textured_wall_views())
    for option, value in (("--base-frame", "base"), ("--path-heading", "tangent"), ("--path-pose-frame", "camera")):
        code, text = _imagine("--bag", tmp_path / "bag", option, value, "--out", tmp_path / "out")
        assert code == 1
        assert f"{option} is for" in text


def test_the_command_that_shows_the_results_can_be_pasted(sequence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = _imagine(sequence, "--views", 2, "--out", "my results")
    assert code == 0, text
    assert text.endswith("worldstereo view 'my results'")


def test_results_are_no_source(sequence, tmp_path):
    """Their video shows imagined views, which would be observed."""
    code, text = _imagine(sequence, "--views", 2, "--out", tmp_path / "out")
    assert code == 0, text
    code, text = _imagine(tmp_path / "out", "--out", tmp_path / "again")
    assert code == 1
    assert "holds results" in text
    assert "out/observed." in text.replace(" ", "")
    code, text = _imagine(tmp_path / "out" / "world.wsmap", "--out", tmp_path / "again")
    assert code == 1
    assert "It is a saved map" in text


def test_observe_numbers_the_images_of_a_bag(tmp_path):
    views = [replace(view, stamp_ns=10**18 + i * 10**8) for i, view in enumerate(textured_wall_views())]
    write_views(tmp_path / "bag", views)
    code, text = _imagine("--bag", tmp_path / "bag", "--observe", "3,1", "--views", 2, "--out", tmp_path / "out")
    assert code == 0, text
    saved = open_sequence(tmp_path / "out" / "observed")
    np.testing.assert_allclose(saved.poses, [views[i].world_from_camera for i in (3, 1)], atol=1e-6)
    for arguments, words in (
        (["--observe", "7"], "has no image 7; the 4 that can be used are counted from 0"),
        (["--fov", "60"], "The camera of a bag is that of its camera_info"),
        (["--path", "/plan"], "not a path of bag, which has none"),
    ):
        code, text = _imagine("--bag", tmp_path / "bag", *arguments, "--out", tmp_path / "no")
        assert code == 1
        assert words in text


# --- photographs -----------------------------------------------------------------------------------------------------


def test_a_photo_is_turned_and_its_camera_is_said(tmp_path):
    _write_photo(tmp_path / "photo.jpg", orientation=6, focal=26)
    code, text = _imagine(tmp_path / "photo.jpg", "--views", 2, "--out", tmp_path / "out")
    assert code == 0, text
    assert "turned upright by its EXIF (stored as 80x60, seen as 60x80)" in text
    assert "Camera: 53 degrees wide, by the focal length in its EXIF (26 mm for 35 mm film)" in text
    assert open_sequence(tmp_path / "out" / "observed")[0].image.shape == (80, 60, 3)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["camera"]["origin"] == "exif"


def test_the_first_image_of_an_animation_is_used_and_said(tmp_path):
    first = Image.fromarray(textured_wall_views()[0].image)
    second = first.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    first.save(tmp_path / "photo.webp", save_all=True, append_images=[second], lossless=True)
    code, text = _imagine(tmp_path / "photo.webp", "--views", 2, "--out", tmp_path / "out")
    assert code == 0, text
    assert "photo.webp holds several images; the first is used." in text
    np.testing.assert_array_equal(open_sequence(tmp_path / "out" / "observed")[0].image, np.array(first))


def test_fov_sets_the_camera_of_a_photo(tmp_path):
    _write_photo(tmp_path / "photo.jpg", focal=26)
    code, text = _imagine(tmp_path / "photo.jpg", "--fov", 90, "--views", 2, "--out", tmp_path / "out")
    assert code == 0, text
    assert open_sequence(tmp_path / "out" / "observed").camera.fx == pytest.approx(40)
    for wrong in ("0", "180", "nan", "inf"):
        code, text = _imagine(tmp_path / "photo.jpg", "--fov", wrong, "--out", tmp_path / "no")
        assert code == 1
        assert "1 to 170 were expected" in text


def test_a_photo_of_twice_its_height_may_be_a_panorama(tmp_path):
    _write_photo(tmp_path / "photo.jpg", size=(120, 60))
    code, text = _imagine(tmp_path / "photo.jpg", "--views", 2, "--out", tmp_path / "out")
    assert code == 0, text
    assert "if it shows the full sphere, use `worldstereo panorama`" in text


def test_a_large_photo_is_reduced_with_a_sentence():
    view = textured_wall_views()[0].resized(1600, 1200)
    notes: list[str] = []
    (reduced,) = resize_views([view], "", photo=True, notes=notes)
    assert (reduced.camera.width, reduced.camera.height) == (1280, 960)
    assert reduced.camera.width * reduced.camera.height <= MAX_PHOTO_PIXELS
    assert notes == [
        "Images of 1600x1200 are reduced to 1280x960. --size full keeps them as they are, which takes more time and "
        "memory."
    ]
    for size, expected in (("full", (1600, 1200)), ("320x200", (320, 200))):
        notes.clear()
        (resized,) = resize_views([view], size, photo=True, notes=notes)
        assert (resized.camera.width, resized.camera.height) == expected
        assert not notes
    (kept,) = resize_views([view], "", photo=False, notes=notes)  # of a calibrated camera
    assert kept is view


def test_sizes_and_frames_are_parsed():
    assert parse_size("640x480") == (640, 480)
    assert parse_size("full") is parse_size("") is None
    assert parse_frames("0,12, -1") == [0, 12, -1]
    for text in ("x", "640x480x3", "-1x20", "1e3x20", "99999x20"):
        with pytest.raises(InputError):
            parse_size(text)


# --- paths -----------------------------------------------------------------------------------------------------------


def _write_poses(path, poses):
    from worldstereo_ros.geometry.poses import quaternion_from_pose

    rows = zip(*quaternion_from_pose(poses), strict=True)
    lines = [f"{i} " + " ".join(map(str, (*t, *q))) for i, (t, q) in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", ["poses.txt", ""])
def test_the_views_of_a_file_of_poses_are_its_poses(sequence, tmp_path, name):
    poses = trajectory("right", np.eye(4), 3, distance=0.2)
    poses[1, 0, 3] = 0.05  # unevenly spaced
    (tmp_path / "path").mkdir()
    _write_poses(tmp_path / "path" / "poses.txt", poses)
    code, text = _imagine(sequence, "--path", tmp_path / "path" / name, "--out", tmp_path / "out")
    assert code == 0, text
    np.testing.assert_allclose(open_sequence(tmp_path / "out" / "imagined").poses, poses, atol=1e-6)
    code, text = _imagine(sequence, "--path", tmp_path / "path" / name, "--views", 5, "--out", tmp_path / "even")
    assert code == 0, text
    assert "5 views spread along the 3 poses" in text
    even = open_sequence(tmp_path / "even" / "imagined").poses
    np.testing.assert_allclose(even[:, 0, 3], np.linspace(0, 0.2, 5), atol=1e-6)


def test_a_path_of_too_many_poses_is_refused(sequence, tmp_path):
    _write_poses(tmp_path / "poses.txt", trajectory("right", np.eye(4), 1001))
    code, text = _imagine(sequence, "--path", tmp_path / "poses.txt", "--out", tmp_path / "out")
    assert code == 1
    assert "has 1001 poses; at most 1000 views" in text


def test_an_unknown_path_lists_those_that_there_are(tmp_path):
    source = tmp_path / "in"
    write_image(source / "image.png", textured_wall_views()[0].image)
    pose = [np.eye(4).tolist()] * 2
    content = {"extrinsic": pose, "intrinsic": [[50, 0, 40], [0, 50, 30], [0, 0, 1]]}
    for name in ("kitchen", "hall"):
        (source / "renders" / name).mkdir(parents=True)
        (source / "renders" / name / "camera.json").write_text(json.dumps(content))
    code, text = _imagine(source, "--path", "cellar", "--out", tmp_path / "out")
    assert code == 1
    assert "(hall, kitchen)" in text
    (tmp_path / "empty").mkdir()
    code, text = _imagine(source, "--path", tmp_path / "empty", "--out", tmp_path / "out")
    assert code == 1
    assert "is a folder without poses.txt" in text


def test_blocked_poses_are_reported(sequence, tmp_path):
    """The wall is 3 m ahead."""
    options = ["--path", "forward", "--distance", 6, "--views", 7]
    code, text = _imagine(sequence, *options, "--out", tmp_path / "out")
    assert code == 0, text
    assert "2 of 7 poses are blocked (closer than 0.05 m): 3 to 4." in text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["blocked"] == [False, False, False, True, True, False, False]
    code, text = _imagine(sequence, *options, "--clearance", 1.1, "--out", tmp_path / "wide")
    assert json.loads((tmp_path / "wide" / "results.json").read_text())["blocked_count"] == 4


# --- what is no source -----------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_named(tmp_path):
    _write_photo(tmp_path / "photo.jpg")
    content = (tmp_path / "photo.jpg").read_bytes()
    files = {
        "cut.jpg": (content[:300], "It is damaged, or cut off"),
        "late.jpg": (content[:-200], "is damaged"),
        "empty.png": (b"", "It is an empty file"),
        "phone.heic": (b"\0\0\0\x18ftypheic" + bytes(40), "HEIF (HEIC) photograph. Export it as JPEG."),
        "a.gif": (b"GIF89a" + bytes(40), "Convert it to PNG or JPEG"),
        "a.mp4": (b"<!doctype html><html></html>", "It is an HTML page"),
    }
    for name, (data, words) in files.items():
        (tmp_path / name).write_bytes(data)
        code, text = _imagine(tmp_path / name, "--out", tmp_path / "out")
        assert code == 1, name
        assert words in text, name
    Image.new("RGB", (3, 1)).save(tmp_path / "thin.png")
    code, text = _imagine(tmp_path / "thin.png", "--out", tmp_path / "out")
    assert code == 1
    assert "An image is 3x1; at least 16 pixels a side were expected." in text


def test_observed_views_of_several_cameras_end_in_results(sequence, tmp_path, monkeypatch):
    """A bag whose camera_info changes on the way."""
    views = textured_wall_views()
    zoomed = replace(views[3], camera=replace(views[3].camera, fx=2 * views[3].camera.fx, fy=2 * views[3].camera.fy))

    def read_bag(*arguments, **options):
        return Recording("bag", [*views[:3], zoomed], lambda name: None)

    monkeypatch.setattr("worldstereo_ros.cli.sources.read_bag", read_bag)
    (tmp_path / "bag").mkdir()
    code, text = _imagine("--bag", tmp_path / "bag", "--views", 2, "--out", tmp_path / "out")
    assert code == 0, text
    assert "several cameras: observed/ gets the 1 of 4 observed views of the last one." in text
    assert len(open_sequence(tmp_path / "out" / "observed")) == 1
