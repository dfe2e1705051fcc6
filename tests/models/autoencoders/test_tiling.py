"""Tiles cover the image once, blend without seams, and one tile is a whole decode."""

import pytest
import torch
from helpers.checkpoints import tiny_wan_autoencoder

from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder
from worldstereo_ros.models.autoencoders.tiling import Tiling, decode_frames_tiled, decode_tiled
from worldstereo_ros.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def autoencoder():
    return KeyframeAutoencoder.from_wan(tiny_wan_autoencoder())


@pytest.mark.parametrize("length", [1, 4, 5, 6, 7, 64, 112])
@pytest.mark.parametrize(("size", "stride"), [(4, 2), (30, 15), (5, 5), (3, 1)])
def test_tiles_cover_every_pixel_and_none_is_superfluous(length, size, stride):
    starts = Tiling((size, size), (stride, stride)).starts(0, length)
    covered = torch.zeros(length, dtype=torch.int64)
    for start in starts:
        covered[start : start + size] += 1
    assert (covered > 0).all()
    assert all(start < length for start in starts)
    assert len(starts) == 1 or starts[-2] + size < length


def test_published_tiles_are_four_by_four():
    tiling = Tiling()
    assert len(tiling.starts(0, 64)) == len(tiling.starts(1, 112)) == 4


@torch.no_grad()
def test_one_tile_is_the_whole_decode(autoencoder):
    latents = torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    tiled = decode_tiled(autoencoder, latents, Tiling((8, 8), (4, 4)))
    torch.testing.assert_close(tiled, autoencoder.decode(latents))


@torch.no_grad()
def test_weights_of_tiles_add_up(autoencoder, monkeypatch):
    """Tiles of one colour give that colour, whatever their weights."""

    def constant(latents):
        return torch.full((len(latents), 3, 8 * latents.shape[2], 8 * latents.shape[3]), 0.25)

    monkeypatch.setattr(autoencoder, "decode_unclamped", constant)
    tiled = decode_tiled(autoencoder, torch.zeros(1, 16, 9, 11), Tiling((4, 6), (2, 5)))
    torch.testing.assert_close(tiled, torch.full((1, 3, 72, 88), 0.25))


@torch.no_grad()
def test_frames_are_decoded_one_by_one(autoencoder):
    latents = torch.randn(16, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    tiling = Tiling((4, 4), (2, 2))
    frames = list(decode_frames_tiled(autoencoder, latents, tiling))
    together = decode_tiled(autoencoder, latents.transpose(0, 1), tiling)
    torch.testing.assert_close(torch.stack(frames), together)
    assert together.abs().max() <= 1


def test_wrong_sizes_are_errors(autoencoder):
    with pytest.raises(InputError, match="stride of"):
        Tiling((4, 4), (5, 4))
    with pytest.raises(InputError, match=r"\(N, 16, h, w\) was expected"):
        decode_tiled(autoencoder, torch.zeros(16, 4, 4), Tiling())
