import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from worldstereo_ros.camera import Camera, invert_pose, project, quaternion_from_pose, trajectory
from worldstereo_ros.viewable import MAX_SHOWN_VIEWS, SHOWN_WIDTH, Viewable, ViewableError, load_viewable, shrink
from worldstereo_ros.viewer import check_address, open_page, serve
from worldstereo_ros.viewer_scene import (
    COLOURINGS,
    MAX_FRUSTA,
    NATURAL,
    PROVENANCE,
    TINTED,
    apart,
    camera_distance,
    ceiling_height,
    coloured,
    from_above,
    overview,
    point_sizes,
    thin,
)
from worldstereo_ros.viewer_text import pictures_of, strip, summary
from worldstereo_ros.views import ImaginedView, View

CAMERA = Camera.from_fov(40, 30, np.radians(70))
# Camera at the origin of a world whose z is up, looking along x.
LEVEL = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.2], [0, 0, 0, 1]])
POSES = trajectory("forward", LEVEL, 4, distance=0.6)


def wall_view(pose, distance=2.0, number=0):
    """A view of the wall x = distance, red on its left half (y > 0), green on its right."""
    depth = np.full((30, 40), distance - pose[0, 3], dtype=np.float32)
    image = np.zeros((30, 40, 3), np.uint8)
    image[:, :20, 0], image[:, 20:, 1] = 200, 180
    image[:3, :3] = number
    return View(image, CAMERA, pose, depth)


def write_sequence(folder, views, *, observed=None, conditioning=False, depth=True):
    """The posed-sequence layout, written by hand: it is what other programs write too."""
    for index, view in enumerate(views):
        files = {"frames": cv2.cvtColor(view.image, cv2.COLOR_RGB2BGR)}
        if depth:
            files["depth"] = np.round(view.depth * 1000).astype(np.uint16)
        if observed is not None:
            files["observed"] = observed.astype(np.uint8) * 255
        if conditioning:
            files["conditioning"] = np.full_like(view.image, 128)
        for name, picture in files.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / name / f"{index:06d}.png"), picture)
    lines = ["# index tx ty tz qx qy qz qw"]
    for index, view in enumerate(views):
        lines.append(" ".join(map(str, (index, *np.concatenate(quaternion_from_pose(view.world_from_camera))))))
    (folder / "poses.txt").write_text("\n".join(lines))
    about = {name: getattr(CAMERA, name) for name in ("width", "height", "fx", "fy", "cx", "cy")}
    (folder / "intrinsics.json").write_text(json.dumps({**about, "depth_scale": 1000, "metric": True}))
    return folder


@pytest.fixture
def views():
    return [wall_view(pose, number=10 * i) for i, pose in enumerate(POSES)]


def imagined_viewable(views, count=3):
    """A room with floor, wall and ceiling, the far half of the wall imagined, and a path through it."""
    rng = np.random.default_rng(1)
    floor = np.stack([rng.uniform(0, 3, 4000), rng.uniform(-1.5, 1.5, 4000), np.zeros(4000)], 1)
    wall = np.stack([np.full(4000, 3.0), rng.uniform(-1.5, 1.5, 4000), rng.uniform(0, 2.6, 4000)], 1)
    ceiling = floor + np.array([0, 0, 2.6])
    points = np.concatenate([floor, wall, ceiling]).astype(np.float32)
    half = np.zeros((30, 40), bool)
    half[:, :20] = True
    imagined = tuple(
        ImaginedView(v.image, CAMERA, v.world_from_camera, v.depth, half, conditioning=v.image, index=i, count=count)
        for i, v in enumerate(views[:count])
    )
    return Viewable(
        "room <1>",
        "outcome",
        points,
        np.full((12000, 3), 100, np.uint8),
        points[:, 1] > 0,
        given=(views[0],),
        imagined=imagined,
        path=POSES[:count],
    )


# --- what can be loaded -----------------------------------------------------------------------------------------------


def test_sequence_is_fused_where_its_walls_are(tmp_path, views):
    shown = load_viewable(write_sequence(tmp_path / "run", views))
    assert shown.kind == "posed sequence"
    assert shown.name == "run"
    assert len(shown.points) > 300
    assert np.abs(shown.points[:, 0] - 2.0).max() < 0.02  # depth is stored in millimetres, voxels are 1 cm
    left = shown.points[:, 1] > 0.05
    assert (shown.colours[left, 0] > 150).mean() > 0.95
    assert shown.observed.all()
    assert len(shown.given) == 4 == len(shown.path)
    assert shown.imagined == ()
    assert shown.stepped == shown.given
    np.testing.assert_allclose(shown.path, POSES, atol=1e-6)
    np.testing.assert_array_equal(shown.up, [0, 0, 1])


def test_masks_of_a_sequence_make_its_points_imagined(tmp_path, views):
    left = np.zeros((30, 40), bool)
    left[:, :20] = True
    shown = load_viewable(write_sequence(tmp_path / "run", views, observed=left, conditioning=True))
    assert shown.given == ()
    assert len(shown.imagined) == 4
    assert [view.index for view in shown.imagined] == [0, 1, 2, 3]
    np.testing.assert_array_equal(shown.imagined[2].observed, left)
    assert (shown.imagined[2].conditioning == 128).all()
    assert shown.observed[shown.points[:, 1] > 0.1].all()
    assert not shown.observed[shown.points[:, 1] < -0.1].any()


def test_sequence_without_depth_shows_its_cameras(tmp_path, views):
    shown = load_viewable(write_sequence(tmp_path / "run", views, depth=False))
    assert len(shown.points) == 0
    assert len(shown.given) == 4
    assert "no depth" in " ".join(shown.notes)


def test_long_sequences_are_thinned_and_say_so(tmp_path, views):
    many = [views[0]] * (MAX_SHOWN_VIEWS + 20)
    shown = load_viewable(write_sequence(tmp_path / "run", many, depth=False))
    assert len(shown.given) == MAX_SHOWN_VIEWS
    assert len(shown.path) == MAX_SHOWN_VIEWS + 20
    assert f"{MAX_SHOWN_VIEWS} of its {MAX_SHOWN_VIEWS + 20}" in shown.notes[0]


def test_saved_map_shows_cloud_and_bank(tmp_path, views):
    from worldstereo_ros.memory.archive import save_archive
    from worldstereo_ros.memory.bank import ViewBank
    from worldstereo_ros.memory.cloud import CloudMemory

    cloud, bank = CloudMemory(0.01), ViewBank()
    half = np.arange(40)[None].repeat(30, 0) < 20
    for view in views:
        cloud.insert(replace(view, observed=half))
    bank.add(views[0])
    save_archive(tmp_path / "place.wsmap", cloud, bank, {})
    shown = load_viewable(tmp_path / "place.wsmap")
    assert shown.kind == "saved map"
    np.testing.assert_array_equal(shown.points, cloud.points)
    np.testing.assert_array_equal(shown.observed, cloud.observed)
    assert 0.2 < shown.observed.mean() < 0.8
    assert len(shown.given) == 1
    np.testing.assert_array_equal(shown.given[0].image, views[0].image)


def outcome_of(views):
    half = np.arange(40)[None].repeat(30, 0) < 20
    return [
        ImaginedView(v.image, CAMERA, v.world_from_camera, v.depth, half, conditioning=v.image, index=i, count=3)
        for i, v in enumerate(views[1:])
    ]


def test_outcome_folder_shows_given_and_imagined(tmp_path, views):
    from worldstereo_ros.memory.archive import save_archive
    from worldstereo_ros.memory.bank import ViewBank
    from worldstereo_ros.memory.cloud import CloudMemory
    from worldstereo_ros.outcome import MAP_FILE, write_outcome

    cloud, imagined = CloudMemory(0.01), outcome_of(views)
    cloud.insert(views[0])
    write_outcome(tmp_path / "out", imagined, views[:1], cloud, title="test")
    from_cloud_file = load_viewable(tmp_path / "out")
    save_archive(tmp_path / "out" / MAP_FILE, cloud, ViewBank(), {})
    shown = load_viewable(tmp_path / "out")
    assert shown.kind == from_cloud_file.kind == "outcome"
    assert shown.name == "out"
    np.testing.assert_array_equal(shown.points, cloud.points)
    assert len(from_cloud_file.points) == len(cloud)
    assert from_cloud_file.provenance_known
    assert len(shown.given) == 1
    assert len(shown.imagined) == 3
    np.testing.assert_array_equal(shown.imagined[1].image, views[2].image)
    np.testing.assert_array_equal(shown.imagined[1].observed, imagined[1].observed)
    np.testing.assert_allclose(shown.path, POSES[1:], atol=1e-6)


def test_outcome_without_map_or_cloud_fuses_the_imagined_views(tmp_path, views):
    write_sequence(tmp_path / "out" / "imagined", views, observed=np.zeros((30, 40), bool))
    shown = load_viewable(tmp_path / "out")
    assert shown.kind == "outcome"
    assert len(shown.points) > 300
    assert not shown.observed.any()


@pytest.mark.parametrize("name", ["cloud.ply", "cloud.pcd"])
@pytest.mark.parametrize("with_observed", [True, False])
def test_cloud_files(tmp_path, name, with_observed):
    import open3d as o3d

    points = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    colours = np.random.default_rng(1).integers(0, 256, (50, 3)).astype(np.uint8)
    cloud = o3d.t.geometry.PointCloud(points)
    cloud.point["colors"] = colours
    if with_observed:
        cloud.point["observed"] = (points[:, :1] > 0).astype(np.uint8)
    assert o3d.t.io.write_point_cloud(str(tmp_path / name), cloud)
    shown = load_viewable(tmp_path / name)
    np.testing.assert_allclose(shown.points, points, atol=1e-6)
    np.testing.assert_array_equal(shown.colours, colours)
    np.testing.assert_array_equal(shown.observed, points[:, 0] > 0 if with_observed else np.ones(50, bool))
    assert shown.provenance_known == with_observed
    assert with_observed or "does not say" in shown.notes[-1]


def test_points_that_are_not_finite_are_left_out(tmp_path):
    # Open3D's own reader stops at `inf` and returns memory it never wrote.
    rows = ["0 0 1", "nan 0 1", "0 inf 1", "1 0 1"]
    header = "ply\nformat ascii 1.0\nelement vertex 4\n" + "".join(f"property float {a}\n" for a in "xyz")
    (tmp_path / "a.ply").write_text(header + "end_header\n" + "\n".join(rows) + "\n")
    shown = load_viewable(tmp_path / "a.ply")
    np.testing.assert_array_equal(shown.points, [[0, 0, 1], [1, 0, 1]])
    assert shown.colours.shape == (2, 3)
    assert "2 points" in shown.notes[0]


@pytest.mark.parametrize("endian", ["<", ">"])
def test_binary_ply_of_other_programs(tmp_path, endian):
    """Doubles, colours as numbers from 0 to 1, an attribute nobody knows, and faces after the vertices."""
    fields = [("x", "f8"), ("y", "f8"), ("z", "f8"), ("quality", "i2"), ("red", "f4"), ("green", "f4"), ("blue", "f4")]
    rows = np.zeros(3, np.dtype([(name, endian + kind) for name, kind in fields]))
    rows["x"], rows["green"], rows["quality"] = [1, 2, 3], [0, 0.5, 1], 7
    names = {"f8": "double", "f4": "float", "i2": "short"}
    header = f"ply\nformat binary_{'little' if endian == '<' else 'big'}_endian 1.0\ncomment a b\nelement vertex 3\n"
    header += "".join(f"property {names[kind]} {name}\n" for name, kind in fields)
    header += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    (tmp_path / "mesh.ply").write_bytes(header.encode() + rows.tobytes() + b"\3" + bytes(12))
    shown = load_viewable(tmp_path / "mesh.ply")
    np.testing.assert_array_equal(shown.points, [[1, 0, 0], [2, 0, 0], [3, 0, 0]])
    np.testing.assert_array_equal(shown.colours, [[0, 0, 0], [0, 128, 0], [0, 255, 0]])


def bad_paths(folder):
    ply = "ply\nformat ascii 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    (folder / "huge.ply").write_text(ply.format(90_000_000_000) + "0 0 0\n")
    (folder / "none.ply").write_text(ply.format(0))
    (folder / "word.ply").write_text(ply.format(2) + "0 0 0\n0 zero 0\n")
    (folder / "cut_ascii.ply").write_text(ply.format(3) + "0 0 0\n" + "0.000000000000000 0 0\n")
    (folder / "faces.ply").write_text(ply.format(1).replace("vertex", "face") + "0 0 0\n")
    (folder / "cut.ply").write_bytes(ply.format(9).replace("ascii", "binary_little_endian").encode() + b"\0" * 107)
    pcd = "VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {0}\nHEIGHT 1\nPOINTS {0}\nDATA {1}\n"
    (folder / "cut_ascii.pcd").write_text(pcd.format(3, "ascii") + "0 0 0\n" * 2)
    (folder / "cut.pcd").write_bytes(pcd.format(9, "binary").encode() + b"\0" * 107)
    (folder / "words.ply").write_text("these are no points")
    (folder / "words.pcd").write_text("these are no points")
    (folder / "notes.txt").write_text("hello")
    (folder / "map.wsmap").write_bytes(b"\0" * 100)
    (folder / "folder").mkdir()
    (folder / "clip" / "frames").mkdir(parents=True)
    cv2.imwrite(str(folder / "clip" / "frames" / "000000.png"), np.zeros((30, 40, 3), np.uint8))
    return {
        "missing": "There is nothing at",
        "huge.ply": "90,000,000,000 points",
        "none.ply": "no points",
        "cut.ply": "cut off or damaged",
        "cut_ascii.ply": "cut off or damaged",
        "cut_ascii.pcd": "cut off or damaged",
        "cut.pcd": "cut off or damaged",
        "faces.ply": "vertex COUNT",
        "word.ply": "damaged",
        "words.ply": "no PLY header",
        "words.pcd": "no PCD header",
        "notes.txt": "Expected is a saved map",
        "map.wsmap": "map.wsmap",
        "folder": "no data set that is known",
        "clip": "without camera poses",
    }


def test_errors_are_sentences_that_name_the_path(tmp_path):
    for name, words in bad_paths(tmp_path).items():
        with pytest.raises(ViewableError) as caught:
            load_viewable(tmp_path / name)
        message = str(caught.value)
        assert words in message, name
        assert name in message
        assert message.endswith((".", ")."))


def test_damaged_frame_is_named(tmp_path, views):
    folder = write_sequence(tmp_path / "run", views)
    (folder / "depth" / "000002.png").write_bytes(b"no picture")
    with pytest.raises(ViewableError, match=r"000002\.png"):
        load_viewable(folder)


def test_real_sequence(shared_data):
    shown = load_viewable(shared_data / "rgbd_tum_fr3_cabinet")
    assert len(shown.points) > 100_000
    np.testing.assert_array_equal(shown.up, [0, 0, 1])  # SOURCE.md: world +Z is up
    assert len(shown.given) == 58
    assert max(view.camera.width for view in shown.given) == SHOWN_WIDTH


def test_shrinking_keeps_everything_aligned(views):
    camera = Camera.from_fov(1000, 600, 1.0)
    mask = np.zeros((600, 1000), bool)
    mask[:, :500] = True
    image = np.zeros((600, 1000, 3), np.uint8)
    image[:, :500] = 255
    small = shrink(ImaginedView(image, camera, LEVEL, None, mask, conditioning=image))
    assert small.camera.width == SHOWN_WIDTH == small.image.shape[1] == small.conditioning.shape[1]
    assert small.observed.shape == small.image.shape[:2]
    assert (small.image[..., 0] > 127).mean() == pytest.approx(0.5, abs=0.01)
    np.testing.assert_array_equal(small.image, small.conditioning)
    assert shrink(views[0]) is views[0]


# --- arithmetic of the scene ------------------------------------------------------------------------------------------


def test_thinning_is_even_and_within_budget():
    rng = np.random.default_rng(0)
    dense = rng.uniform(0, 1, (90_000, 2))  # one half of the floor is seen nine times as densely as the other
    sparse = rng.uniform(0, 1, (10_000, 2)) + np.array([1, 0])
    points = np.concatenate([np.concatenate([dense, sparse]), np.zeros((100_000, 1))], axis=1).astype(np.float32)
    kept = thin(points, np.ones(len(points), bool), 5000)
    assert 3500 <= len(kept) <= 5000
    assert (np.diff(kept) > 0).all()
    share = (points[kept, 0] < 1).mean()
    assert 0.45 < share < 0.6  # by chance it would be 0.9
    np.testing.assert_array_equal(kept, thin(points, np.ones(len(points), bool), 5000))


def test_thinning_prefers_observed_points():
    grid = np.stack(np.meshgrid(np.arange(60), np.arange(60), [0]), -1).reshape(-1, 3).astype(np.float32)
    points = np.concatenate([grid, grid])
    observed = np.arange(len(points)) >= len(grid)
    kept = thin(points, observed, 2000)
    assert observed[kept].all()
    np.testing.assert_array_equal(thin(points, observed, 10_000), np.arange(len(points)))


def test_thinning_keeps_what_is_near():
    rng = np.random.default_rng(0)
    near = np.c_[rng.uniform(-1, 1, (30_000, 2)), np.zeros(30_000)]
    far = np.c_[rng.uniform(-30, 30, (20_000, 2)), np.full(20_000, 60.0)]
    points = np.concatenate([near, near + 3e-4, far])
    cameras = np.repeat(np.eye(4)[None], 2, axis=0)
    cameras[0, 2, 3], cameras[1, 2, 3] = 1.0, -500.0
    distance = camera_distance(points, cameras)
    assert distance[:60_000].max() < 2 < 58 < distance[60_000:].min()
    kept = thin(points, np.ones(80_000, bool), 10_000)
    kept_near = thin(points, np.ones(80_000, bool), 10_000, distance)
    assert len(kept_near) <= 10_000
    assert (kept_near < 60_000).sum() > 3 * (kept < 60_000).sum()


def test_thinning_survives_degenerate_clouds():
    same = np.ones((1000, 3), np.float32)
    assert 1 <= len(thin(same, np.ones(1000, bool), 10)) <= 10
    far = np.concatenate([np.random.default_rng(0).normal(size=(5000, 3)), [[1e6, 0, 0]]]).astype(np.float32)
    assert 1 <= len(thin(far, np.ones(5001, bool), 500)) <= 500


def test_point_sizes_follow_the_spacing():
    grid = np.stack(np.meshgrid(np.arange(30), np.arange(30), [0]), -1).reshape(-1, 3).astype(np.float32)
    points = np.concatenate([0.01 * grid, 0.02 * grid + [10, 0, 0], [[99.0, 0, 0]]])
    sizes = point_sizes(points)
    assert np.median(sizes[:900]) == pytest.approx(0.01, rel=0.01)
    assert np.median(sizes[900:1800]) == pytest.approx(0.02, rel=0.01)
    assert sizes[-1] <= 0.06  # a stray is not drawn as large as its distance
    assert (point_sizes(points[:2]) > 0).all()


def test_frusta_that_would_hide_each_other_are_left_out():
    still = np.repeat(LEVEL[None], 10, axis=0)
    assert apart(still, 0.1) == [0]
    assert apart(trajectory("forward", LEVEL, 11, distance=1.0), 0.19) == [0, 2, 4, 6, 8, 10]
    assert apart(trajectory("turn", LEVEL, 7, angle=np.pi), 0.1) == list(range(7))
    assert len(apart(trajectory("forward", LEVEL, 500, distance=100.0), 0.1)) <= MAX_FRUSTA
    assert apart(np.zeros((0, 4, 4)), 0.1) == []


def test_colourings_say_what_was_imagined():
    colours, observed = np.full((2, 3), 100, np.uint8), np.array([True, False])
    np.testing.assert_array_equal(coloured(colours, observed, NATURAL), colours)
    tinted = coloured(colours, observed, TINTED)
    np.testing.assert_array_equal(tinted[0], colours[0])
    assert tinted[1, 0] > 140 > tinted[1, 2]
    blue, orange = coloured(colours, observed, PROVENANCE).astype(int)
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]
    with pytest.raises(ValueError, match="no colouring"):
        coloured(colours, observed, "mauve")


def test_ceiling_is_above_the_cameras_and_below_the_ceiling(views):
    viewable = imagined_viewable(views)
    assert 1.2 < ceiling_height(viewable) < 2.6
    assert ceiling_height(replace(viewable, path=np.zeros((0, 4, 4)), given=())) == np.inf


@pytest.mark.parametrize("look_at", [overview, from_above])
def test_overview_has_everything_in_the_picture(views, look_at):
    viewable = imagined_viewable(views)
    look = look_at(viewable)
    forward = look.look_at - look.position
    forward /= np.linalg.norm(forward)
    assert forward[2] < -0.5
    right = np.cross(forward, viewable.up)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = look.position
    camera = Camera.from_fov(200, 200, look.fov)
    below = viewable.points[viewable.points[:, 2] < ceiling_height(viewable)]
    uv, z = project(np.concatenate([below, POSES[:, :3, 3]]), camera, pose)
    assert (z > 0).all()
    assert ((uv > 0) & (uv < 199)).all(axis=1).mean() > 0.98
    assert np.ptp(uv, axis=0).max() > 90  # and not tiny


def test_what_is_seen_through_a_window_does_not_shrink_the_room(views):
    viewable = imagined_viewable(views)
    outside = np.random.default_rng(0).uniform([20, -3, 0], [25, 3, 2], (3000, 3)).astype(np.float32)
    points = np.concatenate([viewable.points, outside])
    with_garden = replace(
        viewable, points=points, colours=np.zeros((15000, 3), np.uint8), observed=np.ones(15000, bool)
    )
    room, garden = overview(viewable), overview(with_garden)
    assert np.linalg.norm(garden.position - room.position) < 0.2 * np.linalg.norm(room.position - room.look_at)


def test_overview_of_cameras_alone_and_of_points_alone(views):
    empty = Viewable("a", "posed sequence", np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, bool))
    for viewable in (replace(empty, path=POSES), replace(imagined_viewable(views), path=POSES[:0], given=()), empty):
        look = overview(viewable)
        assert np.isfinite(look.position).all()
        assert np.linalg.norm(look.position - look.look_at) > 0


# --- words ------------------------------------------------------------------------------------------------------------


def test_summary_counts_and_escapes(views):
    viewable = imagined_viewable(views)
    text = summary(viewable, 600)
    assert "room &lt;1&gt;" in text
    assert "<1>" not in text
    assert "12,000 points, 600 of them" in text
    assert f"{viewable.observed.mean():.0%}" in text
    assert "Imagined" in text
    only = replace(viewable, observed=np.ones(12000, bool), imagined=(), path=POSES[:0])
    assert "Imagined" not in summary(only, 12000)


def test_pictures_of_a_view(views):
    assert len(pictures_of(views[0])) == 2
    imagined = outcome_of(views)[0]
    captions = [caption for _, caption in pictures_of(imagined)]
    assert len(captions) == 4
    assert any("50% observed" in caption for caption in captions)
    assert strip(imagined).count("data:image/jpeg;base64,") == 4


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def page(views):
    page = open_page(imagined_viewable(views), port=0)
    yield page
    page.stop()


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status, answer.read()


def test_page_answers_and_has_its_nodes(page):
    status, body = get(page.url)
    assert status == 200
    assert b"<html" in body[:2000].lower()
    scene = page.server.scene
    for name in ("/path/line", "/path/selected", "/path/cameras/0002", "/memory/0000", "/grid"):
        assert scene.get_handle_by_name(name) is not None, name
    parts = page.scene._points
    assert sum(len(part.handle.points) for part in parts) == 12000 == page.scene.shown_points
    for origin, above in ((True, False), (True, True), (False, False), (False, True)):
        assert any(part.observed == origin and part.above == above for part in parts)


def test_toggles_show_and_hide(page):
    scene = page.scene
    assert not any(part.handle.visible for part in scene._points if part.above)
    scene.cut_ceiling = False
    scene.show_imagined = scene.show_given = False
    scene.refresh()
    assert all(part.handle.visible == part.observed for part in scene._points)
    assert not scene.given_frusta[0][0].visible
    assert scene.path_frusta[0][0].visible


def test_colours_sizes_and_pictures_reach_the_nodes(page):
    scene = page.scene
    imagined = next(part for part in scene._points if not part.observed)
    seen = {colouring: (scene.recolour(colouring), imagined.handle.colors[0].tolist())[1] for colouring in COLOURINGS}
    assert len({tuple(colour) for colour in seen.values()}) == 3
    before = imagined.handle.point_size
    scene.resize_points(2.0)
    assert imagined.handle.point_size == pytest.approx(2 * before)
    scene.show_pictures(False)
    assert scene.path_frusta[0][0].image is None
    scene.show_pictures(True)
    assert scene.path_frusta[0][0].image is not None


def test_selecting_moves_the_frustum_and_changes_the_pictures(page, views):
    first = page._strip.content
    page._slider.value = 3
    assert page.index == 2
    assert page._strip.content != first
    handle = page.server.scene.get_handle_by_name("/path/selected")
    np.testing.assert_allclose(handle.position, POSES[2, :3, 3], atol=1e-6)
    np.testing.assert_array_equal(handle.image, views[2].image)


class FakeClient:
    """A browser that remembers where it was told to look from."""

    def __init__(self):
        self.client_id = 7
        self.camera = SimpleNamespace(
            up_direction=np.array([0.0, 0, 1]), position=np.zeros(3), look_at=np.ones(3), fov=0.5
        )

    def atomic(self):
        return contextlib.nullcontext()


def test_riding_looks_through_the_cameras_and_returns(page, monkeypatch):
    client = FakeClient()
    monkeypatch.setattr(page.server, "get_clients", lambda: {7: client})
    page._rides.value = True
    page.select(1)
    camera = client.camera
    np.testing.assert_allclose(camera.position, POSES[1, :3, 3])
    ahead = (camera.look_at - camera.position) / np.linalg.norm(camera.look_at - camera.position)
    np.testing.assert_allclose(ahead, POSES[1, :3, 2], atol=1e-9)
    np.testing.assert_allclose(camera.up_direction, -POSES[1, :3, 1])
    assert camera.fov == pytest.approx(2 * np.arctan(15 / CAMERA.fy))
    assert not page.scene.path_frusta[0][0].visible
    assert any(part.handle.visible for part in page.scene._points if part.above)
    page._rides.value = False
    np.testing.assert_array_equal(camera.position, np.zeros(3))
    np.testing.assert_array_equal(camera.look_at, np.ones(3))
    assert camera.fov == 0.5
    assert page.scene.path_frusta[0][0].visible


def test_route_passes_through_the_views(page):
    route = page._route
    np.testing.assert_allclose(route[::6], POSES[:3], atol=1e-9)
    steps = np.linalg.norm(np.diff(route[:, :3, 3], axis=0), axis=1)
    np.testing.assert_allclose(steps[:12], steps[0], rtol=1e-6)
    assert (steps[12:] == 0).all()
    assert steps[0] > 0.01


def test_playing_steps_on_and_stops(page):
    page._speed.value = 12
    page.play(True)
    seen, until = set(), time.monotonic() + 20
    while len(seen) < 3 and time.monotonic() < until:
        seen.add(page.index)
        time.sleep(0.02)
    page.play(False)
    assert seen == {0, 1, 2}
    assert page._button.label == "Play"


def test_stopping_frees_the_port_and_ends_the_thread(views):
    page = open_page(imagined_viewable(views), port=0)
    port = page.server.get_port()
    page.stop()
    assert not page._thread.is_alive()
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        get(page.url)
    again = open_page(imagined_viewable(views), port=port)
    assert get(again.url)[0] == 200
    again.stop()


def test_points_alone_and_cameras_alone_make_a_page(views):
    full = imagined_viewable(views)
    bare = replace(full, given=(), imagined=(), path=POSES[:0], observed=np.ones(12000, bool))
    cameras = replace(full, points=full.points[:0], colours=full.colours[:0], observed=full.observed[:0])
    for viewable in (bare, cameras):
        page = open_page(viewable, port=0)
        try:
            assert get(page.url)[0] == 200
        finally:
            page.stop()


def test_port_that_is_taken_is_refused(views):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"Port {port} on 127.0.0.1 is taken.*--port {port + 1}"):
            open_page(imagined_viewable(views), port=port)


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("203.0.113.5", 8080, "Nothing can listen on"),
        ("no.such.host.invalid", 8080, "no address"),
        ("127.0.0.1", 70000, "no port"),
    ],
)
def test_addresses_that_cannot_be_listened_on(host, port, words):
    with pytest.raises(OSError, match=words):
        check_address(host, port)


def test_missing_viser_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(RuntimeError, match=r"pip install '\.\[view\]'"):
        serve(tmp_path)


def test_command_serves_until_interrupted(tmp_path):
    header = "ply\nformat ascii 1.0\nelement vertex 2\n" + "".join(f"property float {a}\n" for a in "xyz")
    (tmp_path / "a.ply").write_text(header + "end_header\n0 0 0\n1 0 0\n")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "worldstereo_ros.cli", "view", str(tmp_path / "a.ply"), "--port", str(port)]
    environment = {**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        until = time.monotonic() + 60
        while "Ctrl-C" not in log.read_text() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        assert get(f"http://127.0.0.1:{port}")[0] == 200
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    finally:
        process.kill()
    output = log.read_text()
    assert process.returncode == 0, output
    assert f"http://127.0.0.1:{port}" in output
    assert "Traceback" not in output


def test_frusta_stand_where_the_cameras_stood(page):
    handle = page.server.scene.get_handle_by_name("/path/cameras/0002")
    np.testing.assert_allclose(handle.position, POSES[2, :3, 3], atol=1e-6)
    w, x, y, z = handle.wxyz
    forward = [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)]
    np.testing.assert_allclose(forward, invert_pose(POSES[2])[2, :3], atol=1e-6)
    assert handle.fov == pytest.approx(2 * np.arctan(15 / CAMERA.fy))
    assert handle.aspect == pytest.approx(40 / 30)
