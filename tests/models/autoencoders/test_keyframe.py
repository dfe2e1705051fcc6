"""The keyframe autoencoder against diffusers' video autoencoder, frame by frame."""

import pytest
import torch
from helpers.checkpoints import tiny_wan_autoencoder

from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder, flatten_weights, flattened_shape


@pytest.fixture(scope="module")
def wan():
    return tiny_wan_autoencoder()


@pytest.fixture(scope="module")
def autoencoder(wan):
    return KeyframeAutoencoder.from_wan(wan)


@pytest.fixture(scope="module")
def frames():
    return torch.rand(2, 3, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def latent_statistics(wan):
    return (torch.tensor(n).view(1, -1, 1, 1, 1) for n in (wan.config.latents_mean, wan.config.latents_std))


def encode_one_by_one(wan, frames):
    mean, std = latent_statistics(wan)
    modes = [wan.encode(frames[:, :, i : i + 1]).latent_dist.mode() for i in range(frames.shape[2])]
    return (torch.cat(modes, dim=2) - mean) / std


def decode_one_by_one(wan, latents):
    mean, std = latent_statistics(wan)
    return torch.cat([wan.decode(latents[:, :, i : i + 1] * std + mean).sample for i in range(latents.shape[2])], dim=2)


@torch.no_grad()
def test_encode_equals_wan_frame_by_frame(wan, autoencoder, frames):
    expected = encode_one_by_one(wan, frames)
    latents = autoencoder.encode(frames)
    assert latents.shape == (2, 16, 3, 4, 6)
    assert expected.std() > 0.1
    assert (latents - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_decode_equals_wan_frame_by_frame(wan, autoencoder, frames):
    latents = torch.randn(2, 16, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    expected = decode_one_by_one(wan, latents)
    decoded = autoencoder.decode(latents)
    assert decoded.shape == frames.shape
    assert expected.std() > 0.01
    assert (decoded - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_wan_uses_only_the_last_temporal_slice_for_single_frames(wan, frames):
    """The reason why a 2-D network is equivalent: the earlier slices of a kernel get zero padding only."""
    before = encode_one_by_one(wan, frames[:1])
    state = {k: v.clone() for k, v in wan.state_dict().items()}
    for name, tensor in state.items():
        if name.endswith(".weight") and tensor.ndim == 5:
            tensor[:, :, :-1] = 100.0
    changed = type(wan).from_config(wan.config).eval()
    changed.load_state_dict(state)
    torch.testing.assert_close(encode_one_by_one(changed, frames[:1]), before)


@torch.no_grad()
def test_frames_are_independent(autoencoder, frames):
    latents = autoencoder.encode(frames)
    for b in range(2):
        for i in range(3):
            alone = autoencoder.encode(frames[b : b + 1, :, i])
            torch.testing.assert_close(alone[0], latents[b, :, i], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(autoencoder.encode(frames, batch_size=2), latents, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_decode_frames_yields_frames_as_they_are_decoded(autoencoder):
    latents = torch.randn(16, 5, 4, 6, generator=torch.Generator().manual_seed(2))
    calls = []
    handle = autoencoder.decoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        stream = autoencoder.decode_frames(latents, batch_size=2)
        first = next(stream)
        assert len(calls) == 1
        frames = [first, *stream]
        assert len(calls) == 3
    finally:
        handle.remove()
    together = autoencoder.decode(latents[None])[0].transpose(0, 1)
    assert len(frames) == 5
    torch.testing.assert_close(torch.stack(frames), together, atol=1e-5, rtol=1e-4)
    assert torch.stack(frames).abs().max() <= 1


@torch.no_grad()
def test_bfloat16_keeps_latent_statistics_in_float32(wan, autoencoder, frames):
    half = KeyframeAutoencoder.from_wan(torch.nn.Module.to(tiny_wan_autoencoder(), torch.bfloat16))
    assert half.dtype == torch.bfloat16
    latents = half.encode(frames)
    assert latents.dtype == torch.float32
    expected = autoencoder.encode(frames)
    assert (latents - expected).abs().max() < 0.05 * expected.abs().max()


def test_save_pretrained_round_trip(autoencoder, frames, tmp_path):
    autoencoder.save_pretrained(tmp_path)
    again = KeyframeAutoencoder.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again.encode(frames[:1]), autoencoder.encode(frames[:1]))


def test_flattened_shape_equals_shape_of_flattened_weights(wan):
    state = wan.state_dict()
    flattened = flatten_weights(state)
    assert {n: tuple(t.shape) for n, t in flattened.items()} == {
        n: s for n, t in state.items() if (s := flattened_shape(n, tuple(t.shape))) is not None
    }
    assert len(flattened) < len(state)  # without the temporal convolutions
    assert flatten_weights(flattened).keys() == flattened.keys()


def test_wrong_shapes_raise(autoencoder):
    with pytest.raises(ValueError, match=r"frames has shape \(1, 4, 8, 8\)"):
        autoencoder.encode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="frames have size 12x16; height and width must be multiples of 8"):
        autoencoder.encode(torch.zeros(1, 3, 12, 16))
    with pytest.raises(ValueError, match=r"latents has shape \(3, 8, 8\)"):
        autoencoder.decode(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"\(16, F, h, w\) was expected"):
        next(autoencoder.decode_frames(torch.zeros(5, 16, 4, 6)))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"is_residual": True}, "Wan 2.2"), ({"patch_size": 2}, "Wan 2.2"), ({"latents_mean": [0.0]}, "16 numbers each")],
)
def test_unsupported_configurations_raise(change, message):
    with pytest.raises(ValueError, match=message):
        KeyframeAutoencoder(base_dim=8, **change)
