"""The full-size benchmark runs at toy size, counts operations as torch does, and its switches change no result."""

import json

import bench_full_size
import pytest
import torch
from full_size import TOY, Float8Linear, build, count_flops, fuse_projections, make_inputs, use_float8
from helpers.checkpoints import CONTROL, tiny_transformer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return build(TOY, CPU, torch.float32)[0]


@pytest.mark.parametrize("references", [0, 3])
@pytest.mark.parametrize("update", [True, False])
@torch.no_grad()
def test_operations_are_counted_as_torch_counts_them(references, update):
    model = tiny_transformer(control={**CONTROL, "update_ref": update})
    inputs = make_inputs(model, 4, 64, 96, references, CPU, torch.float32)
    # Of the ways to attend, torch counts the plain one on the CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(**inputs)
    counted = count_flops(model.config, 4, 64, 96, references)
    assert sum(counted.values()) == counter.get_total_flops()
    assert all(count > 0 for count in counted.values())


def test_operations_at_full_size():
    from types import SimpleNamespace

    from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer

    with torch.device("meta"):
        small = WorldStereoTransformer(num_layers=1, num_attention_heads=1, controlnet_cfg=None)
    config = {**small.config, "num_layers": 40, "num_attention_heads": 40, **bench_full_size.FULL.backbone}
    flops = count_flops(SimpleNamespace(**{**config, "controlnet_cfg": bench_full_size.FULL.control}), 21, 480, 768, 0)
    tokens, width = 21 * 30 * 48, 5120
    assert flops["self-attention"] == 40 * 4 * tokens * tokens * width
    assert flops["feed-forward"] == 40 * 4 * tokens * width * 13824
    assert 1.5e15 < sum(flops.values()) < 2.5e15


@torch.no_grad()
def test_fused_projections_compute_the_same(model):
    inputs = make_inputs(model, 4, 64, 96, 2, CPU, torch.float32)
    want = model(**inputs).sample
    fused = build(TOY, CPU, torch.float32)[0]
    before = sum(p.numel() for p in fused.parameters())
    fuse_projections(fused)
    assert sum(p.numel() for p in fused.parameters()) == before
    assert not isinstance(fused.blocks[0].attn1.to_q, torch.nn.Linear)
    torch.testing.assert_close(fused(**inputs).sample, want, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_float8_is_near():
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48)
    with torch.no_grad():
        linear.weight[7] *= 1000  # a row of its own scale must not cost the others their precision
    x = torch.randn(2, 5, 64)
    try:
        got = Float8Linear(linear)(x)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"this torch has no float8 product on the CPU: {str(error).splitlines()[0]}")
    want = linear(x)
    error = (got - want).abs().amax((0, 1)) / want.abs().amax((0, 1))
    assert error.max() < 0.08
    assert error.max() > 0


def test_float8_takes_the_blocks_and_leaves_the_rest():
    model = build(TOY, CPU, torch.float32)[0]
    count = use_float8(model, "scaled_mm")
    made = [name for name, module in model.named_modules() if isinstance(module, Float8Linear)]
    assert len(made) == count > 0
    assert all("blocks." in name for name in made)
    assert isinstance(model.proj_out, torch.nn.Linear)
    assert all(isinstance(block.norm1.linear, torch.nn.Linear) for block in model.controlnet.controlnet_blocks)


def test_the_script_runs_and_writes_its_figures(tmp_path, capsys):
    file = tmp_path / "figures.json"
    common = ["--device", "cpu", "--size", "toy", "--threads", "2", "--json", str(file)]
    bench_full_size.main([*common, "--references", "0", "4", "--try", "plain", "--try", "fused projections"])
    printed = capsys.readouterr().out
    assert "says nothing about speed" in printed
    report = json.loads(file.read_text())
    assert set(report["runs"]) == {"plain", "fused projections"}
    for made in report["runs"].values():
        assert made["4"]["tflop_per_step"] > made["0"]["tflop_per_step"]
        assert set(made["0"]["seconds"]) == {"encode images", "one step", "decode images", "clip"}
        assert made["0"]["finite"] is True
        assert made["0"]["tflops"] > 0

    bench_full_size.main([*common, "--references", "0", "--try", "cuda graph", "--try", "autoencoder in a loop"])
    report = json.loads(file.read_text())
    assert "CUDA" in report["runs"]["cuda graph"]["failed"]
    assert "0" in report["runs"]["autoencoder in a loop"]
    with pytest.raises(SystemExit, match="'faster' is unknown"):
        bench_full_size.main([*common, "--try", "faster"])
    with pytest.raises(SystemExit, match="No run was possible"):
        bench_full_size.main([*common, "--cuda-graph"])


def test_backbone_computes_what_that_of_diffusers_computes_with_the_same_weights(tmp_path, capsys):
    bench_full_size.main(["--peer", "--size", "toy", "--device", "cpu", "--json", str(tmp_path / "peer.json")])
    peer = json.loads((tmp_path / "peer.json").read_text())["peer"]
    assert peer["compared"]["difference"] < 1e-5
    assert peer["ours"]["seconds"] > 0
    assert peer["compared"]["ratio"] == pytest.approx(peer["ours"]["seconds"] / peer["diffusers"]["seconds"])
    assert "ratio" in capsys.readouterr().out
