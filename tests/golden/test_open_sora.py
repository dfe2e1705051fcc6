"""STDiT3, the video autoencoder and the flow of Open-Sora 1.2 against numbers of the public code.

`open_sora.safetensors` has inputs and outputs of that code with the weights of `helpers.open_sora.fill`.
"""

import re
from pathlib import Path

import pytest
import torch
from helpers.open_sora import AUTOENCODER, TRANSFORMER, fill
from safetensors.torch import load_file

from worldstereo_ros.models.pointmaps.open_sora_autoencoder import OpenSoraVideoAutoencoder
from worldstereo_ros.models.pointmaps.open_sora_flow import level_shift, sample_flow, sampling_levels, shift_levels
from worldstereo_ros.models.pointmaps.stdit3 import STDiT3

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-5
# Levels are rounded in another order, which moves the sines of timesteps near 1000 by 6e-5.
SAMPLER_TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def golden():
    return load_file(Path(__file__).parent / "open_sora.safetensors")


@pytest.fixture(scope="module")
def transformer():
    return fill(STDiT3(**TRANSFORMER)).eval()


@torch.no_grad()
@pytest.mark.parametrize("case", ["without_text", "with_text", "image_384_512"])
def test_the_transformer_matches(golden, transformer, case):
    names = ("x", "timestep", "fps", "text", "text_mask", case)
    x, timestep, fps, text, mask, expected = (golden[f"transformer.{name}"] for name in names)
    options = {
        "without_text": {},
        "with_text": {"text": text, "text_mask": mask > 0},
        "image_384_512": {"image_size": (384, 512)},
    }[case]
    out = transformer(x, timestep, fps=fps, **options)
    torch.testing.assert_close(out, expected, atol=TOLERANCE, rtol=0)


def test_cases_of_the_transformer_differ(golden):
    """So that none of them passes without the text or the size."""
    plain = golden["transformer.without_text"]
    for other in ("with_text", "image_384_512"):
        assert (golden[f"transformer.{other}"] - plain).abs().max() > 0.1


@torch.no_grad()
def test_the_autoencoder_matches(golden):
    model = fill(OpenSoraVideoAutoencoder(**AUTOENCODER)).eval()
    video = golden["autoencoder.video"].float()
    latents = model.encode(video, frames_at_once=5)
    torch.testing.assert_close(latents, golden["autoencoder.latents"], atol=TOLERANCE, rtol=0)
    decoded = model.decode(golden["autoencoder.latents"], video.shape[2], frames_at_once=7)
    torch.testing.assert_close(decoded, golden["autoencoder.decoded"], atol=TOLERANCE, rtol=0)


def test_shifted_levels_match(golden):
    cases = {name: match for name in golden if (match := re.fullmatch(r"levels\.(\d+)x(\d+)x(\d+)", name))}
    assert cases
    levels = torch.tensor([1000.0, 800, 500, 100, 10]) / 1000
    for name, match in cases.items():
        height, width, frames = (int(n) for n in match.groups())
        latent_frames = 1 if frames == 1 else frames // 17 * 5
        shifted = 1000 * shift_levels(levels, level_shift(height, width, latent_frames))
        torch.testing.assert_close(shifted, golden[name], rtol=1e-6, atol=1e-3)


@torch.no_grad()
def test_the_sampler_matches(golden, transformer):
    levels = sampling_levels(5, 48, 72, latent_frames=5)
    fps = golden["transformer.fps"]
    sampled = sample_flow(lambda z, level: transformer.velocity(z, level, fps), golden["sampler.noise"], levels)
    torch.testing.assert_close(sampled, golden["sampler.sample"], atol=SAMPLER_TOLERANCE, rtol=0)
