import pytest
import torch

from worldstereo_ros.models.factorised_transformer import (
    FactorisedBlock,
    FactorisedTransformer,
    rotary_grid,
    rotary_positions,
    sine_positions,
)
from worldstereo_ros.utils.errors import InputError

WIDTH = 32


def tokens(frames=3, places=4):
    return torch.randn(2, frames, places, WIDTH, generator=torch.Generator().manual_seed(1))


def modulation():
    return torch.randn(2, 6 * WIDTH, generator=torch.Generator().manual_seed(2))


def block(**kwargs):
    torch.manual_seed(0)
    return FactorisedBlock(WIDTH, 2, **kwargs).eval()


@torch.no_grad()
@pytest.mark.parametrize("temporal", [False, True])
def test_blocks_attend_along_one_axis_only(temporal):
    x, layer = tokens(), block(temporal=temporal)
    changed = x.clone()
    changed[:, 1, 2] += torch.randn(WIDTH)
    differs = (layer(x, modulation()) - layer(changed, modulation())).abs().amax((0, 3)) > 1e-6
    expected = torch.zeros(3, 4, dtype=torch.bool)
    if temporal:
        expected[:, 2] = True
    else:
        expected[1] = True
    assert torch.equal(differs, expected)


@torch.no_grad()
@pytest.mark.parametrize("temporal", [False, True])
@pytest.mark.parametrize("index", [torch.tensor([0, 3]), torch.tensor([[0, 3], [3, 0]])])
def test_a_subset_is_updated_as_in_the_whole(temporal, index):
    x, layer = tokens(), block(temporal=temporal)
    whole, part = layer(x, modulation()), layer(x, modulation(), query_index=index)
    torch.testing.assert_close(part[:, :, [0, 3]], whole[:, :, [0, 3]])
    assert torch.equal(part[:, :, 1:3], x[:, :, 1:3])


@torch.no_grad()
def test_extra_keys_are_attended_to_and_do_not_become_tokens():
    x, layer = tokens(), block()
    extra = torch.randn(2, 3, 5, WIDTH)
    rotary, beside = rotary_grid(2, 2, WIDTH // 2, "cpu"), rotary_grid(1, 5, WIDTH // 2, "cpu", first_column=2)
    with_extra = layer(x, modulation(), rotary=rotary, extra_keys=extra, extra_rotary=beside)
    assert with_extra.shape == x.shape
    assert not torch.allclose(with_extra, layer(x, modulation(), rotary=rotary))
    with pytest.raises(InputError, match="temporal"):
        block(temporal=True)(x, modulation(), extra_keys=extra)
    with pytest.raises(InputError, match="extra keys"):
        layer(x, modulation(), extra_keys=extra[:, :2])
    with pytest.raises(InputError, match="modulation"):
        layer(x, modulation()[:, 1:])


def test_rotary_positions_are_relative():
    q, k = torch.randn(2, 1, 1, 1, 8)

    def score(a, b):
        from worldstereo_ros.models.worldstereo.rotary import apply_rotary_emb

        turned = [apply_rotary_emb(t, rotary_positions(torch.tensor([p]), 8)) for t, p in ((q, a), (k, b))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(3.0, 1.0), score(12.0, 10.0))
    assert sine_positions(2, 3, 16, "cpu").unique(dim=0).shape == (6, 16)


def test_names_are_those_of_stdit3():
    model = FactorisedTransformer(width=32, heads=2, depth=1, text_dim=8, text_length=3)
    names = set(model.state_dict())
    block_names = {
        "attn.qkv.weight", "attn.qkv.bias", "attn.q_norm.weight", "attn.k_norm.weight", "attn.proj.weight",
        "attn.proj.bias", "cross_attn.q_linear.weight", "cross_attn.q_linear.bias", "cross_attn.kv_linear.weight",
        "cross_attn.kv_linear.bias", "cross_attn.proj.weight", "cross_attn.proj.bias", "mlp.fc1.weight", "mlp.fc1.bias",
        "mlp.fc2.weight", "mlp.fc2.bias", "scale_shift_table",
    }  # fmt: skip
    rest = {
        "x_embedder.proj.weight", "x_embedder.proj.bias", "t_block.1.weight", "t_block.1.bias",
        "final_layer.linear.weight", "final_layer.linear.bias", "final_layer.scale_shift_table",
        "y_embedder.y_embedding", "y_embedder.y_proj.fc1.weight", "y_embedder.y_proj.fc1.bias",
        "y_embedder.y_proj.fc2.weight", "y_embedder.y_proj.fc2.bias",
        *(f"{e}.mlp.{i}.{p}" for e in ("t_embedder", "fps_embedder") for i in (0, 2) for p in ("weight", "bias")),
    }  # fmt: skip
    blocks = {f"{kind}_blocks.0.{name}" for kind in ("spatial", "temporal") for name in block_names}
    assert names == rest | blocks


def test_a_video_keeps_its_size_and_begins_at_zero():
    model = FactorisedTransformer(3, 5, width=32, heads=2, depth=1, text_dim=None, fps=False)
    x = torch.randn(2, 3, 4, 6, 8)
    out = model(x, torch.tensor([1000.0, 10.0]))
    assert out.shape == (2, 5, 4, 6, 8)
    assert not out.any()
    with pytest.raises(InputError, match="multiples"):
        model(x[..., :7], torch.ones(2))


def test_patches_are_put_back_where_they_were():
    model = FactorisedTransformer(3, 3, width=32, heads=2, depth=1, text_dim=None, fps=False)
    x = torch.arange(3 * 2 * 4 * 6.0).view(1, 3, 2, 4, 6)
    model.x_embedder.proj.weight.data = torch.eye(12).view(12, 3, 1, 2, 2)
    model.x_embedder.proj.bias.data = torch.zeros(12)
    patches = torch.nn.functional.conv3d(x, torch.eye(12).view(12, 3, 1, 2, 2), stride=(1, 2, 2))
    flat = patches.flatten(3).permute(0, 2, 3, 1).unflatten(-1, (3, 4)).transpose(-1, -2).flatten(-2)
    torch.testing.assert_close(model.unpatch(flat, x.shape[2:]), x)
