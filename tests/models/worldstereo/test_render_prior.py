"""What a rendering says about the velocity, against samples of the distribution that it stands for."""

import pytest
import torch

from worldstereo_ros.models import WorldStereoTransformer
from worldstereo_ros.models.worldstereo.render_prior import with_render_prior

COVERED, MISSING = 0.4, 0.9
CONTROL = {
    "conv_out_dim": 32, "dim": 32, "ffn_dim": 32, "num_heads": 2, "num_layers": 1, "time_embed_dim": 32,
    "add_channels": 7, "mid_channels": 16, "mask_downsample": 1, "render_prior": [COVERED, MISSING],
}  # fmt: skip


def small_transformer() -> WorldStereoTransformer:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "num_layers": 2, "text_dim": 8}
    return WorldStereoTransformer(**sizes, freq_dim=16, controlnet_cfg=CONTROL).eval()


@pytest.mark.parametrize("level", [0.15, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("hole", "deviation"), [(0, COVERED), (1, MISSING)])
def test_it_is_the_mean_that_samples_have(level: float, hole: int, deviation: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rendered = 0.7
    x = rendered + deviation * torch.randn(400_000, generator=generator)
    noise = torch.randn(x.shape, generator=generator)
    z, v = (1 - level) * x + level * noise, noise - x
    slope = ((z - z.mean()) * (v - v.mean())).mean() / z.var()
    at = torch.tensor([0.3, -0.5])
    expected = v.mean() + slope * (at - z.mean())
    shape = (1, 1, 1, 1, 2)
    arguments = (torch.full(shape, rendered), torch.full((1, 1, 1, 8, 16), float(hole)), torch.tensor([level]))
    said = with_render_prior(torch.zeros(shape), at.view(shape), *arguments, (COVERED, MISSING))
    torch.testing.assert_close(said.flatten(), expected, atol=0.02, rtol=0.02)
    # What the network adds is counted in deviations of what is left open.
    added = with_render_prior(torch.ones(shape), at.view(shape), *arguments, (COVERED, MISSING)) - said
    left = (v - v.mean() - slope * (z - z.mean())).std()
    torch.testing.assert_close(added.flatten(), left.expand(2), atol=0.02, rtol=0.02)


def test_an_untrained_branch_shows_the_rendering() -> None:
    model = small_transformer()
    generator = torch.Generator().manual_seed(1)
    noise, condition, rendered = (torch.randn(1, c, 3, 4, 6, generator=generator) for c in (16, 20, 16))
    inputs = {
        "encoder_hidden_states": torch.zeros(1, 1, 8),
        "render_latent": rendered,
        "render_mask": torch.zeros(1, 1, 3, 32, 48),
        "camera_embedding": torch.randn(1, 6, 3, 32, 48, generator=generator),
    }
    with torch.no_grad():
        said = model(torch.cat((noise, condition), dim=1), torch.tensor([1000.0]), **inputs).sample
        # From pure noise to the end in one step.
        torch.testing.assert_close(noise - said, rendered, atol=1e-5, rtol=1e-5)
        alone = WorldStereoTransformer(
            **{k: v for k, v in model.config.items() if not k.startswith("_") and k != "controlnet_cfg"}
        ).eval()
        alone.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("controlnet.")})
        plain = alone(torch.cat((noise, condition), dim=1), torch.tensor([1000.0]), torch.zeros(1, 1, 8)).sample
    assert (noise - plain - rendered).abs().max() > 0.1
