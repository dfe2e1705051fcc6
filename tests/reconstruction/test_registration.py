import cv2
import numpy as np
import pytest
from helpers.paths import SHARED
from helpers.photo_scene import CAMERA, arc, pose_at, write_photos, write_posed

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.similarity import pose_errors
from worldstereo_ros.io.posed_sequences import read_poses
from worldstereo_ros.reconstruction import registration
from worldstereo_ros.reconstruction.features import RegistrationError, vlad_similarity
from worldstereo_ros.reconstruction.guards import PairMatches, check_model, sampson_distances
from worldstereo_ros.reconstruction.photographs import import_photographs
from worldstereo_ros.reconstruction.registration import register
from worldstereo_ros.reconstruction.sources import open_source
from worldstereo_ros.reconstruction.sparse_model import SparseModel, triangulation_angles

pytest.importorskip("pycolmap")
POSES = arc(6)


def _register(source, folder, **options):
    photos = import_photographs(open_source(source, **options), folder / "photographs")
    found = register(photos, folder / "registration")
    numbers = [int(photos[int(i)].name[:6]) for i in found.model.photographs]
    return found, numbers


@pytest.fixture(scope="module")
def estimated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimated")
    write_photos(folder / "in", POSES)
    return _register(folder / "in", folder)


def test_photographs_alone_give_poses_up_to_a_similarity(estimated):
    found, numbers = estimated
    assert numbers == list(range(6))
    errors = pose_errors(found.model.world_from_camera, POSES)
    assert errors.ate_percent < 0.3
    assert errors.degrees.max() < 0.6
    assert found.model.calibrations[0].camera.fx == pytest.approx(210, rel=0.03)
    assert (found.poses_from, found.model.metric, found.left_out) == ("photographs", False, {})


@pytest.mark.parametrize(("stated", "used", "said"), [(1.02, 1.02, ""), (1.3, 1.0, "by what the photographs show")])
def test_a_focal_length_that_comes_along_is_used_unless_the_photographs_contradict_it(tmp_path, stated, used, said):
    write_photos(tmp_path / "in", POSES)
    fov = 2 * np.arctan(0.5 * CAMERA.width / (stated * CAMERA.fx))
    photos = import_photographs(open_source(tmp_path / "in"), tmp_path / "photographs", fov=fov)
    model = register(photos, tmp_path / "registration").model
    assert model.calibrations[0].camera.fx == pytest.approx(used * CAMERA.fx, rel=0.03)
    assert said in " ".join(model.notes)
    assert bool(model.notes) == bool(said)


def test_photographs_along_a_short_arc_leave_the_field_of_view_open_and_it_is_said(tmp_path, estimated):
    poses = arc(6, step_deg=1.3)
    write_photos(tmp_path / "in", poses)
    found, _ = _register(tmp_path / "in", tmp_path)
    assert "55 and 65 degrees explain them about as well" in found.notes[0]
    assert "--fov" in found.notes[0]
    assert estimated[0].notes == ()


def test_a_focal_length_that_explains_the_photographs_as_well_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(registration, "MAX_HELD_ERROR", 2.0)
    write_photos(tmp_path / "in", arc(6, step_deg=1.3))
    fov = 2 * np.arctan(0.5 * CAMERA.width / (1.1 * CAMERA.fx))
    photos = import_photographs(open_source(tmp_path / "in"), tmp_path / "photographs", fov=fov)
    model = register(photos, tmp_path / "registration").model
    assert model.calibrations[0].camera.fx == pytest.approx(1.1 * CAMERA.fx)
    assert model.notes == ()


def test_the_frame_of_photographs_has_z_up_and_is_about_as_large_as_a_room(estimated):
    model = estimated[0].model
    up = -model.world_from_camera[:, :3, 1].mean(axis=0)
    assert up[2] / np.linalg.norm(up) > 0.999
    depths = np.concatenate([model.depths_of(row) for row in range(len(model))])
    assert np.median(depths) == pytest.approx(3, rel=1e-6)


def test_a_model_is_read_as_it_was_written(estimated, tmp_path):
    model = estimated[0].model
    model.save(tmp_path / "model.npz")
    again = SparseModel.load(tmp_path / "model.npz")
    for name in ("photographs", "world_from_camera", "points", "colours", "observed_by", "observed_point", "pixels"):
        np.testing.assert_array_equal(getattr(model, name), getattr(again, name))
    assert [c.camera for c in again.calibrations] == [c.camera for c in model.calibrations]
    assert again.notes == model.notes


def test_poses_that_come_along_stay_and_one_that_is_wrong_is_left_out(tmp_path):
    write_posed(tmp_path / "in", POSES, wrong={2: pose_at(0.6, 0.6)})
    found, numbers = _register(tmp_path / "in", tmp_path)
    assert numbers == [0, 1, 3, 4, 5]
    np.testing.assert_allclose(found.model.world_from_camera, POSES[numbers], atol=1e-7)
    assert found.poses_from == "source"
    assert found.model.metric
    assert "contradicts its picture" in found.left_out["000002.png"]


def test_poses_of_another_convention_are_refused(tmp_path):
    write_posed(tmp_path / "in", POSES, wrong={i: invert_pose(POSES[i]) for i in range(6)})
    with pytest.raises(RegistrationError, match=r"contradict the photographs.*--ignore-poses"):
        _register(tmp_path / "in", tmp_path)


def test_poses_of_a_camera_that_seems_to_stand_still_are_refused(tmp_path):
    write_posed(tmp_path / "in", POSES, wrong=dict.fromkeys(range(6), POSES[0]))
    with pytest.raises(RegistrationError, match="contradict the photographs"):
        _register(tmp_path / "in", tmp_path)


def test_photographs_without_poses_are_registered_to_those_with_poses(tmp_path):
    write_posed(tmp_path / "in", POSES, given=[0, 2, 5])
    found, numbers = _register(tmp_path / "in", tmp_path)
    assert sorted(numbers) == list(range(6))
    truth = POSES[numbers]
    assert np.linalg.norm(found.model.world_from_camera[:, :3, 3] - truth[:, :3, 3], axis=1).max() < 0.02
    assert found.poses_from == "both"
    assert found.model.metric


def test_measured_depth_gives_the_scale(tmp_path):
    write_posed(tmp_path / "in", POSES, depth=True)
    found, numbers = _register(tmp_path / "in", tmp_path, use_poses=False)
    assert found.model.metric
    errors = pose_errors(found.model.world_from_camera, POSES[numbers])
    assert errors.similarity.scale == pytest.approx(1, abs=0.01)


def test_a_photograph_whose_measured_depth_contradicts_its_pose_is_left_out(tmp_path):
    import cv2

    views = write_posed(tmp_path / "in", POSES, depth=True)
    counts = np.rint(views[4].depth * 2000).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "in" / "depth" / "000004.png"), counts)
    found, numbers = _register(tmp_path / "in", tmp_path, use_poses=False)
    assert numbers == [0, 1, 2, 3, 5]
    assert "2.00 times" in found.left_out["000004.png"]
    assert pose_errors(found.model.world_from_camera, POSES[numbers]).similarity.scale == pytest.approx(1, abs=0.01)


def test_a_photograph_of_another_place_is_left_out_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(registration, "THOROUGH_FIRST", 3)  # as if there were many
    write_photos(tmp_path / "in", POSES[:5])
    noise = np.random.default_rng(5).integers(0, 255, (180, 240, 3), dtype=np.uint8)
    import cv2

    cv2.imwrite(str(tmp_path / "in" / "other.png"), noise)
    photos = import_photographs(open_source(tmp_path / "in"), tmp_path / "photographs")
    found = register(photos, tmp_path / "registration")
    assert len(found.model) == 5
    assert "shares no features" in found.left_out["other.png"]
    # Of small photographs, thorough settings find the same features again, which takes half of the time.
    assert (tmp_path / "registration" / "fast.db").exists()
    assert not (tmp_path / "registration" / "default.db").exists()


# --- checks ----------------------------------------------------------------------------------------------------------


def _model(points: int = 400, cameras: int = 4, seed: int = 0) -> tuple[SparseModel, dict]:
    """A perfect model with matches between all pairs."""
    from worldstereo_ros.geometry.cameras import Camera, project
    from worldstereo_ros.reconstruction.mapping import known_calibration

    random = np.random.default_rng(seed)
    camera = Camera(640, 480, 500.0, 500.0, 319.5, 239.5)
    places = random.uniform((-1, -0.7, 3), (1, 0.7, 5), (points, 3))
    poses = np.tile(np.eye(4), (cameras, 1, 1))
    poses[:, 0, 3] = 0.4 * np.arange(cameras)
    pixels = [project(places, camera, pose)[0].astype(float) for pose in poses]
    rays = [np.column_stack([(p - [camera.cx, camera.cy]) / 500.0, np.ones(points)]) for p in pixels]
    matches = {(i, j): PairMatches(rays[i], rays[j]) for i in range(cameras) for j in range(i + 1, cameras)}
    model = SparseModel(
        np.arange(cameras), (known_calibration(camera),) * cameras, poses, places,
        np.zeros((points, 3), np.uint8), np.full(points, 0.5),
        np.repeat(np.arange(cameras), points), np.tile(np.arange(points), cameras), np.concatenate(pixels),
    )  # fmt: skip
    return model, matches


def test_a_good_model_is_accepted():
    model, matches = _model()
    verdict = check_model(model, matches, intrinsics_known=[True] * 4)
    assert verdict.accepted.tolist() == [0, 1, 2, 3]
    assert not verdict.reasons


def test_few_points_small_angles_and_large_errors_are_refused():
    from dataclasses import replace

    few, matches = _model(points=60)
    assert "60 points" in check_model(few, matches, intrinsics_known=[True] * 4).refused
    model, matches = _model()
    turning = replace(model, world_from_camera=model.world_from_camera * 1)
    turning.world_from_camera[:, 0, 3] *= 0.01
    assert "moved too little" in check_model(turning, matches, intrinsics_known=[True] * 4).refused
    off = replace(model, errors=np.full(len(model.points), 3.0))
    assert "3.0 pixels" in check_model(off, matches, intrinsics_known=[True] * 4).refused
    two = model.subset(np.arange(2))
    assert "without intrinsics" in check_model(two, matches, intrinsics_known=[False] * 2).refused


@pytest.mark.parametrize("degrees", [5, 40, 88])
def test_a_camera_that_contradicts_its_matches_is_left_out(degrees):
    from scipy.spatial.transform import Rotation

    model, matches = _model()
    model.world_from_camera[3, :3, :3] = Rotation.from_euler("xy", (degrees, degrees), degrees=True).as_matrix()
    verdict = check_model(model, matches, intrinsics_known=[True] * 4)
    assert verdict.accepted.tolist() == [0, 1, 2]
    assert set(verdict.reasons) == {3}


def test_a_small_error_that_the_matches_show_is_left_out():
    """Within the tolerance of single matches, but far above what the pair allows."""
    from scipy.spatial.transform import Rotation

    model, matches = _model()
    random = np.random.default_rng(1)
    for pair in matches.values():
        pair.rays_other[:, :2] += random.normal(0, 0.2 / 500, (len(pair.rays_other), 2))
    assert len(check_model(model, matches, intrinsics_known=[True] * 4).accepted) == 4
    model.world_from_camera[3, :3, :3] = Rotation.from_euler("x", 0.12, degrees=True).as_matrix()
    verdict = check_model(model, matches, intrinsics_known=[True] * 4)
    assert verdict.accepted.tolist() == [0, 1, 2]
    assert "times worse" in verdict.reasons[3]


def test_a_pair_that_matched_a_pattern_by_mistake_costs_no_photograph():
    model, matches = _model()
    shifted = matches[0, 3].rays_other[:60] + np.array([0.1, 0.4, 0])  # as consistent as true matches
    matches[0, 3] = PairMatches(matches[0, 3].rays_one[:60], shifted)
    assert len(check_model(model, matches, intrinsics_known=[True] * 4).accepted) == 4


def test_a_group_whose_ties_contradict_its_place_is_left_out():
    """Two photographs that fit each other and are turned and enlarged as one against the others."""
    from scipy.spatial.transform import Rotation

    from worldstereo_ros.geometry.similarity import Similarity

    model, matches = _model(cameras=6)
    turned = Similarity(2.0, Rotation.from_euler("xy", (25, 10), degrees=True).as_matrix(), np.array([0.3, 0.1, 0.0]))
    model.world_from_camera[4:] = turned.poses(model.world_from_camera[4:])
    # So few matches with the others that they do not outweigh those within the group.
    ties = {
        pair: PairMatches(m.rays_one[:20], m.rays_other[:20]) for pair, m in matches.items() if pair[0] < 4 <= pair[1]
    }
    verdict = check_model(model, {**matches, **ties}, intrinsics_known=[True] * 6)
    assert verdict.accepted.tolist() == [0, 1, 2, 3]
    assert set(verdict.reasons) == {4, 5}
    assert all("its place among them is open" in reason for reason in verdict.reasons.values())


def test_an_implausible_focal_length_is_left_out():
    model, matches = _model()
    verdict = check_model(model, matches, intrinsics_known=[True] * 4, exif_focal=[500.0, 500.0, 200.0, None])
    assert verdict.accepted.tolist() == [0, 1, 3]
    assert "EXIF" in verdict.reasons[2]


def test_sampson_distances_are_those_of_the_epipolar_lines():
    model, matches = _model()
    pair, relative = matches[0, 1], invert_pose(model.world_from_camera[1]) @ model.world_from_camera[0]
    np.testing.assert_allclose(sampson_distances(pair.rays_one, pair.rays_other, relative), 0, atol=1e-6)
    shifted = pair.rays_other + np.array([0, 0.01, 0])  # across the lines, which are rows
    np.testing.assert_allclose(sampson_distances(pair.rays_one, shifted, relative), 0.01 / np.sqrt(2), rtol=1e-4)


def test_triangulation_angles_are_those_of_the_outer_cameras():
    model, _ = _model(cameras=2)
    left, right = (model.points - [x, 0, 0] for x in (0, 0.4))
    cosine = (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    np.testing.assert_allclose(triangulation_angles(model), np.arccos(cosine), rtol=1e-6)


def test_alike_images_have_alike_descriptors():
    random = np.random.default_rng(0)
    places = [random.integers(0, 255, (300, 128), dtype=np.uint8) for _ in range(4)]
    seen = [np.concatenate([place[:200], random.integers(0, 255, (50, 128), dtype=np.uint8)]) for place in places]
    likeness = vlad_similarity([*places, *seen, np.zeros((0, 128), np.uint8)])
    assert likeness.shape == (9, 9)
    assert (likeness[:4, 4:8].argmax(axis=1) == np.arange(4)).all()


def test_three_photographs_without_intrinsics_are_refused(tmp_path):
    write_photos(tmp_path / "in", arc(3, step_deg=14))
    with pytest.raises(RegistrationError, match="intrinsics"):
        _register(tmp_path / "in", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data" / "multiview_fox").is_dir(), reason="needs the shared data")
def test_nine_photographs_of_the_fox_are_registered(tmp_path):
    fox, numbers = SHARED / "data" / "multiview_fox", range(0, 25, 3)
    (tmp_path / "in").mkdir()
    for i in numbers:
        (tmp_path / "in" / f"{i:06d}.jpg").write_bytes((fox / "frames" / f"{i:06d}.jpg").read_bytes())
    found, registered = _register(tmp_path / "in", tmp_path)
    assert registered == list(numbers)
    errors = pose_errors(found.model.world_from_camera, read_poses(fox / "poses.txt")[1][registered])
    assert errors.ate_percent < 0.5
    assert errors.degrees.max() < 1.0


def test_poses_that_follow_a_thing_with_more_features_than_the_place_are_refused(tmp_path):
    """A patch with much texture crosses the pictures; the poses are those of the place, or there are none."""
    views = write_photos(tmp_path / "in", POSES)
    patch = cv2.resize(
        np.random.default_rng(0).integers(0, 255, (30, 24, 3), dtype=np.uint8),
        (96, 120),
        interpolation=cv2.INTER_NEAREST,
    )
    for index, view in enumerate(views):
        image = cv2.GaussianBlur(view.image, (0, 0), 1.5)
        image[30:150, 8 + 25 * index : 104 + 25 * index] = patch
        cv2.imwrite(str(tmp_path / "in" / f"{index:06d}.png"), image[..., ::-1])
    with pytest.raises(RegistrationError, match=r"follow a thing that moved|cannot be registered"):
        _register(tmp_path / "in", tmp_path)
