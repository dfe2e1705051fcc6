import pytest
import torch
from helpers.open_sora import AUTOENCODER, TRANSFORMER, fill
from safetensors.torch import load_file, save_file

from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.models.pointmaps.open_sora_autoencoder import (
    OpenSoraVideoAutoencoder,
    PointmapVideoAutoencoder,
    load_open_sora_autoencoder,
)
from worldstereo_ros.models.pointmaps.open_sora_flow import sample_flow, sampling_levels
from worldstereo_ros.models.pointmaps.published import PublishedPointmaps
from worldstereo_ros.models.pointmaps.stdit3 import STDiT3, load_stdit3
from worldstereo_ros.models.pointmaps.temporal_autoencoder import CausalConv3d
from worldstereo_ros.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
LATENTS = (1, 4, 2, 4, 6)


@pytest.fixture(scope="module")
def transformer():
    return fill(STDiT3(**TRANSFORMER)).eval()


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def rotary_frequencies():
    head_dim = TRANSFORMER["width"] // TRANSFORMER["heads"]
    return 10_000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)


def test_sizes_are_those_of_the_published_weights():
    with torch.device("meta"):
        transformer, autoencoder = STDiT3(), OpenSoraVideoAutoencoder()
    count = sum(p.numel() for p in transformer.parameters())
    assert round(count / 1e6) == 1208
    assert transformer.y_embedder.y_embedding.shape == (300, 4096)
    spatial, temporal = (
        sum(p.numel() for p in part.parameters()) for part in (autoencoder.spatial_vae, autoencoder.temporal_vae)
    )
    assert (round(spatial / 1e6), round(temporal / 1e6)) == (84, 310)
    assert [autoencoder.latent_frames(n) for n in (1, 4, 5, 17, 18, 34, 51)] == [1, 1, 2, 5, 6, 10, 15]


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_are_loaded_and_widened_with_zeros(tmp_path, transformer, suffix):
    tensors = {**weights_of(transformer), "rope.freqs": rotary_frequencies()}
    file = tmp_path / f"model{suffix}"
    save_file(tensors, file) if suffix == ".safetensors" else torch.save(tensors, file)
    loaded, widened = load_stdit3(tmp_path), load_stdit3(file, widened=True)
    x, image, t = torch.randn(LATENTS), torch.randn(LATENTS), torch.tensor([500.0])
    expected = transformer(x, t)
    torch.testing.assert_close(loaded(x, t), expected)
    torch.testing.assert_close(widened(torch.cat((x, image), dim=1), t), expected)
    assert set(weights_of(loaded)) == set(weights_of(transformer))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spatial_blocks.0.attn.rope.weight": torch.ones(2)}, r"1 tensor unknown: spatial_blocks\.0\.attn\.rope"),
        ({"t_block.1.bias": None}, r"1 tensor missing: t_block\.1\.bias"),
        ({"t_block.1.bias": torch.ones(3)}, r"1 tensor of the wrong shape: t_block\.1\.bias is \(3,\)"),
        ({"rope.freqs": torch.ones(6)}, "frequencies"),
        ({"t_block.1.bias": torch.full((288,), torch.nan)}, "not finite"),
        ({"y_embedder.y_embedding": None}, "no STDiT3"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, transformer, change, message):
    tensors = {k: v for k, v in {**weights_of(transformer), **change}.items() if v is not None}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_stdit3(tmp_path)


def test_a_configuration_of_another_kind_is_refused(tmp_path, transformer):
    save_file(weights_of(transformer), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "STDiT3", "input_sq_size": 256}')
    with pytest.raises(CheckpointError, match="input_sq_size is 256; 512"):
        load_stdit3(tmp_path)
    (tmp_path / "config.json").write_text('{"work_pixels": 1e300}')
    with pytest.raises(CheckpointError, match="work_pixels"):
        load_stdit3(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "PixArt"}')
    with pytest.raises(CheckpointError, match="PixArt"):
        load_stdit3(tmp_path)


@torch.no_grad()
def test_chunks_do_not_see_each_other():
    model = fill(OpenSoraVideoAutoencoder(**AUTOENCODER)).eval()
    video = torch.rand(1, 3, 19, 8, 8) * 2 - 1
    other = video.clone()
    other[:, :, 17:] *= -1
    one, two = model.encode(video), model.encode(other)
    assert one.shape[2] == 6
    assert torch.equal(one[:, :, :5], two[:, :, :5])
    assert not torch.equal(one[:, :, 5], two[:, :, 5])
    with pytest.raises(InputError, match="multiples of 8"):
        model.encode(video[..., :7])
    with pytest.raises(InputError, match="for 20 frames"):
        model.decode(torch.zeros(1, 4, 3, 1, 1), 20)


@torch.no_grad()
def test_convolutions_see_no_later_frames():
    layer = CausalConv3d(2, 3)
    x = torch.randn(1, 2, 5, 4, 4)
    changed = x.clone()
    changed[:, :, 3] += 1
    assert (layer(x) != layer(changed)).any(dim=(0, 1, 3, 4)).tolist() == [False, False, False, True, True]
    assert CausalConv3d(2, 3, time_stride=2)(x[:, :, :4]).shape == (1, 3, 2, 4, 4)


@torch.no_grad()
def test_an_autoencoder_of_point_maps_begins_as_that_of_videos(tmp_path):
    video = fill(OpenSoraVideoAutoencoder(**AUTOENCODER)).eval()
    points = PointmapVideoAutoencoder.from_video_autoencoder(video).eval()
    clip = torch.rand(1, 3, 5, 8, 8) * 2 - 1
    torch.testing.assert_close(points.encode(clip), video.encode(clip))
    code, _, _ = points.decode_heads(video.encode(clip), 5)
    torch.testing.assert_close(code.transpose(1, 2), video.decode(video.encode(clip), 5))
    points.set_statistics(torch.tensor([1.0, 2, 3, 4]), torch.tensor([5.0, 6, 7, 8]))
    assert points.get_buffer("shift").flatten().tolist() == [1, 2, 3, 4]
    torch.testing.assert_close(
        points.encode(clip)[:, 0] * 5 + 1, video.encode(clip)[:, 0] * 3.85 - 0.10, atol=1e-5, rtol=1e-5
    )


def test_published_sizes_are_expected_without_a_configuration(tmp_path):
    video = fill(OpenSoraVideoAutoencoder(**AUTOENCODER))
    save_file(weights_of(video), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="wrong shape"):
        load_open_sora_autoencoder(tmp_path)


def test_sampling_ends_at_the_latents():
    """The exact velocity of one target leads to it in any number of steps."""
    target, noise = torch.randn(2, 1, 4, 2, 3, 3)
    for steps in (1, 3):
        levels = sampling_levels(steps, 384, 512, latent_frames=5)
        assert levels[0] == 1
        assert levels[-1] == 0
        torch.testing.assert_close(sample_flow(lambda z, level: target - noise, noise, levels), target)
    with pytest.raises(InputError, match="steps is 0"):
        sampling_levels(0, 384, 512, 5)


def test_weights_for_videos_give_no_point_maps(transformer):
    video = OpenSoraVideoAutoencoder(**AUTOENCODER)
    points = PointmapVideoAutoencoder.from_video_autoencoder(video)
    with pytest.raises(InputError, match="not fine-tuned"):
        PublishedPointmaps(transformer, points, video)


def test_gradients_are_the_same_when_activations_are_recomputed(transformer):
    model = fill(STDiT3(**{**TRANSFORMER, "in_channels": 8}))
    x, found = torch.randn(1, 8, 2, 4, 6), []
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        model.velocity(x, torch.tensor([0.5])).square().mean().backward()
        found.append(model.spatial_blocks[0].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(*found)
    assert found[0].abs().max() > 0


def test_saved_statistics_and_class_are_read_again(tmp_path):
    from worldstereo_ros.models.pointmaps.model import save_part

    points = PointmapVideoAutoencoder.from_video_autoencoder(fill(OpenSoraVideoAutoencoder(**AUTOENCODER)))
    points.set_statistics(torch.tensor([1.0, 2, 3, 4]), torch.tensor([5.0, 6, 7, 8]))
    save_part(tmp_path, points, points.state_dict(), torch.float32)
    loaded = load_open_sora_autoencoder(tmp_path)
    assert isinstance(loaded, PointmapVideoAutoencoder)
    for name, tensor in load_file(tmp_path / "diffusion_pytorch_model.safetensors").items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
