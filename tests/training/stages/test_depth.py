"""The training stage of the depth network: sampling of views, loss, and a short training."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.training_runs import SMOKE
from safetensors.torch import load_file

from worldstereo_ros.depth.familiarity import Familiarity
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.models import CheckpointError
from worldstereo_ros.models.depth_network import CANONICAL_FOCAL_PX, DepthMaps, load_depth_network
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.depth_sampling import DepthBatch, DepthSampler, augment_appearance, sample_view
from worldstereo_ros.training.data.world_files import RenderedWorld
from worldstereo_ros.training.run_folder import RunFolder
from worldstereo_ros.training.runner import make_stage, train_stages
from worldstereo_ros.training.stages.depth import depth_loss, typical_of

WEIGHTS = "diffusion_pytorch_model.safetensors"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path, SMOKE, Accelerator(cpu=True))


def test_sample_view_gives_depth_of_the_new_camera():
    """On a flat wall, whose depth is known in closed form for every camera."""
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
        _, depth, focal, centre = sample_view(world, random)
        rows, columns = np.mgrid[:height, :width]
        points = np.stack([(columns - centre[0]) / focal * depth, (rows - centre[1]) / focal * depth, depth], -1)
        # For every rotation of the camera, the points lie in one plane at three metres.
        normal = np.linalg.svd((points - points.mean((0, 1))).reshape(-1, 3), full_matrices=False)[2][-1]
        off = points @ normal
        np.testing.assert_allclose(np.abs(off), 3.0, atol=0.02)
        turned += abs(normal[2]) < 0.999
    assert turned > 10


def test_clean_view_is_unchanged(training_worlds):
    world = WorldDataset(training_worlds, "training", 4).sample_worlds(1, np.random.default_rng(0))[0]
    image, depth, focal, centre = sample_view(world, np.random.default_rng(1), clean=True)
    index = [i for i in range(len(world.image)) if np.array_equal(world.image[i].permute(1, 2, 0), image)]
    assert index
    np.testing.assert_array_equal(depth, world.depth[index[0]].float())
    assert focal == pytest.approx(world.camera.fx)
    np.testing.assert_allclose(centre, (world.camera.cx, world.camera.cy), atol=1e-5)


def test_augment_appearance_keeps_the_range_and_depends_on_the_seed():
    images = torch.rand(16, 3, 32, 48)
    first, second = (augment_appearance(images.clone(), np.random.default_rng(seed)) for seed in (1, 2))
    for out in (first, second):
        assert out.shape == images.shape
        assert out.min() >= -1
        assert out.max() <= 1
    assert (first - second).abs().mean() > 0.05
    torch.testing.assert_close(first, augment_appearance(images.clone(), np.random.default_rng(1)))


def test_depth_loss_is_minimal_at_the_target():
    depth = torch.rand(2, 32, 48) * 3 + 1
    depth[:, :8] = 0
    batch = DepthBatch(torch.zeros(2, 3, 32, 48, dtype=torch.uint8), depth, torch.full((2,), 80.0), torch.zeros(2, 2))
    flat = torch.zeros_like(depth)
    exact = DepthMaps(batch.log_depth(), flat, torch.where(depth > 0, 9.0, -9.0))
    best, parts = depth_loss(exact, batch)
    assert parts["absolute"] == pytest.approx(0, abs=1e-6)
    assert parts["edges"] == pytest.approx(0, abs=1e-6)
    for wrong in (
        DepthMaps(batch.log_depth() + 0.2, flat, exact.hit),
        DepthMaps(batch.log_depth() * 1.1, flat, exact.hit),
        DepthMaps(batch.log_depth(), flat + 1, exact.hit),
        DepthMaps(batch.log_depth(), flat, -exact.hit),
    ):
        assert depth_loss(wrong, batch)[0] > best + 1e-3
    # Pixels without a surface have no depth loss.
    off_surface = batch.log_depth().clone()
    off_surface[:, :8] += 5
    assert depth_loss(DepthMaps(off_surface, flat, exact.hit), batch)[0] == pytest.approx(float(best), abs=1e-5)


def test_loss_decreases_on_a_fixed_batch(run, training_worlds):
    stage = make_stage(
        "depth", run, WorldDataset(training_worlds, "training", 4), WorldDataset(training_worlds, "validation", 2)
    )
    try:
        stage.start_step()
        group = stage.parameter_groups[0]
        optimizer = torch.optim.AdamW(group.parameters, lr=5e-3)
        errors = []
        for _ in range(60):
            loss, figures = group.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            errors.append(figures["absolute"])
        assert np.mean(errors[-5:]) < 0.6 * errors[0]
        assert errors[0] > 0.05
    finally:
        stage.close()


def test_stage_trains_resumes_and_checks_its_configuration(tmp_path, training_worlds):
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
    familiarity = Familiarity.from_config(config.familiar)
    assert np.mean([familiarity(image.permute(1, 2, 0).numpy()) for image in batch.images]) > 0.5
    assert familiarity(np.zeros((32, 48, 3), np.uint8)) == 0
    train_stages(["depth"], SMOKE, tmp_path, steps=2, worlds=training_worlds)
    assert load_depth_network(folder).config.familiar == config.familiar
    after = load_file(folder / WEIGHTS)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    wider = {**vars(SMOKE), "depth": {**SMOKE.depth, "widths": (8, 8, 32)}}
    with pytest.raises(CheckpointError, match="widths"):
        train_stages(["depth"], type(SMOKE)(**wider), tmp_path, steps=1, worlds=training_worlds)


def test_packed_batch_round_trip_in_half_precision(training_worlds):
    sampler = DepthSampler(4)
    batch = sampler(WorldDataset(training_worlds, "training", 4), np.random.default_rng(0), torch.device("cpu"))
    again = sampler.unpack({name: torch.from_numpy(array) for name, array in sampler.pack(batch).items()})
    assert torch.equal(batch.images, again.images)
    torch.testing.assert_close(batch.depth, again.depth, rtol=1e-3, atol=1e-3)
    assert torch.equal(batch.focal, again.focal)
    assert typical_of([batch])["typical_depth"] > 0.2
