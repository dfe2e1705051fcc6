"""Datasets: posed sequences, images, videos and WorldStereo examples; errors of invalid files."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.textured_wall import textured_wall_views
from PIL import Image

from worldstereo_ros.geometry.cameras import Camera, project, unproject
from worldstereo_ros.geometry.poses import invert_pose, pose_from_quaternion, quaternion_from_pose
from worldstereo_ros.io.datasets import DatasetError, open_image, open_sequence, open_video
from worldstereo_ros.io.posed_sequences import open_posed, write_sequence
from worldstereo_ros.io.worldstereo_examples import camera_from_intrinsic, poses_from_extrinsic

WIDTH, HEIGHT = 20, 16
INTRINSICS = {"width": WIDTH, "height": HEIGHT, "fx": 18.0, "fy": 19.0, "cx": 9.5, "cy": 7.5, "depth_scale": 1000.0}


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def posed(tmp_path) -> Path:
    """Four frames with poses; all but number 7 have depth. The numbers have gaps, as in a subsampled sequence."""
    folder = tmp_path / "walk"
    (folder / "frames").mkdir(parents=True)
    (folder / "depth").mkdir()
    lines = ["# index tx ty tz qx qy qz qw"]
    for row, index in enumerate((3, 5, 7, 9)):
        Image.fromarray(_images(4)[row]).save(folder / f"frames/{index:06d}.png")
        if index != 7:
            Image.fromarray(np.full((HEIGHT, WIDTH), 1000 + index, np.uint16)).save(folder / f"depth/{index:06d}.png")
        half = 0.1 * index
        lines.append(f"{index} {index * 0.1} 0 -1 0 {np.sin(half)} 0 {np.cos(half)}")
    (folder / "poses.txt").write_text("\n".join(lines) + "\n\n")
    (folder / "intrinsics.json").write_text(json.dumps({**INTRINSICS, "has_depth": True, "metric": True}))
    (folder / "timestamps.txt").write_text("3 100.5\n5 101.25\n9 103\n")
    return folder


def test_open_sequence_reads_a_posed_sequence(posed):
    sequence = open_sequence(posed)
    assert (sequence.kind, len(sequence), sequence.has_depth, sequence.metric, sequence.posed) == (
        "posed", 4, True, True, True,
    )  # fmt: skip
    np.testing.assert_array_equal(sequence.indices, [3, 5, 7, 9])
    assert sequence.camera == Camera(WIDTH, HEIGHT, 18.0, 19.0, 9.5, 7.5)
    for row, view in enumerate(sequence):
        np.testing.assert_array_equal(view.image, _images(4)[row])
        np.testing.assert_array_equal(view.world_from_camera, sequence.poses[row])
    np.testing.assert_allclose(sequence[1].depth, 1.005, atol=1e-6)
    assert sequence[1].depth.dtype == np.float32
    assert sequence[2].depth is None
    expected = pose_from_quaternion((0.9, 0, -1), (0, np.sin(0.9), 0, np.cos(0.9)))
    np.testing.assert_allclose(sequence[-1].world_from_camera, expected, atol=1e-12)
    np.testing.assert_array_equal(sequence.stamps_ns, [100_500_000_000, 101_250_000_000, 0, 103_000_000_000])
    assert sequence[3].stamp_ns == 103_000_000_000


def test_sequence_slices_and_subsets(posed):
    sequence = open_posed(posed)
    part = sequence[1::2]
    np.testing.assert_array_equal(part.indices, [5, 9])
    np.testing.assert_array_equal(part[1].image, sequence[3].image)
    np.testing.assert_array_equal(sequence.subset([3, 0]).indices, [9, 3])
    assert len(sequence[4:]) == 0
    for wrong in (4, -5):
        with pytest.raises(IndexError, match="has 4 views"):
            sequence[wrong]
    with pytest.raises(IndexError, match="has 4"):
        sequence.subset([0, 9])
    assert len(list(part)) == 2


def _change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def _remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda f: _change(f / "poses.txt", "5 0.5 0", "5 nan 0"),
            r"line 3 has a number that is not finite",
        ),
        (lambda f: _change(f / "poses.txt", "5 0.5 0", "5 0.5"), r"line 3 has 7 numbers; 8 were expected: index tx"),
        (lambda f: _change(f / "poses.txt", "5 0.5 0", "5 half 0"), r"line 3 is '5 half 0"),
        (lambda f: _change(f / "poses.txt", "5 0.5 0", "3 0.5 0"), r"line 3 repeats the index 3"),
        (lambda f: _change(f / "poses.txt", "5 0.5 0", "5.5 0.5 0"), r"line 3 starts with 5.5"),
        (lambda f: (f / "poses.txt").write_text("1 0 0 0 0 0 0 0\n"), r"line 1: The quaternion .* has norm 0"),
        (lambda f: (f / "poses.txt").write_text("# nothing\n"), r"poses.txt has no poses"),
        (lambda f: (f / "poses.txt").write_bytes(b"\xff\xfe\x00"), r"poses.txt is not a UTF-8 text file"),
        (lambda f: _remove(f / "frames/000007.png"), r"has 4 poses, but 1 of them have no image .* is 000007"),
        (lambda f: _remove(f / "intrinsics.json"), r"file .*intrinsics.json does not exist"),
        (lambda f: (f / "intrinsics.json").write_text("{"), r"intrinsics.json is not valid JSON"),
        (lambda f: (f / "intrinsics.json").write_text("[]"), r"contains a list; a JSON object was expected"),
        (lambda f: _change(f / "intrinsics.json", '"fx": 18.0', '"fx": "18"'), r"has no numbers for fx"),
        (lambda f: _change(f / "intrinsics.json", '"fx": 18.0', '"fx": NaN'), r"every number finite"),
        (lambda f: _change(f / "intrinsics.json", '"fx": 18.0', '"fx": 0'), r"focal lengths must be positive"),
        (lambda f: _change(f / "intrinsics.json", "1000.0", "0"), r"depth_scale 0; a positive number"),
        (
            lambda f: _change(f / "intrinsics.json", '"width": 20', '"width": 40'),
            r"20x16; intrinsics.json has 40x16",
        ),
        (lambda f: shutil.rmtree(f / "depth"), r"has_depth = true, but .* has no depth image"),
    ],
)
def test_open_sequence_rejects_invalid_posed_sequences(posed, damage, sentence):
    damage(posed)
    with pytest.raises(DatasetError, match=sentence):
        open_sequence(posed)


def test_loading_a_view_rejects_invalid_files(posed):
    sequence = open_posed(posed)
    Image.fromarray(np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8)).save(posed / "frames/000005.png")
    with pytest.raises(DatasetError, match=r"000005.png is 21x16; 20x16 was expected"):
        sequence[1]
    Image.fromarray(np.zeros((HEIGHT // 2, WIDTH), np.uint16)).save(posed / "depth/000009.png")
    with pytest.raises(DatasetError, match=r"depth/000009.png is 20x8"):
        sequence[3]
    (posed / "frames/000003.png").write_bytes((posed / "frames/000003.png").read_bytes()[:300])
    with pytest.raises(DatasetError, match=r"000003.png is damaged"):
        sequence[0]
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(posed / "depth/000003.png")
    shutil.copy(posed / "frames/000007.png", posed / "frames/000003.png")
    with pytest.raises(DatasetError, match=r"pixel mode 'RGB'; one channel of 16 bits"):
        sequence[0]
    (posed / "frames/000007.png").unlink()
    with pytest.raises(DatasetError, match=r"file .*000007.png does not exist"):
        sequence[2]


def test_open_sequence_rejects_large_images_by_their_header(posed):
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", 9000, 8000, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + bytes(4) + b"IDAT"
    (posed / "frames" / "000003.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with pytest.raises(DatasetError, match="9000x8000; at most 64000000 pixels are accepted"):
        open_sequence(posed)


# --- images and videos -----------------------------------------------------------------------------------------------


def test_open_image_with_and_without_depth(tmp_path):
    Image.fromarray(_images(1)[0]).save(tmp_path / "seed.png")
    single = open_sequence(tmp_path / "seed.png")
    assert (single.kind, single.posed, single.camera_known, single.has_depth) == ("image", False, False, False)
    field = 2 * np.degrees(np.arctan(0.5 * WIDTH / single.camera.fx))
    assert field == pytest.approx(60)
    np.testing.assert_array_equal(single[0].image, _images(1)[0])
    Image.fromarray(np.full((HEIGHT, WIDTH), 2500, np.uint16)).save(tmp_path / "seed_depth.png")
    np.testing.assert_allclose(open_sequence(tmp_path / "seed.png")[0].depth, 2.5)
    camera = Camera.from_fov(WIDTH, HEIGHT, 1.0)
    opened = open_image(tmp_path / "seed.png", tmp_path / "seed_depth.png", camera=camera, depth_scale=5000)
    np.testing.assert_allclose(opened[0].depth, 0.5)
    assert (opened.camera, opened.camera_known) == (camera, True)
    with pytest.raises(DatasetError, match=r"none\.png does not exist"):
        open_image(tmp_path / "seed.png", tmp_path / "none.png")


def _write_clip(path: Path, frames: np.ndarray) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, frames.shape[2:0:-1])
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame[..., ::-1])
    writer.release()


def test_open_sequence_reads_videos_and_their_folders(tmp_path):
    grey = np.stack([np.full((64, 96, 3), 20 * i, np.uint8) for i in range(6)])
    _write_clip(tmp_path / "clip.mp4", grey)
    for source in (tmp_path / "clip.mp4", tmp_path):
        video = open_sequence(source)
        assert (video.kind, len(video), video.posed, video.has_depth) == ("video", 6, False, False)
        for i in (5, 0, 3):
            assert abs(float(video[i].image.mean()) - 20 * i) < 4
        np.testing.assert_array_equal(video.stamps_ns[:3], [0, 100_000_000, 200_000_000])
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    with pytest.raises(DatasetError, match="not a readable video"):
        open_video(tmp_path / "broken.mp4")
    with pytest.raises(DatasetError, match="has 2 videos"):
        open_video(tmp_path)


def test_an_image_is_known_by_its_content(tmp_path):
    Image.fromarray(np.full((16, 20, 3), 90, np.uint8)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / "photo")
    assert open_sequence(tmp_path / "photo")[0].image.shape == (16, 20, 3)


def test_text_files_may_have_a_byte_order_mark(tmp_path):
    write_sequence(tmp_path / "a", textured_wall_views())
    for name in ("poses.txt", "intrinsics.json"):
        content = (tmp_path / "a" / name).read_bytes()
        (tmp_path / "a" / name).write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    np.testing.assert_allclose(open_sequence(tmp_path / "a").poses[1], textured_wall_views()[1].world_from_camera)


@pytest.mark.parametrize("name", ["d000000.png", "000000.tiff"])
def test_depth_that_no_frame_uses_is_an_error(tmp_path, name):
    write_sequence(tmp_path, textured_wall_views())
    depth = (tmp_path / "depth" / "000000.png").read_bytes()
    shutil.rmtree(tmp_path / "depth")
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / name).write_bytes(depth)
    content = json.loads((tmp_path / "intrinsics.json").read_text())
    (tmp_path / "intrinsics.json").write_text(json.dumps({**content, "has_depth": False}))
    with pytest.raises(DatasetError, match=rf"no depth image of these poses, but {name}; 16-bit PNG"):
        open_sequence(tmp_path)


def test_a_folder_of_images_alone_says_what_to_name(tmp_path):
    Image.fromarray(np.full((16, 20, 3), 90, np.uint8)).save(tmp_path / "a.jpg")
    with pytest.raises(DatasetError, match=r"holds images, such as a.jpg.*Name one of them"):
        open_sequence(tmp_path)


def test_open_sequence_rejects_unknown_formats(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        open_sequence(tmp_path / "none")
    with pytest.raises(DatasetError, match=r"not a known dataset.*poses.txt"):
        open_sequence(tmp_path)
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(DatasetError, match="is neither an image"):
        open_sequence(tmp_path / "a.txt")
    (tmp_path / "drive.mcap").write_bytes(b"")
    with pytest.raises(DatasetError, match="is a bag"):
        open_sequence(tmp_path / "drive.mcap")


# --- WorldStereo examples --------------------------------------------------------------------------------------------


def _world_from_camera(count: int) -> np.ndarray:
    poses = [pose_from_quaternion((0.1 * i, 0.2, 0), (0, np.sin(0.05 * i), 0, np.cos(0.05 * i))) for i in range(count)]
    return np.stack(poses)


def _camera_json(count: int = 3, **more) -> str:
    K = [[36.0, 0, 20.0], [0, 38.0, 16.0], [0, 0, 1]]  # for a 40x32 image
    return json.dumps({"extrinsic": invert_pose(_world_from_camera(count)).tolist(), "intrinsic": [K] * count, **more})


@pytest.fixture
def example(tmp_path) -> Path:
    folder = tmp_path / "kitchen"
    render = folder / "renders" / "traj_up"
    render.mkdir(parents=True)
    Image.fromarray(_images(1)[0]).save(folder / "image.png")
    (folder / "prompt.json").write_text(json.dumps({"short caption": "a room", "long caption": "a long kitchen"}))
    (render / "camera.json").write_text(_camera_json(width=40, height=32))
    hole = np.zeros((3, 32, 40, 3), np.uint8)
    hole[:, :, 24:] = 255
    _write_clip(render / "render.mp4", np.where(hole > 0, 127, 200).astype(np.uint8))
    _write_clip(render / "render_mask.mp4", hole)
    return folder


def test_open_sequence_reads_a_reconstruction_example(example):
    sequence = open_sequence(example)
    assert (sequence.kind, len(sequence), sequence.metric) == ("worldstereo reconstruction", 1, False)
    assert sequence.prompt == "a long kitchen"
    path = sequence.trajectories["traj_up"]
    np.testing.assert_allclose(path.world_from_camera, _world_from_camera(3), atol=1e-12)
    np.testing.assert_allclose(sequence[0].world_from_camera, path.world_from_camera[0])
    # Half the size of the image that the matrix refers to; the principal point stays in the middle.
    assert path.camera == Camera(WIDTH, HEIGHT, 18.0, 19.0, 9.5, 7.5)
    renders, holes = path.renders(), path.holes()
    assert renders.shape == (3, HEIGHT, WIDTH, 3)
    assert holes.shape == (3, HEIGHT, WIDTH)
    assert holes[:, :, 13:].all()
    assert not holes[:, :, :11].any()
    assert abs(float(renders[:, :, :10].mean()) - 200) < 6


def test_open_sequence_reads_an_image_example(example):
    shutil.move(example / "renders/traj_up/camera.json", example / "camera.json")
    shutil.rmtree(example / "renders")
    sequence = open_sequence(example)
    assert sequence.kind == "worldstereo image"
    assert list(sequence.trajectories) == ["kitchen"]
    np.testing.assert_allclose(sequence[0].world_from_camera, _world_from_camera(3)[0], atol=1e-12)
    with pytest.raises(DatasetError, match=r"has no render\.mp4"):
        sequence.trajectories["kitchen"].renders()


@pytest.mark.parametrize("key", ["k1", "p2", "distortion"])
def test_open_sequence_rejects_lens_distortion(posed, key):
    """Images of a distorting lens would be read as those of a pinhole camera, without a word."""
    file = posed / "intrinsics.json"
    content = json.loads(file.read_text())
    nothing, something = ([0, 0], [0, 0.1]) if key == "distortion" else (0.0, 0.1)
    file.write_text(json.dumps(content | {key: nothing}))
    assert len(open_sequence(posed)) > 0
    file.write_text(json.dumps(content | {key: something}))
    file.write_text(json.dumps(content | {key: None}))
    assert len(open_sequence(posed)) > 0
    file.write_text(json.dumps(content | {key: something}))
    with pytest.raises(DatasetError, match=rf"lens distortion \({key} ="):
        open_sequence(posed)


def test_open_sequence_rejects_intrinsics_of_another_image_size(example):
    (example / "renders/traj_up/camera.json").write_text(_camera_json().replace("20.0]", "25.0]"))
    with pytest.raises(DatasetError, match=r"principal point at \(25, 16\), outside the image of 20x16"):
        open_sequence(example)
    K = [[36.0, 0, 20.0], [0, 38.0, 16.0], [0, 0, 1]]
    assert camera_from_intrinsic(K, (40, 32), (40, 32), "x") == Camera(40, 32, 36.0, 38.0, 19.5, 15.5)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda j: j.pop("extrinsic"), "`extrinsic` is missing"),
        (lambda j: j.update(extrinsic=[[1, 2], [3]]), "not a matrix of numbers"),
        (lambda j: j.update(extrinsic=[]), "has shape"),
        (lambda j: j["extrinsic"][1][0].__setitem__(0, float("nan")), "not finite"),
        (lambda j: j["extrinsic"][1][0].__setitem__(0, 5.0), "not a rotation"),
        (lambda j: j.update(intrinsic=[[1, 0], [0, 1]]), r"has shape \(1, 2, 2\)"),
        (lambda j: j["intrinsic"][2][0].__setitem__(0, 99.0), "changes along the path"),
        (lambda j: j["intrinsic"].__setitem__(slice(None), [[[0, 0, 20], [0, 0, 16], [0, 0, 1]]]), "must be positive"),
    ],
)
def test_open_sequence_rejects_invalid_camera_json(example, damage, sentence):
    file = example / "renders/traj_up/camera.json"
    content = json.loads(file.read_text())
    damage(content)
    file.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=sentence):
        open_sequence(example)


def test_renders_must_have_one_frame_per_pose(example):
    (example / "renders/traj_up/camera.json").write_text(_camera_json(5, width=40, height=32))
    with pytest.raises(DatasetError, match=r"render.mp4 has 3 frames; its path has 5 poses"):
        open_sequence(example).trajectories["traj_up"].renders()
    (example / "renders/traj_up/camera.json").write_text(_camera_json(2, width=40, height=32))
    with pytest.raises(DatasetError, match=r"has more than 2 frames; its path has 2 poses"):
        open_sequence(example).trajectories["traj_up"].holes()


def test_open_sequence_reads_a_panorama_bank(tmp_path):
    bank, traj = tmp_path / "pano_bank", tmp_path / "reconstruct_0" / "traj1"
    (bank / "images").mkdir(parents=True)
    traj.mkdir(parents=True)
    K, poses = [[18.0, 0, 10.0], [0, 19.0, 8.0], [0, 0, 1]], _world_from_camera(3)
    cameras = {}
    for i in range(3):
        Image.fromarray(_images(3)[i]).save(bank / f"images/{i:04d}.png")
        cameras[f"{i:04d}"] = {"extrinsic": invert_pose(poses[i]).tolist(), "intrinsic": K}
    (bank / "cameras.json").write_text(json.dumps(cameras))
    (traj / "camera.json").write_text(_camera_json(width=40, height=32))
    (traj / "traj_caption.json").write_text(json.dumps({"prompt": "a yard"}))
    sequence = open_sequence(tmp_path)
    assert (sequence.kind, len(sequence), sequence.prompt) == ("worldstereo panorama", 3, "a yard")
    np.testing.assert_allclose(sequence.poses, poses, atol=1e-12)
    np.testing.assert_array_equal(sequence[2].image, _images(3)[2])
    assert list(sequence.trajectories) == ["reconstruct_0/traj1"]
    (bank / "images/0002.png").unlink()
    with pytest.raises(DatasetError, match="2 images and 3 cameras"):
        open_sequence(tmp_path)


def test_poses_from_extrinsic_inverts_world_to_camera():
    pose = pose_from_quaternion((1, 2, 3), (0.5, 0.5, 0.5, 0.5))
    for extrinsic in (invert_pose(pose).tolist(), [invert_pose(pose).tolist()]):
        np.testing.assert_allclose(poses_from_extrinsic(extrinsic, "x"), pose[None], atol=1e-12)


# --- the development data --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "count", "has_depth"),
    [
        ("rgbd_hololens_office_a", "posed", 65, True),
        ("rgbd_tum_fr3_cabinet", "posed", 58, True),
        ("multiview_fox", "posed", 25, False),
        ("stereo_motorcycle", "posed", 2, True),
        ("video_cat", "video", 60, False),
        ("worldstereo_image_dining", "worldstereo image", 1, False),
        ("worldstereo_recon_kitchen", "worldstereo reconstruction", 1, False),
    ],
)
def test_open_sequence_reads_the_development_data(shared_data, name, kind, count, has_depth):
    sequence = open_sequence(shared_data / name)
    assert (sequence.kind, len(sequence), sequence.has_depth) == (kind, count, has_depth)
    view = sequence[len(sequence) - 1]
    assert view.image.std() > 10


@pytest.mark.parametrize("name", ["rgbd_hololens_office_a", "rgbd_tum_fr3_cabinet"])
def test_depth_and_poses_of_real_frames_agree(shared_data, name):
    """Points of a frame, projected into the next frame, agree with its depth."""
    a, b = open_sequence(shared_data / name)[10:12]
    known = a.depth > 0
    points = unproject(a.depth, a.camera, a.world_from_camera)[known]
    uv, z = project(points, b.camera, b.world_from_camera)
    x, y = np.rint(uv).astype(int).T
    inside = (z > 0) & (x >= 0) & (x < b.camera.width) & (y >= 0) & (y < b.camera.height)
    seen = b.depth[y[inside], x[inside]]
    both = seen > 0
    assert both.sum() > 10_000
    assert np.median(np.abs(seen[both] - z[inside][both])) < 0.05


def test_render_of_an_example_starts_with_its_image(shared_data):
    sequence = open_sequence(shared_data / "worldstereo_recon_kitchen")
    assert sorted(sequence.trajectories) == ["traj_eloop", "traj_left", "traj_right", "traj_up"]
    path = sequence.trajectories["traj_left"]
    first, holes = path.renders()[0], path.holes()
    covered = ~holes[0]
    assert covered.mean() > 0.9
    error = np.abs(first.astype(int) - sequence[0].image.astype(int))[covered].mean()
    assert error < 8
    assert holes[-1].mean() > holes[0].mean()
    _, quaternion = quaternion_from_pose(path.world_from_camera)
    np.testing.assert_allclose(np.linalg.norm(quaternion, axis=1), 1)
