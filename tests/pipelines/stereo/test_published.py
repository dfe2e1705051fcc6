"""The published stereo networks, on tiny random base models of the same classes."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from safetensors.torch import save_file

from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.models.stereo_unets import StereoConditioning, spatial_attentions
from worldstereo_ros.pipelines.stereo.painting import load_painter
from worldstereo_ros.pipelines.stereo.published import StereoPipeline
from worldstereo_ros.pipelines.stereo.settings import parse_published
from worldstereo_ros.pipelines.stereo.warp import WarpedEye
from worldstereo_ros.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTHS, HEADS, TEXT = (64, 64), 2, 12  # two channels in each group of the norms
HEIGHT, WIDTH = 20, 28  # no multiples of what the networks need


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of the two base models."""
    root = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    kinds = {"block_out_channels": WIDTHS, "cross_attention_dim": TEXT, "layers_per_block": 1}
    UNetSpatioTemporalConditionModel(
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        num_attention_heads=HEADS, addition_time_embed_dim=8, projection_class_embeddings_input_dim=24, **kinds,
    ).save_pretrained(root / "svd" / "unet")  # fmt: skip
    AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 32), layers_per_block=1,
    ).save_pretrained(root / "svd" / "vae")  # fmt: skip
    EulerDiscreteScheduler(
        prediction_type="v_prediction", use_karras_sigmas=True, timestep_type="continuous",
        timestep_spacing="leading", sigma_min=0.002, sigma_max=700.0,
    ).save_pretrained(root / "svd" / "scheduler")  # fmt: skip
    UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=HEADS, use_linear_projection=True, **kinds,
    ).save_pretrained(root / "sd21" / "unet")  # fmt: skip
    return root / "svd", root / "sd21"


@pytest.fixture(scope="module")
def pipeline(folders):
    """Its parts are untrained; tests leave it as it is."""
    return StereoPipeline.from_pretrained(folders[0], refiner=folders[1], steps=2)


def clip(frames: int = 2):
    generator = torch.Generator().manual_seed(1)
    reference, filled = (torch.rand(frames, 3, HEIGHT, WIDTH, generator=generator) * 2 - 1 for _ in range(2))
    painted = torch.zeros(frames, 1, HEIGHT, WIDTH)
    painted[..., 4:12, 6:10] = 1
    return reference, filled, painted


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def test_the_widened_input_changes_nothing_until_trained(folders, pipeline):
    net = pipeline.unets.denoiser
    plain = UNetSpatioTemporalConditionModel.from_pretrained(folders[0] / "unet").eval()
    assert (plain.config.in_channels, net.config.in_channels) == (8, 9)
    x = torch.randn(1, 2, 9, 8, 8)
    text, ids = torch.zeros(1, 1, TEXT), torch.zeros(1, 3)
    with torch.no_grad():  # outside of `reference`, attention is SVD's own
        expected = plain(x[:, :, :8], 1.0, text, ids).sample
        assert torch.allclose(net(x, 1.0, text, ids).sample, expected, atol=1e-5)


def test_the_reference_reaches_the_denoiser(pipeline):
    reference, filled, painted = clip()
    made = pipeline.generate(reference, filled, painted)
    assert torch.isfinite(made).all()
    assert difference(made, pipeline.generate(reference, filled, painted)) == 0
    assert difference(made, pipeline.generate(-reference, filled, painted)) > 1e-4
    assert len(pipeline.unets.conditioning.own_share) == len(spatial_attentions(pipeline.unets.refiner)) > 0


def test_known_pixels_never_pass_the_autoencoder(pipeline):
    reference, filled, painted = clip()
    made = pipeline.generate(reference, filled, painted)
    known = (painted < 0.5).expand_as(made)
    assert torch.equal(made[known], filled[known])
    assert difference(made[~known], filled[~known]) > 0.01


def test_deviation_strength_is_added_to_the_time_embedding(pipeline):
    reference, filled, painted = clip(1)
    before = pipeline.generate(reference, filled, painted)
    for name in ("denoiser_deviation", "refiner_deviation"):
        weight = getattr(pipeline.unets.conditioning, name).mlp[2].weight
        assert not weight.any()
        weight.normal_(std=0.5)
        assert difference(before, pipeline.generate(reference, filled, painted)) > 1e-4
        weight.zero_()


def test_neighbours_are_mixed_in_by_a_learnt_share():
    conditioning = StereoConditioning(2, 8, 8).requires_grad_(False)
    conditioning.own_share[1] = 0.25
    features = torch.arange(4.0).view(1, 4, 1, 1)
    expected = [0.75, 4 / 3, 5 / 3, 2.25]
    assert conditioning.interact(0, features).flatten().tolist() == pytest.approx(expected)
    assert conditioning.interact(1, features)[0, 0].item() == pytest.approx(0.75 * 1.5)
    alone = features[:, 2:3]
    assert torch.equal(conditioning.interact(0, alone), alone)


@pytest.mark.parametrize("left", [False, True])
def test_it_paints_frame_by_frame_by_the_option_of_the_command(folders, left):
    painter = load_painter(f"svd:{folders[0]},refiner:{folders[1]}")
    painter.steps, painter.window = 1, 2
    random = np.random.default_rng(0)
    image, eye = random.integers(0, 255, (2, HEIGHT, WIDTH, 3), np.uint8)
    painted = np.zeros((HEIGHT, WIDTH), bool)
    painted[5:15, 3:9] = True
    warped = WarpedEye(eye, np.zeros((HEIGHT, WIDTH), np.float32))
    first = painter.paint(image, warped, painted, ~painted, left=left)
    second = painter.paint(image[::-1], warped, painted, ~painted, left=left)
    for made in (first, second):
        assert np.array_equal(made[~painted], eye[~painted])
        assert (made[painted] != eye[painted]).any()
    painter.restart()
    assert painter.paint(image, warped, np.zeros_like(painted), ~painted) is eye


def test_trained_parts_are_loaded(folders, pipeline, tmp_path, caplog):
    svd = tmp_path / "svd"
    svd.mkdir()
    for part in ("unet", "vae", "scheduler"):
        (svd / part).symlink_to(folders[0] / part)
    (svd / "stereo").mkdir()
    state = {name: torch.full_like(x, 0.125) for name, x in pipeline.unets.conditioning.state_dict().items()}
    save_file(state, svd / "stereo" / "diffusion_pytorch_model.safetensors")
    trained = StereoPipeline.from_pretrained(svd, refiner=folders[1])
    assert trained.trained
    assert not caplog.records
    StereoPipeline.from_pretrained(folders[0], refiner=folders[1])
    assert "of no use until they are trained" in caplog.text
    assert not pipeline.trained
    assert (trained.unets.conditioning.own_share == 0.125).all()


def test_what_is_missing_is_named_at_once(folders, tmp_path):
    with pytest.raises(InputError) as caught:
        StereoPipeline.from_pretrained(tmp_path, refiner=folders[1])
    for part in (
        "unet/config.json",
        "vae/config.json",
        "scheduler_config.json",
        "unet/diffusion_pytorch_model.safeten",
    ):
        assert part in str(caught.value)
    assert "sd21" not in str(caught.value)
    with pytest.raises(CheckpointError, match="UNet2DConditionModel was expected"):
        StereoPipeline.from_pretrained(folders[0], refiner=folders[0])
    with pytest.raises(InputError, match="svd:PATH,refiner:PATH"):
        parse_published("svd:somewhere")
    assert parse_published("small") is None


def test_a_refiner_of_another_size_is_refused(folders, tmp_path):
    UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2, block_out_channels=(32, 64), cross_attention_dim=TEXT,
        layers_per_block=1,
    ).save_pretrained(tmp_path / "unet")  # fmt: skip
    with pytest.raises(CheckpointError, match="does not fit the denoiser"):
        StereoPipeline.from_pretrained(folders[0], refiner=tmp_path)


def test_an_odd_scheduler_is_refused(folders, tmp_path):
    for part in ("unet", "vae"):
        (tmp_path / part).symlink_to(folders[0] / part)
    config = json.loads((folders[0] / "scheduler" / "scheduler_config.json").read_text())
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({**config, "beta_schedule": "odd"}))
    with pytest.raises(CheckpointError, match="no valid scheduler"):
        StereoPipeline.from_pretrained(tmp_path, refiner=folders[1])
