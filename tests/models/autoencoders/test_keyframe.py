"""The keyframe autoencoder against diffusers' video autoencoder, frame by frame."""

import pytest
import torch
from helpers.checkpoints import tiny_wan_autoencoder

from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder, flatten_weights, flattened_shape


@pytest.fixture(scope="module")
def wan():
    return tiny_wan_autoencoder()


@pytest.fixture(scope="module")
def flat(wan):
    return KeyframeAutoencoder.from_wan(wan)


@pytest.fixture(scope="module")
def frames():
    return torch.rand(2, 3, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def statistics(wan):
    return (torch.tensor(n).view(1, -1, 1, 1, 1) for n in (wan.config.latents_mean, wan.config.latents_std))


def encode_one_by_one(wan, frames):
    mean, std = statistics(wan)
    modes = [wan.encode(frames[:, :, i : i + 1]).latent_dist.mode() for i in range(frames.shape[2])]
    return (torch.cat(modes, dim=2) - mean) / std


def decode_one_by_one(wan, latents):
    mean, std = statistics(wan)
    return torch.cat([wan.decode(latents[:, :, i : i + 1] * std + mean).sample for i in range(latents.shape[2])], dim=2)


@torch.no_grad()
def test_encode_equals_the_video_autoencoder(wan, flat, frames):
    expected = encode_one_by_one(wan, frames)
    latents = flat.encode(frames)
    assert latents.shape == (2, 16, 3, 4, 6)
    assert expected.std() > 0.1
    assert (latents - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_decode_equals_the_video_autoencoder(wan, flat, frames):
    latents = torch.randn(2, 16, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    expected = decode_one_by_one(wan, latents)
    decoded = flat.decode(latents)
    assert decoded.shape == frames.shape
    assert expected.std() > 0.01
    assert (decoded - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_other_slices_of_a_kernel_are_never_used(wan, frames):
    """The reason why it may be flat: one frame meets zeros wherever the earlier slices look."""
    before = encode_one_by_one(wan, frames[:1])
    state = {k: v.clone() for k, v in wan.state_dict().items()}
    for name, tensor in state.items():
        if name.endswith(".weight") and tensor.ndim == 5:
            tensor[:, :, :-1] = 100.0
    changed = type(wan).from_config(wan.config).eval()
    changed.load_state_dict(state)
    torch.testing.assert_close(encode_one_by_one(changed, frames[:1]), before)


@torch.no_grad()
def test_frames_do_not_mix(flat, frames):
    latents = flat.encode(frames)
    for b in range(2):
        for i in range(3):
            alone = flat.encode(frames[b : b + 1, :, i])
            torch.testing.assert_close(alone[0], latents[b, :, i], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(flat.encode(frames, batch_size=2), latents, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_frames_come_as_soon_as_they_are_decoded(flat):
    latents = torch.randn(16, 5, 4, 6, generator=torch.Generator().manual_seed(2))
    calls = []
    handle = flat.decoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        stream = flat.decode_frames(latents, batch_size=2)
        first = next(stream)
        assert len(calls) == 1
        pictures = [first, *stream]
        assert len(calls) == 3
    finally:
        handle.remove()
    together = flat.decode(latents[None])[0].transpose(0, 1)
    assert len(pictures) == 5
    torch.testing.assert_close(torch.stack(pictures), together, atol=1e-5, rtol=1e-4)
    assert torch.stack(pictures).abs().max() <= 1


@torch.no_grad()
def test_half_precision_keeps_the_statistics(wan, flat, frames):
    half = KeyframeAutoencoder.from_wan(torch.nn.Module.to(tiny_wan_autoencoder(), torch.bfloat16))
    assert half.dtype == torch.bfloat16
    latents = half.encode(frames)
    assert latents.dtype == torch.float32
    expected = flat.encode(frames)
    assert (latents - expected).abs().max() < 0.05 * expected.abs().max()


def test_its_own_file_is_flat(flat, frames, tmp_path):
    flat.save_pretrained(tmp_path)
    again = KeyframeAutoencoder.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again.encode(frames[:1]), flat.encode(frames[:1]))


def test_shapes_are_told_before_reading(wan):
    state = wan.state_dict()
    flattened = flatten_weights(state)
    assert {n: tuple(t.shape) for n, t in flattened.items()} == {
        n: s for n, t in state.items() if (s := flattened_shape(n, tuple(t.shape))) is not None
    }
    assert len(flattened) < len(state)  # the temporal resamplers are gone
    assert flatten_weights(flattened).keys() == flattened.keys()


def test_wrong_shapes_get_a_sentence(flat):
    with pytest.raises(ValueError, match=r"frames has shape \(1, 4, 8, 8\)"):
        flat.encode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="frames have size 12x16; height and width must be multiples of 8"):
        flat.encode(torch.zeros(1, 3, 12, 16))
    with pytest.raises(ValueError, match=r"latents has shape \(3, 8, 8\)"):
        flat.decode(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"\(16, F, h, w\) was expected"):
        next(flat.decode_frames(torch.zeros(5, 16, 4, 6)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"is_residual": True}, "Wan 2.2"), ({"patch_size": 2}, "Wan 2.2"), ({"latents_mean": [0.0]}, "16 numbers each")],
)
def test_other_autoencoders_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        KeyframeAutoencoder(base_dim=8, **change)
