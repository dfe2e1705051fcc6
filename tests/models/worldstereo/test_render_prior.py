"""The render prior against samples of the distribution that it assumes."""

import pytest
import torch

from worldstereo_ros.models import WorldStereoTransformer
from worldstereo_ros.models.worldstereo.render_prior import with_render_prior

COVERED_STD, HOLE_STD = 0.4, 0.9
CONTROL = {
    "conv_out_dim": 32, "dim": 32, "ffn_dim": 32, "num_heads": 2, "num_layers": 1, "time_embed_dim": 32,
    "add_channels": 7, "mid_channels": 16, "mask_downsample": 1, "render_prior": [COVERED_STD, HOLE_STD],
}  # fmt: skip


def small_transformer() -> WorldStereoTransformer:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "num_layers": 2, "text_dim": 8}
    return WorldStereoTransformer(**sizes, freq_dim=16, controlnet_cfg=CONTROL).eval()


@pytest.mark.parametrize("level", [0.15, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("hole", "deviation"), [(0, COVERED_STD), (1, HOLE_STD)])
def test_with_render_prior_equals_conditional_mean_of_samples(level: float, hole: int, deviation: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rendered = 0.7
    x = rendered + deviation * torch.randn(400_000, generator=generator)
    noise = torch.randn(x.shape, generator=generator)
    z, v = (1 - level) * x + level * noise, noise - x
    slope = ((z - z.mean()) * (v - v.mean())).mean() / z.var()
    noisy = torch.tensor([0.3, -0.5])
    expected = v.mean() + slope * (noisy - z.mean())
    shape = (1, 1, 1, 1, 2)
    arguments = (torch.full(shape, rendered), torch.full((1, 1, 1, 8, 16), float(hole)), torch.tensor([level]))
    pred = with_render_prior(torch.zeros(shape), noisy.view(shape), *arguments, (COVERED_STD, HOLE_STD))
    torch.testing.assert_close(pred.flatten(), expected, atol=0.02, rtol=0.02)
    # The correction is in standard deviations of the residual.
    correction = with_render_prior(torch.ones(shape), noisy.view(shape), *arguments, (COVERED_STD, HOLE_STD)) - pred
    residual_std = (v - v.mean() - slope * (z - z.mean())).std()
    torch.testing.assert_close(correction.flatten(), residual_std.expand(2), atol=0.02, rtol=0.02)


def test_untrained_model_returns_the_rendering() -> None:
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
        velocity = model(torch.cat((noise, condition), dim=1), torch.tensor([1000.0]), **inputs).sample
        # One step from pure noise to the sample.
        torch.testing.assert_close(noise - velocity, rendered, atol=1e-5, rtol=1e-5)
        backbone = WorldStereoTransformer(
            **{k: v for k, v in model.config.items() if not k.startswith("_") and k != "controlnet_cfg"}
        ).eval()
        backbone.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("controlnet.")})
        plain = backbone(torch.cat((noise, condition), dim=1), torch.tensor([1000.0]), torch.zeros(1, 1, 8)).sample
    assert (noise - plain - rendered).abs().max() > 0.1
