"""`worldstereo pointmaps`: what it writes, options, and bad input."""

import json
import shutil

import cv2
import numpy as np
import pytest
from helpers.box_room import CAMERA
from helpers.recordings import SECOND, START, image_message, info_message, pose_stamped
from helpers.video_scene import KnownDepth, frame, walk
from typer.testing import CliRunner

from worldstereo_ros.cli import pointmap_photographs
from worldstereo_ros.cli.main import app
from worldstereo_ros.depth import estimators
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.bags.files import Bag, BagWriter
from worldstereo_ros.io.bags.views import read_views
from worldstereo_ros.io.images import write_image
from worldstereo_ros.io.posed_sequences import open_posed, write_sequence
from worldstereo_ros.io.video import write_video
from worldstereo_ros.pipelines.pointmaps import refinement
from worldstereo_ros.pipelines.stereo.frame_sources import open_source
from worldstereo_ros.reconstruction import place
from worldstereo_ros.reconstruction.features import RegistrationError
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.visualization.viewer.loading import load_viewable

COUNT = 8


def run(*arguments, fails=False) -> str:
    result = CliRunner().invoke(app, ["pointmaps", *map(str, arguments)])
    assert (result.exit_code != 0) == fails, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """(folder of a posed sequence with depth, folder of the images alone, poses)."""
    folder = tmp_path_factory.mktemp("room")
    poses, views = walk(COUNT), []
    for index, pose in enumerate(poses):
        image, depth, _ = frame(pose)
        views.append(View(image, CAMERA, pose, depth))
        write_image(folder / "images" / f"{index:03d}.png", image)
    write_sequence(folder / "posed", views)
    return folder / "posed", folder / "images", poses


@pytest.fixture
def known(recording, monkeypatch):
    """Estimated depth is 1.3 times the true one."""
    views = [frame(pose) for pose in recording[2]]
    guess = KnownDepth([view[0] for view in views], [view[1] for view in views], 1.3)
    monkeypatch.setattr(estimators, "load_depth_estimator", lambda name, device="cpu": guess)
    return guess


def test_a_session_is_written_and_can_be_viewed_and_imagined_in(recording, known, tmp_path):
    posed, _, poses = recording
    out = tmp_path / "out"
    text = run(posed, "--ignore-poses", "--ignore-depth", "--method", "map", "--out", out, "--ply", "--mcap")
    assert f"{COUNT} of {COUNT} frames written" in text
    assert "metric: false" in text
    for name in ("poses.txt", "poses_tum.txt", "poses_kitti.txt", "cloud.ply", "world.wsmap", "pointmaps.json"):
        assert (out / name).is_file(), name
    for name in ("frames", "depth", "dynamic", "points"):
        assert len(list((out / name).iterdir())) == COUNT, name
    summary = json.loads((out / "pointmaps.json").read_text())
    assert summary["ok"]
    assert summary["scale_from"] == "depth network"
    found = open_posed(out).poses
    np.testing.assert_allclose(found[:, :3, 3], 1.3 * (invert_pose(poses[0]) @ poses)[:, :3, 3], atol=0.02)
    # The bag has the same poses, and no reader takes its depth as measured.
    views = list(read_views(out / "bag"))
    assert all(view.depth is None for view in views)
    np.testing.assert_allclose([view.world_from_camera for view in views], found, atol=1e-6)
    with Bag(out / "bag") as bag:
        assert {"/pointmaps/depth", "/pointmaps/dynamic", "/pointmaps/path", "/tf"} <= set(bag.topics)
        (_, _, raw), *_ = bag.messages({"/pointmaps/path"})
        assert bag.decode("/pointmaps/path", raw).header.frame_id == "map_unscaled"
    shown = load_viewable(out)
    assert len(shown.points) > 1000
    assert len(shown.observed_views) == COUNT
    arguments = ["imagine", "--map", str(out), "--path", "forward", "--distance", "0.1", "--views", "1"]
    arguments += ["--model", "geometric", "--out", str(tmp_path / "imagined")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    # Again into the same folder, from fewer frames: nothing of the first run is left.
    run(posed, "--ignore-poses", "--ignore-depth", "--method", "vo", "--frames", 4, "--out", out)
    assert len(list((out / "frames").iterdir())) == 4
    assert not (out / "points").exists()


def test_imagine_takes_poses_and_depth_where_none_come_along(recording, known, tmp_path, monkeypatch):
    posed, images, poses = recording
    monkeypatch.setattr(refinement, "is_available", lambda folder=None: False)
    wanted = (invert_pose(poses[0]) @ poses)[[0, COUNT - 1], :3, 3]

    def imagine(source, *options, fails=False):
        out = tmp_path / "imagined"
        arguments = ["imagine", str(source), "--model", "geometric", "--views", "1", "--distance", "0.1"]
        result = CliRunner().invoke(app, [*arguments, "--out", str(out), *options])
        assert (result.exit_code != 0) == fails, result.output
        return out, " ".join(result.output.split())

    out, text = imagine(images, "--observations", "2", "--fov", "75")
    assert "a guess of the depth network (metric: false)" in text
    about, observed = json.loads((out / "results.json").read_text()), open_posed(out / "observed")
    assert (about["poses_from"], about["depth_from"], about["metric"]) == ("point maps", "point maps", False)
    np.testing.assert_allclose(observed.poses[:, :3, 3], 1.3 * wanted, atol=0.03)
    assert all(view.estimated is not None and not view.metric for view in observed)
    # Poses that come along tell the scale, or stay as they are.
    out, text = imagine(posed, "--observe", f"0,{COUNT - 1}", "--pose-source", "pointmaps", "--depth-source", "model")
    assert "the scale is that of the odometry, and lengths are metres" in text
    np.testing.assert_allclose(open_posed(out / "observed").poses[:, :3, 3], wanted, atol=0.03)
    out, text = imagine(posed, "--observations", "2", "--depth-source", "pointmaps")
    observed = open_posed(out / "observed")
    np.testing.assert_allclose(observed.poses[:, :3, 3], poses[[0, COUNT - 1], :3, 3], atol=1e-6)
    truth = frame(poses[0])[1]
    assert np.median(np.abs(observed[0].depth / truth - 1)[observed[0].depth > 0]) < 0.05
    assert observed[0].estimated.all()
    _, text = imagine(images, "--pose-source", "recorded", "--depth-source", "pointmaps", fails=True)
    assert "has no poses; use --pose-source pointmaps" in text
    _, text = imagine(images, "--observe", f"{COUNT}", "--pose-source", "pointmaps", fails=True)
    assert f"There is no frame {COUNT}" in text
    _, text = imagine(images, "--pose-source", "gps", fails=True)
    assert "auto, recorded or pointmaps" in text


def test_stereo_takes_depth_of_point_maps(recording, known, tmp_path, monkeypatch):
    monkeypatch.setattr(refinement, "is_available", lambda folder=None: False)
    arguments = ["stereo", str(recording[0]), "--depth", "pointmaps", "--model", "geometric", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    about = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert about["depth"] | {"black_frames": 0} == {
        "measured_frames": 0, "estimated_frames": COUNT, "model": "point maps", "black_frames": 0,
    }  # fmt: skip
    assert any("the scale is that of the odometry" in note for note in about["notes"])
    photo = CliRunner().invoke(app, ["stereo", str(recording[1] / "000.png"), *arguments[2:]])
    assert photo.exit_code == 1
    assert "needs a video or a sequence" in " ".join(photo.output.split())


def test_reconstruct_takes_point_maps_of_a_video_whose_photographs_cannot_be_registered(tmp_path, monkeypatch):
    monkeypatch.setattr(refinement, "is_available", lambda folder=None: False)
    poses = walk(3)
    write_video(tmp_path / "clip.mp4", [frame(pose)[0] for pose in poses], fps=10)
    placed = []

    def registration(source, out, settings, report, given=None):
        if given is None:
            raise RegistrationError("No two photographs match.")
        placed.extend(photograph.world_from_camera for photograph in given.source.photographs)
        raise InputError("That is enough.")

    monkeypatch.setattr(place, "reconstruct", registration)
    arguments = ["reconstruct", str(tmp_path / "clip.mp4"), "--fov", "75", "--out", str(tmp_path / "out")]
    text = " ".join(CliRunner().invoke(app, arguments).output.split())
    assert "No two photographs match. Poses are estimated by point maps." in text
    assert "That is enough." in text
    found, wanted = (np.stack(each)[:, :3, 3] for each in (placed, invert_pose(poses[0]) @ poses))
    direction = (found[-1] - found[0]) / np.linalg.norm(found[-1] - found[0])
    assert direction @ (wanted[-1] - wanted[0]) > 0.9 * np.linalg.norm(wanted[-1] - wanted[0])
    # Asked for photographs, it gives up instead.
    placed.clear()
    text = CliRunner().invoke(app, [*arguments, "--pose-source", "photographs"]).output
    assert "Poses are estimated" not in text
    assert not placed


def test_photographs_for_reconstruct(recording, known, monkeypatch):
    """Poses and hole-filling depth of point maps, at another size; measured depth stays measured."""
    monkeypatch.setattr(refinement, "is_available", lambda folder=None: False)
    monkeypatch.setattr(pointmap_photographs, "load_depth_estimator", lambda name, device: known)
    options = {"pose_source": "auto", "count": 3, "fov": None, "depth_model": "", "device": "cpu", "bag_options": None}
    given = pointmap_photographs.photographs_by_pointmaps(recording[0], depth_source="pointmaps", **options)
    photographs = list(given.source.photographs)
    chosen = recording[2][[0, 4, 7]]
    np.testing.assert_allclose([photo.world_from_camera for photo in photographs], chosen, atol=1e-6)
    assert given.source.metric
    assert all(photo.load_depth is None for photo in photographs)  # none is measured
    small = CAMERA.resized(80, 60)
    estimate = given.estimator.estimate(View(photographs[1].load(), CAMERA, np.eye(4)).resized(80, 60).image, small)
    truth = cv2.resize(frame(chosen[1])[1], (80, 60), interpolation=cv2.INTER_NEAREST_EXACT)
    usable = estimate.depth > 0
    assert usable.mean() > 0.5
    assert np.median(np.abs(estimate.depth / truth - 1)[usable]) < 0.05
    given = pointmap_photographs.photographs_by_pointmaps(
        recording[0], depth_source="auto", **options | {"pose_source": "pointmaps"}
    )
    measured = next(given.source.photographs).load_depth()
    kept = measured > 0  # what is taken for moving has none
    assert kept.mean() > 0.95
    np.testing.assert_allclose(measured[kept], frame(chosen[0])[1][kept], rtol=0.01)


def test_poses_depth_and_scale_that_come_along(recording, known, tmp_path):
    posed, _, poses = recording
    wanted = (invert_pose(poses[0]) @ poses)[:, :3, 3]
    run(posed, "--method", "map", "--out", tmp_path / "given")
    sequence = open_posed(tmp_path / "given")
    assert sequence.metric
    assert known.calls == 0
    np.testing.assert_allclose(sequence.poses[:, :3, 3], wanted, atol=1e-6)
    text = run(posed, "--method", "map", "--ignore-depth", "--scale-by-poses", "--out", tmp_path / "scaled")
    assert "by the odometry" in text
    assert open_posed(tmp_path / "scaled").metric
    np.testing.assert_allclose(open_posed(tmp_path / "scaled").poses[:, :3, 3], wanted, atol=0.02)


def test_a_video_without_anything_is_said_to_be_guessed(tmp_path):
    images = [frame(pose)[0] for pose in walk(6)]
    write_video(tmp_path / "clip.mp4", images, fps=10)
    text = run(tmp_path / "clip.mp4", "--fov", 75, "--method", "vo", "--out", tmp_path / "out")
    assert "metric: false" in text
    times = np.loadtxt(tmp_path / "out" / "poses_tum.txt")[:, 0]
    np.testing.assert_allclose(np.diff(times), 0.1, atol=0.01)


@pytest.mark.parametrize("poses", [False, True])
def test_bags_with_video_alone_and_with_poses(recording, known, tmp_path, poses):
    stamps = [START + index * SECOND // 5 for index in range(COUNT)]
    with BagWriter(tmp_path / "bag") as writer:
        writer.add_topic("/cam/image", "sensor_msgs/msg/Image")
        writer.add_topic("/cam/camera_info", "sensor_msgs/msg/CameraInfo")
        if poses:
            writer.add_topic("/pose", "geometry_msgs/msg/PoseStamped")
        info = info_message(START, CAMERA.width, CAMERA.height)
        info.k[:] = CAMERA.matrix.ravel()
        writer.write("/cam/camera_info", info, START)
        for stamp, pose in zip(stamps, recording[2], strict=True):
            writer.write("/cam/image", image_message(stamp, frame(pose)[0]), stamp)
            if poses:
                writer.write("/pose", pose_stamped(stamp, pose), stamp)
    options = ["--pose-topic", "/pose", "--scale-by-poses"] if poses else []
    text = run(tmp_path / "bag", "--method", "map", *options, "--out", tmp_path / "out")
    sequence = open_posed(tmp_path / "out")
    assert len(sequence) == COUNT
    assert sequence.metric == poses
    assert ("by the odometry" in text) == poses
    factor = 1.0 if poses else 1.3
    wanted = factor * (invert_pose(recording[2][0]) @ recording[2])[:, :3, 3]
    np.testing.assert_allclose(sequence.poses[:, :3, 3], wanted, atol=0.02)
    times = np.loadtxt(tmp_path / "out" / "poses_tum.txt")[:, 0]
    np.testing.assert_allclose(np.diff(times), 0.2, atol=1e-6)


def test_frames_that_show_nothing_are_not_ok(tmp_path):
    for index in range(4):
        write_image(tmp_path / "grey" / f"{index}.png", np.full((96, 128, 3), 120, np.uint8))
    text = run(tmp_path / "grey", "--method", "map", "--out", tmp_path / "out")
    assert "NOT OK" in text
    assert "too little detail" in text
    assert json.loads((tmp_path / "out" / "pointmaps.json").read_text())["frames_lost"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("stamps", "words", "step"),
    [
        ([100.0, 100.5, 100.5, 101.5, 102.0, 102.5, 103.0, 103.5], "1 of the 8 stamps of posed", 0.5),
        ([100.0, 100.5, 101.0, 9.0, 102.0, 102.5, 103.0, 103.5], "1 of the 8 stamps of posed", 0.5),
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0], "Most stamps of posed do not", 0.1),
        ([0.0] * 8, "posed has no stamps: 10 frames a second", 0.1),
    ],
)  # fmt: skip
def test_stamps_of_a_sequence_that_do_not_ascend_are_repaired(recording, known, tmp_path, stamps, words, step):
    posed = shutil.copytree(recording[0], tmp_path / "posed")
    (posed / "timestamps.txt").write_text("".join(f"{n} {stamp}\n" for n, stamp in enumerate(stamps)))
    assert words in run(posed, "--method", "vo", "--out", tmp_path / "out")
    found = np.loadtxt(tmp_path / "out" / "poses_tum.txt")[:, 0]
    np.testing.assert_allclose(found - found[0], step * np.arange(COUNT), atol=1e-6)
    assert any(words in note for note in open_source(posed).notes)  # stereo does the same


def test_damaged_frames_are_left_out_and_counted(recording, known, tmp_path, monkeypatch):
    monkeypatch.setattr(refinement, "is_available", lambda folder=None: False)
    posed, images = (shutil.copytree(each, tmp_path / each.name) for each in recording[:2])
    for file in (posed / "frames" / "000002.png", posed / "depth" / "000005.png", images / "000.png"):
        file.write_bytes(file.read_bytes()[:200])
    text = run(posed, "--method", "vo", "--out", tmp_path / "out")
    assert "2 damaged frames left out. The first: " in text
    sequence = open_posed(tmp_path / "out")
    kept = [0, 1, 3, 4, 6, 7]
    wanted = invert_pose(recording[2][0]) @ recording[2][kept]
    np.testing.assert_allclose(sequence.poses, wanted, atol=1e-6)
    times = np.loadtxt(tmp_path / "out" / "poses_tum.txt")[:, 0]
    np.testing.assert_allclose(times, np.array(kept) / 10, atol=1e-6)  # each keeps its own time
    assert "1 damaged frame left out" in run(images, "--fov", 75, "--method", "vo", "--out", tmp_path / "out")
    arguments = ["imagine", str(posed), "--model", "geometric", "--views", "1", "--depth-source", "pointmaps"]
    arguments += ["--out", str(tmp_path / "imagined")]
    result = CliRunner().invoke(app, [*arguments, "--observe", "0,7"])
    assert result.exit_code == 0, result.output
    assert "2 damaged frames left out" in " ".join(result.output.split())
    observed = open_posed(tmp_path / "imagined" / "observed")
    np.testing.assert_allclose(observed.poses, recording[2][[0, 7]], atol=1e-6)  # numbers are those of the source
    result = CliRunner().invoke(app, [*arguments, "--observe", "0,2"])
    assert result.exit_code == 1
    assert "000002.png is damaged" in " ".join(result.output.split())
    for file in (posed / "frames").iterdir():
        file.write_bytes(file.read_bytes()[:200])
    text = run(posed, "--method", "vo", "--out", tmp_path / "none", fails=True)
    assert f"{COUNT} damaged frames left out. The first: " in text


def test_depth_unit_of_a_sequence(recording, known, tmp_path):
    arguments = (recording[0], "--method", "vo", "--frames", 3)
    text = run(*arguments, "--depth-unit", "0.01", "--out", tmp_path / "far")
    assert "The depth of posed" in text
    assert "--depth-unit" in text
    assert "The depth of" not in run(*arguments, "--depth-unit", "mm", "--out", tmp_path / "right")
    right, far = open_posed(tmp_path / "right")[0].depth, open_posed(tmp_path / "far")[0].depth
    assert np.median(far[far > 0]) / np.median(right[right > 0]) == pytest.approx(10, rel=0.05)
    assert "depth unit is 'yard'" in run(*arguments, "--depth-unit", "yard", "--out", tmp_path / "no", fails=True)


def test_imagine_takes_a_sequence_of_one_frame(recording, tmp_path):
    image, depth, _ = frame(recording[2][0])
    write_sequence(tmp_path / "one", [View(image, CAMERA, recording[2][0], depth)])
    arguments = ["imagine", str(tmp_path / "one"), "--model", "geometric", "--views", "1"]
    arguments += ["--observations", "2", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "2 frames were to be observed; one has 1." in " ".join(result.output.split())
    result = CliRunner().invoke(app, [*arguments, "--pose-source", "pointmaps"])
    assert result.exit_code == 1
    assert "has a single frame; point maps need two" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "best"], "vo, map or small"),
        (["--prior", "some"], "tracks or none"),
        (["--prior", "none", "--method", "map"], "--prior none is for the network"),
        (["--steps", "4"], "--steps is for --prior none"),
        (["--method", "small", "--weights", "nowhere"], "no point-map network"),
        (["--depth-model", "none"], "need a depth model"),
        (["--fov", "500"], "1 to 170"),
        (["--fov", "60"], "has intrinsics"),
        (["--scale-by-poses", "--ignore-poses"], "--scale-by-poses needs"),
        (["--pose-topic", "/pose"], "option of bags"),
        (["--frames", "1"], "2 at least"),
    ],
)
def test_bad_options_are_refused(recording, known, tmp_path, options, words):
    text = run(recording[0], "--out", tmp_path / "out", *options, fails=True)
    assert words in text
    assert not (tmp_path / "out" / "poses.txt").exists()


def test_sources_that_are_none(recording, tmp_path):
    posed, images, _ = recording
    assert "single image" in run(images / "000.png", "--out", tmp_path / "out", fails=True)
    assert "no poses" in run(images, "--scale-by-poses", "--out", tmp_path / "out", fails=True)
    assert "does not exist" in run(tmp_path / "nothing.mp4", "--out", tmp_path / "out", fails=True)
    assert "lies in the output folder" in run(posed, "--out", posed.parent, fails=True)
