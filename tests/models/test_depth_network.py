"""The small depth network: what goes in and comes out, metres and focal lengths, its weights, its training."""

import json

import cv2
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.training_runs import SMOKE
from safetensors.torch import load_file, save_file

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.models import CheckpointError
from worldstereo_ros.models.depth_network import CANONICAL_FOCAL_PX, DepthNetwork, load_depth_network
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.world_files import RenderedWorld
from worldstereo_ros.training.run_folder import Run
from worldstereo_ros.training.runner import make_stage, train_stages
from worldstereo_ros.training.stages.depth import (
    DepthBatch,
    DepthSampler,
    augment_appearance,
    depth_loss,
    draw_view,
    typical_of,
)

TINY = {"widths": (8, 8, 16), "blocks": (1, 1), "layers": 1, "heads": 2}
WEIGHTS = "diffusion_pytorch_model.safetensors"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path, SMOKE, Accelerator(cpu=True))


def stirred(**options) -> DepthNetwork:
    """A network whose every layer does something: an untrained one says the same of every picture."""
    torch.manual_seed(3)
    model = DepthNetwork(**{**TINY, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False).eval()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    rough = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)


# --- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(96, 128), (80, 144), (32, 48), (160, 96)])
def test_maps_are_as_large_as_the_picture(height, width):
    model = stirred()
    maps = model(torch.rand(2, 3, height, width) * 2 - 1, torch.tensor([[width / 2, height / 2]] * 2))
    for values in (maps.log_depth, maps.log_scale, maps.hit):
        assert values.shape == (2, height, width)
        assert torch.isfinite(values).all()
    assert maps.log_depth.std() > 1e-3


def test_a_picture_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="multiples of 16"):
        stirred()(torch.zeros(1, 3, 90, 128), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="uint8"):
        stirred().predict(np.zeros((48, 64, 3)), Camera.from_fov(64, 48, 1.0))
    with pytest.raises(ValueError, match="must agree"):
        stirred().predict(np.zeros((48, 64, 3), np.uint8), Camera.from_fov(32, 24, 1.0))


@pytest.mark.parametrize(("height", "width"), [(97, 131), (480, 640), (540, 360), (20, 30), (8, 200)])
def test_any_size_has_depth_of_its_own_size(height, width):
    model = stirred(pixels=3072)
    said = model.predict(picture(height, width), Camera.from_fov(width, height, 1.2))
    assert said.depth.shape == said.scale.shape == (height, width)
    assert said.depth.dtype == said.scale.dtype == np.float32
    assert np.isfinite(said.depth).all()
    assert (said.depth >= 0).all()
    assert (said.scale > 0).all()


def test_depth_is_proportional_to_the_focal_length():
    model, image = stirred(pixels=3072), picture(60, 80)
    short, long = (model.predict(image, Camera(80, 60, f, f, 39.5, 29.5)).depth for f in (50.0, 125.0))
    assert (short > 0).any()
    np.testing.assert_allclose(long, 2.5 * short, rtol=1e-4)


def test_the_same_view_at_another_size_has_the_same_metres():
    model, camera = stirred(pixels=3072), Camera(256, 192, 200.0, 200.0, 127.5, 95.5)
    large = picture(192, 256)
    small = cv2.resize(large, (64, 48), interpolation=cv2.INTER_AREA)
    first, second = model.predict(large, camera).depth, model.predict(small, camera.resized(64, 48)).depth
    assert np.median(first) == pytest.approx(np.median(second), rel=0.03)


def test_where_the_principal_point_lies_matters():
    model, image = stirred(), torch.rand(1, 3, 48, 64)
    first, second = (model(image, torch.tensor([[32.0, y]])).log_depth for y in (10.0, 40.0))
    assert (first - second).abs().max() > 1e-3


# --- its weights -----------------------------------------------------------------------------------------------------


def test_what_is_saved_loads_the_same(run):
    model = stirred(pixels=3072, typical_log=0.3, typical_depth=1.9)
    run.save_depth_network(model)
    again = load_depth_network(run.base / "depth")
    camera = Camera.from_fov(64, 48, 1.1)
    np.testing.assert_array_equal(
        again.predict(picture(48, 64), camera).depth, model.predict(picture(48, 64), camera).depth
    )
    assert again.config.typical_depth == 1.9


def test_damaged_weights_are_refused(run):
    run.save_depth_network(stirred())
    folder = run.base / "depth"
    good = load_file(folder / WEIGHTS)

    save_file({**good, "head.bias": good["head.bias"] * float("nan")}, str(folder / WEIGHTS))
    with pytest.raises(CheckpointError, match=r"not finite.*damaged"):
        load_depth_network(folder)
    save_file({name: tensor for name, tensor in good.items() if name != "head.bias"}, str(folder / WEIGHTS))
    with pytest.raises(CheckpointError, match=r"missing: head\.bias"):
        load_depth_network(folder)
    save_file({**good, "head.bias": torch.zeros(3)}, str(folder / WEIGHTS))
    with pytest.raises(CheckpointError, match="wrong shape"):
        load_depth_network(folder)
    (folder / WEIGHTS).write_bytes(b"\x00" * 64)
    with pytest.raises(CheckpointError):
        load_depth_network(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "widths": [8, 8]}))
    with pytest.raises(CheckpointError, match="describes no valid depth network"):
        load_depth_network(folder)
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": "ImageAutoencoder"}))
    with pytest.raises(CheckpointError, match="DepthNetwork was expected"):
        load_depth_network(folder)


def test_sizes_that_make_no_network_are_refused():
    with pytest.raises(ValueError, match="multiple of heads"):
        DepthNetwork(widths=(8, 8, 15), heads=2)


# --- its training ----------------------------------------------------------------------------------------------------


def test_turned_and_zoomed_views_have_the_depth_of_the_new_camera():
    """A flat wall and a floor, so that what another camera sees is known in closed form."""
    height, width, f = 48, 64, 50.0
    camera = Camera(width, height, f, f, (width - 1) / 2, (height - 1) / 2)
    fine = camera.resized(2 * width, 2 * height)

    def wall(camera: Camera) -> torch.Tensor:
        return torch.full((2, camera.height, camera.width), 3.0).half()

    world = RenderedWorld(
        image=torch.zeros(2, 3, height, width, dtype=torch.uint8),
        depth=wall(camera),
        pose=torch.eye(4).repeat(2, 1, 1),
        walk=torch.zeros(2, dtype=torch.int64),
        matrix=torch.from_numpy(camera.matrix).float(),
        fine=torch.arange(2),
        fine_image=torch.zeros(2, 3, 2 * height, 2 * width, dtype=torch.uint8),
        fine_depth=wall(fine),
    )
    random = np.random.default_rng(4)
    turned = 0
    for _ in range(40):
        _, depth, focal, centre = draw_view(world, random)
        rows, columns = np.mgrid[:height, :width]
        points = np.stack([(columns - centre[0]) / focal * depth, (rows - centre[1]) / focal * depth, depth], -1)
        # Whatever the camera's turn, the points lie in one plane, three metres from where it stands.
        normal = np.linalg.svd((points - points.mean((0, 1))).reshape(-1, 3), full_matrices=False)[2][-1]
        off = points @ normal
        np.testing.assert_allclose(np.abs(off), 3.0, atol=0.02)
        turned += abs(normal[2]) < 0.999
    assert turned > 10


def test_a_clean_view_is_the_view_itself(training_worlds):
    world = WorldDataset(training_worlds, "training", 4).of_one_size(1, np.random.default_rng(0))[0]
    image, depth, focal, centre = draw_view(world, np.random.default_rng(1), clean=True)
    index = [i for i in range(len(world.image)) if np.array_equal(world.image[i].permute(1, 2, 0), image)]
    assert index
    np.testing.assert_array_equal(depth, world.depth[index[0]].float())
    assert focal == pytest.approx(world.camera.fx)
    np.testing.assert_allclose(centre, (world.camera.cx, world.camera.cy), atol=1e-5)


def test_disguised_pictures_stay_pictures_and_differ():
    pictures = torch.rand(16, 3, 32, 48)
    first, second = (augment_appearance(pictures.clone(), np.random.default_rng(seed)) for seed in (1, 2))
    for out in (first, second):
        assert out.shape == pictures.shape
        assert out.min() >= -1
        assert out.max() <= 1
    assert (first - second).abs().mean() > 0.05
    torch.testing.assert_close(first, augment_appearance(pictures.clone(), np.random.default_rng(1)))


def test_the_loss_is_least_at_the_truth():
    depth = torch.rand(2, 32, 48) * 3 + 1
    depth[:, :8] = 0
    batch = DepthBatch(torch.zeros(2, 3, 32, 48, dtype=torch.uint8), depth, torch.full((2,), 80.0), torch.zeros(2, 2))
    model = stirred()
    said = model(torch.zeros(2, 3, 32, 48), torch.zeros(2, 2))
    flat = torch.zeros_like(depth)
    right = type(said)(batch.log_depth(), flat, torch.where(depth > 0, 9.0, -9.0))
    best, parts = depth_loss(right, batch)
    assert parts["absolute"] == pytest.approx(0, abs=1e-6)
    assert parts["edges"] == pytest.approx(0, abs=1e-6)
    for wrong in (
        type(said)(batch.log_depth() + 0.2, flat, right.hit),
        type(said)(batch.log_depth() * 1.1, flat, right.hit),
        type(said)(batch.log_depth(), flat + 1, right.hit),
        type(said)(batch.log_depth(), flat, -right.hit),
    ):
        assert depth_loss(wrong, batch)[0] > best + 1e-3
    # What nothing was hit in says nothing of depth.
    astray = batch.log_depth().clone()
    astray[:, :8] += 5
    assert depth_loss(type(said)(astray, flat, right.hit), batch)[0] == pytest.approx(float(best), abs=1e-5)


def test_the_loss_falls_on_a_fixed_batch(run, training_worlds):
    stage = make_stage(
        "depth", run, WorldDataset(training_worlds, "training", 4), WorldDataset(training_worlds, "validation", 2)
    )
    try:
        stage.start_step()
        player = stage.parameter_groups[0]
        optimizer = torch.optim.AdamW(player.parameters, lr=5e-3)
        errors = []
        for _ in range(60):
            loss, figures = player.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            errors.append(figures["absolute"])
        assert np.mean(errors[-5:]) < 0.6 * errors[0]
        assert errors[0] > 0.05
    finally:
        stage.close()


def test_a_stage_of_its_own_trains_goes_on_and_is_checked(tmp_path, training_worlds):
    figures = train_stages(["depth"], SMOKE, tmp_path, steps=3, worlds=training_worlds)["depth"]
    assert {"loss", "absrel", "delta", "aligned_absrel", "hit"} <= set(figures)
    assert (tmp_path / "logs" / "depth.png").is_file()
    folder = tmp_path / "base" / "depth"
    before = load_file(folder / WEIGHTS)
    config = load_depth_network(folder).config
    assert config.pixels == 32 * 48
    dataset = WorldDataset(training_worlds, "training", 4)
    batch = DepthSampler(64, clean=True)(dataset, np.random.default_rng(5), torch.device("cpu"))
    known = batch.depth > 0
    assert config.typical_depth == pytest.approx(float(batch.depth[known].median()), rel=0.3)
    canonical = batch.depth / batch.focal[:, None, None] * CANONICAL_FOCAL_PX
    assert config.typical_log == pytest.approx(float(canonical[known].log().median()), abs=0.4)
    train_stages(["depth"], SMOKE, tmp_path, steps=2, worlds=training_worlds)
    after = load_file(folder / WEIGHTS)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    wider = {**vars(SMOKE), "depth": {**SMOKE.depth, "widths": (8, 8, 32)}}
    with pytest.raises(CheckpointError, match="widths"):
        train_stages(["depth"], type(SMOKE)(**wider), tmp_path, steps=1, worlds=training_worlds)


def test_packed_batches_are_the_same_to_half_precision(training_worlds):
    draw = DepthSampler(4)
    batch = draw(WorldDataset(training_worlds, "training", 4), np.random.default_rng(0), torch.device("cpu"))
    again = draw.unpack({name: torch.from_numpy(array) for name, array in draw.pack(batch).items()})
    assert torch.equal(batch.images, again.images)
    torch.testing.assert_close(batch.depth, again.depth, rtol=1e-3, atol=1e-3)
    assert torch.equal(batch.focal, again.focal)
    assert typical_of([batch])["typical_depth"] > 0.2
