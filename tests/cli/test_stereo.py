"""`worldstereo stereo`: images, videos with sound, sequences; names, formats, resumption and bad input."""

import json
import os
import shutil
import subprocess

import cv2
import numpy as np
import pytest
from helpers.stereo_scene import CAMERA, pose_at, view_from
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.depth.estimators import load_depth_estimator
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.images import write_image
from worldstereo_ros.io.posed_sequences import open_posed, write_sequence
from worldstereo_ros.io.stereo_video import has_sound
from worldstereo_ros.io.video_timing import read_frames, read_timing
from worldstereo_ros.pipelines.stereo import conversion
from worldstereo_ros.pipelines.stereo.conversion import convert
from worldstereo_ros.pipelines.stereo.frame_sources import open_source
from worldstereo_ros.pipelines.stereo.pipeline import GeometricStereo
from worldstereo_ros.pipelines.stereo.settings import StereoSettings

FRAMES = 6


def run(*arguments, fails=False) -> str:
    result = CliRunner().invoke(app, ["stereo", *map(str, arguments)])
    assert (result.exit_code != 0) == fails, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """A posed sequence with depth."""
    folder = tmp_path_factory.mktemp("stereo") / "walk"
    views = []
    for index in range(FRAMES):
        x = 0.3 - 0.06 * index
        image, depth = view_from(x)
        views.append(View(image, CAMERA, pose_at(x), depth))
    write_sequence(folder, views)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of variable rate with sound."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    pace = "setpts='if(lt(N,4),N/20/TB,(4/20+(N-4)/10)/TB)'"
    command = [ffmpeg, "-v", "error", "-f", "lavfi", "-i", "testsrc=size=66x50:rate=20:duration=0.5"]
    command += ["-f", "lavfi", "-i", "sine=frequency=440:duration=0.8", "-vf", pace, "-fps_mode", "vfr"]
    subprocess.run([*command, "-pix_fmt", "yuv420p", "-c:v", "libx264", "-c:a", "aac", str(path)], check=True)
    return path


def shape_of(path):
    return next(read_frames(path)).shape


def test_sequence_becomes_a_video_with_its_description(walk, tmp_path):
    output = run(walk, "--out", tmp_path, "--base", 0.1, "--depth", "sensor", "--source-map")
    video = tmp_path / "walk_LRF_Full_SBS.mp4"
    frames = list(read_frames(video))
    assert len(frames) == FRAMES
    assert frames[0].shape == (CAMERA.height, 2 * CAMERA.width, 3)
    image = view_from(0.3)[0]
    assert np.abs(frames[0][:, : CAMERA.width].astype(int) - image).mean() < 4  # H.264 has loss
    about = json.loads(video.with_suffix(".json").read_text())
    assert about["base_m"] == 0.1
    assert about["cameras"] == "parallel"
    assert about["made_eye"] == "right"
    assert about["depth"] == {"measured_frames": FRAMES, "estimated_frames": 0, "model": None, "black_frames": 0}
    assert about["made_eye_pixels"]["remembered"] > 0
    assert sum(about["made_eye_pixels"].values()) == pytest.approx(1)
    assert "no sensor" in output
    source = [frame[..., 0] for frame in read_frames(tmp_path / "walk_source.mkv")]
    values, counts = np.unique(np.stack(source), return_counts=True)
    assert set(values) == {0, 128, 255}
    assert dict(zip(values, counts, strict=True))[128] / counts.sum() == pytest.approx(
        about["made_eye_pixels"]["remembered"]
    )
    assert not list(tmp_path.glob(".*"))


def test_arbitrary_unit_is_not_called_metres(walk, tmp_path):
    folder = shutil.copytree(walk, tmp_path / "walk")
    intrinsics = folder / "intrinsics.json"
    intrinsics.write_text(json.dumps(json.loads(intrinsics.read_text()) | {"metric": False}))
    output = run(folder, "--out", tmp_path / "out", "--base", 0.1, "--depth", "sensor")
    assert "The unit of the depth is arbitrary, not metres" in output
    assert "Base 0.1 units of the depth" in output
    assert "0.1 m" not in output


def test_frame_packing_is_in_the_stream(walk, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    run(walk, "--out", tmp_path, "--format", "half-tb", "--depth", "sensor")
    video = tmp_path / "walk_TB.mp4"
    assert shape_of(video) == (CAMERA.height, CAMERA.width, 3)
    about = json.loads(video.with_suffix(".json").read_text())
    shown = subprocess.run([ffmpeg, "-i", video, "-vf", "showinfo", "-f", "null", "-"], capture_output=True, check=True)
    assert (about["frame_packing"] == 4) == (b"top and bottom" in shown.stderr)


def test_video_keeps_sound_and_time(clip, tmp_path):
    output = run(clip, "--out", tmp_path, "--format", "left-right", "--fov", 60)
    assert "variable frame rate" in output
    assert "estimated" in output
    for name in ("clip_left.mp4", "clip_right.mp4"):
        assert has_sound(tmp_path / name)
        assert shape_of(tmp_path / name) == (50, 66, 3)
    about = json.loads((tmp_path / "clip.json").read_text())
    assert about["frames_read"] == 10
    timing = read_timing(clip)
    assert about["frames_written"] == timing.repeats.sum() > 10
    assert about["frames_per_second"] == timing.rate == pytest.approx(20)
    assert about["sound"] == "copied"
    assert about["variable_rate_source"]


def test_image_becomes_an_image(tmp_path):
    image, depth = view_from(0.0)
    write_image(tmp_path / "photo.png", image)
    write_image(tmp_path / "photo_depth.png", (depth * 1000).astype(np.uint16))
    run(tmp_path / "photo.png", "--out", tmp_path / "out", "--format", "tb", "--fov", 60, "--convergence", 3)
    made = cv2.imread(str(tmp_path / "out" / "photo_TBF_fulltb.png"))[..., ::-1]
    assert made.shape == (2 * CAMERA.height, CAMERA.width, 3)
    np.testing.assert_array_equal(made[: CAMERA.height], image)
    about = json.loads((tmp_path / "out" / "photo_TBF_fulltb.json").read_text())
    assert about["cameras"] == "converged"
    assert about["convergence_m"] == 3


def test_interrupted_run_goes_on_with_the_same_result(walk, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "PART_FRAMES", 2)
    settings = StereoSettings(base=0.1)

    def make(out, on_frame=lambda done, count: None):
        source = open_source(walk)
        return convert(source, GeometricStereo(source.camera, settings), out, source_map=True, on_frame=on_frame)

    def stop(done, count):
        assert count == FRAMES
        if done == 5:
            raise KeyboardInterrupt

    whole = make(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "parts", stop)
    assert not list((tmp_path / "parts").glob("*.mp4"))
    resumed = make(tmp_path / "parts")
    assert resumed.resumed_at == 4
    assert resumed.description == whole.description
    for one, other in zip(whole.files[:2], resumed.files[:2], strict=True):
        for first, second in zip(read_frames(one), read_frames(other), strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("change", ["base", "depth", "file", None])
def test_what_differs_starts_anew(walk, tmp_path, monkeypatch, change):
    monkeypatch.setattr(conversion, "PART_FRAMES", 2)
    folder, out = tmp_path / "walk", tmp_path / "out"
    shutil.copytree(walk, folder)

    def stop(done, count):
        if done == 5:
            raise KeyboardInterrupt

    source, settings = open_source(folder), StereoSettings(base=0.1)
    with pytest.raises(KeyboardInterrupt):
        convert(source, GeometricStereo(source.camera, settings), out, on_frame=stop)
    if change == "base":
        settings = StereoSettings(base=0.2)
    if change == "file":  # in a folder below
        image = sorted((folder / "depth").iterdir())[0]
        os.utime(image, ns=(0, image.stat().st_mtime_ns + 10**9))
    estimated = change == "depth"
    source = open_source(folder, measured_depth=not estimated)
    estimator = load_depth_estimator("small") if estimated else None
    done = convert(source, GeometricStereo(source.camera, settings), out, estimator=estimator)
    assert done.resumed_at == (0 if change else 4)
    assert done.description["frames_read"] == FRAMES
    assert done.description["depth"]["estimated_frames"] == (FRAMES if estimated else 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", 0], "base is 0 m"),
        (["--base", 65], "not 65 for millimetres"),
        (["--format", "3d"], "format '3d'"),
        (["--depth", "lidar"], "lidar"),
        (["--eye", "both"], "eye is 'both'"),
        (["--depth", "sensor", "--depth-model", "small"], "estimates nothing"),
        (["--fov", 60], "contradict"),
        (["--image-topic", "/camera"], "option of bags"),
        (["--convergence", -1], "convergence"),
        (["--size", "7x7"], "16"),
    ],
)
def test_bad_options_are_refused(walk, tmp_path, arguments, message):
    output = run(walk, "--out", tmp_path / "out", *arguments, fails=True)
    assert message in output
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").glob("*.mp4"))


def test_bad_sources_are_refused(clip, tmp_path):
    assert "does not exist" in run(tmp_path / "none.mp4", fails=True)
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:2000])
    assert "cut.mp4" in run(tmp_path / "cut.mp4", "--out", tmp_path / "out", fails=True)
    assert "no measured depth" in run(clip, "--out", tmp_path / "out", "--depth", "sensor", fails=True)


def test_truncated_video_is_used_as_far_as_it_goes(tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    whole, cut = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
    command = [ffmpeg, "-v", "error", "-f", "lavfi", "-i", "testsrc=size=64x48:rate=20:duration=3"]
    subprocess.run([*command, "-c:v", "libx264", "-g", "5", str(whole)], check=True)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    source = open_source(cut)
    assert 2 < source.count < 55
    assert any("truncated" in note for note in source.notes)
    assert not any("truncated" in note for note in open_source(whole).notes)
    assert sum(1 for _ in source.read(0)) == source.count


def test_pixels_that_are_no_squares_become_some(tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    path = tmp_path / "wide.mp4"
    command = [ffmpeg, "-v", "error", "-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=0.3"]
    subprocess.run([*command, "-vf", "setsar=3/2", "-pix_fmt", "yuv420p", str(path)], check=True)
    source = open_source(path)
    assert (source.camera.width, source.camera.height) == (96, 48)
    assert source.camera.fx == pytest.approx(source.camera.fy)
    assert next(source.read(0)).image.shape == (48, 96, 3)
    assert any("1.5 times as wide" in note for note in source.notes)


def test_depth_unit_of_a_sequence(walk, tmp_path):
    arguments = (walk, "--model", "geometric")
    text = run(*arguments, "--depth-unit", "0.1", "--out", tmp_path / "far")
    assert "The depth of walk" in text
    assert "--depth-unit" in text
    assert "The depth of walk" not in run(*arguments, "--depth-unit", "mm", "--out", tmp_path / "right")
    right, far = (next(open_source(walk, depth_unit=unit).read(0)).depth for unit in ("mm", "0.1"))
    np.testing.assert_allclose(far, 100 * right, rtol=1e-5)
    assert "depth unit is 'yard'" in run(*arguments, "--depth-unit", "yard", "--out", tmp_path / "no", fails=True)


def test_damaged_frames_of_a_sequence_are_replaced_by_the_one_before(walk, tmp_path, monkeypatch):
    folder = shutil.copytree(walk, tmp_path / "walk")
    for number, size in ((0, 200), (1, 3), (3, 200), (4, 200)):
        file = folder / "frames" / f"{number:06d}.png"
        file.write_bytes(file.read_bytes()[:size])
    source = open_source(folder)
    shown = [2, 2, 2, 2, 2, 5]
    for start in range(FRAMES):  # where a run is taken up
        read = list(source.read(start))
        assert [bool(frame.damage) for frame in read] == [True, True, False, True, True, False][start:]
        for frame, index in zip(read, shown[start:], strict=True):
            np.testing.assert_array_equal(frame.image, open_posed(walk)[index].image)
            np.testing.assert_array_equal(frame.world_from_camera, open_posed(walk)[index].world_from_camera)
    text = run(folder, "--depth", "sensor", "--out", tmp_path / "out")
    assert "4 frames are damaged: frame 2, the first whole one, is shown from the start, and elsewhere the one" in text
    assert "The first: The image " in text
    about = json.loads((tmp_path / "out" / "walk_LRF_Full_SBS.json").read_text())
    assert (about["frames_read"], about["frames_written"], about["frames_damaged"]) == (FRAMES, FRAMES, 4)
    for file in (folder / "frames").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert "None of the 6 frames of" in run(folder, "--depth", "sensor", "--out", tmp_path / "no", fails=True)
