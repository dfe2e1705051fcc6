"""Files in Wan's original layout and LoRA files: what is read, and what is refused with which message."""

import json
import re

import pytest
import torch
from helpers.anyrecon_files import lora_factors, wan_transformer_names, write_anyrecon
from helpers.checkpoints import edit_tensors, tiny_wan_autoencoder
from safetensors.torch import load_file, save_file

from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder
from worldstereo_ros.models.checkpoints.lora import merge, open_lora, save_lora
from worldstereo_ros.models.checkpoints.tensor_files import open_tensors
from worldstereo_ros.models.checkpoints.wan_layout import transformer_name
from worldstereo_ros.models.checkpoints.wan_loading import (
    load_wan_autoencoder,
    load_wan_transformer,
    open_wan_transformer,
)
from worldstereo_ros.models.checkpoints.weights import CheckpointError

pytestmark = pytest.mark.usefixtures("one_thread")
SHARD = "diffusion_pytorch_model-00001-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path):
    return write_anyrecon(tmp_path / "wan")


def fails(call, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


# --- the transformer ---


def test_every_original_name_has_one_name_of_ours():
    names = wan_transformer_names()
    assert len({transformer_name(name) for name in names}) == len(names)
    for stranger in (
        "blocks.0.self_attn.x.weight",
        "blocks.0.norm1.weight",
        "head.weight",
        "q",
        "blocks.0.modulation.x",
    ):
        assert transformer_name(stranger) is None


def test_shards_need_no_index_and_one_shard_stands_for_all(folder):
    whole = open_wan_transformer(folder)
    assert open_wan_transformer(folder / SHARD).names == whole.names
    weight_map = {n: f.name for f in sorted(folder.glob("*.safetensors")) for n in load_file(f)}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert open_wan_transformer(folder).names == whole.names


def test_all_formats_give_the_same_network(folder, tmp_path):
    state = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    torch.save(state, tmp_path / "model.pth")
    torch.save({"state_dict": state}, tmp_path / "wrapped.ckpt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "one.safetensors")
    expected = load_wan_transformer(open_wan_transformer(folder)).state_dict()
    for name in ("model.pth", "wrapped.ckpt", "old.pt", "one.safetensors"):
        files = open_wan_transformer(tmp_path / name, config_file=folder / "config.json")
        actual = load_wan_transformer(files).state_dict()
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], expected[key]) for key in expected), name


def test_a_missing_shard_is_named(folder):
    (folder / SHARD).unlink()
    fails(lambda: open_wan_transformer(folder), f"lacks 1 of 2 files: {SHARD}")


def test_one_unknown_tensor_is_an_error(folder):
    edit_tensors(folder / SHARD, lambda tensors: tensors.update({"blocks.0.self_attn.extra.weight": torch.zeros(2)}))
    fails(lambda: open_wan_transformer(folder), "has 1 tensor that Wan's .* blocks.0.self_attn.extra.weight")


def test_one_missing_tensor_is_an_error(folder):
    edit_tensors(folder / SHARD, lambda tensors: tensors.pop("blocks.1.modulation", None))
    edit_tensors(
        folder / SHARD.replace("00001-of", "00002-of"), lambda tensors: tensors.pop("blocks.1.modulation", None)
    )
    fails(lambda: load_wan_transformer(open_wan_transformer(folder)), "lacks 1 tensor: blocks.1.scale_shift_table")


def test_numbers_that_are_not_finite_are_an_error(folder):
    edit_tensors(folder / SHARD, lambda tensors: tensors[sorted(tensors)[0]].fill_(float("nan")))
    fails(lambda: load_wan_transformer(open_wan_transformer(folder)), "are not finite")


def test_heads_come_from_the_configuration(folder):
    config = folder / "config.json"
    config.write_text(json.dumps({"dim": 64, "num_heads": 2}))
    fails(lambda: open_wan_transformer(folder), "dim is 64 and the tensors in .* have 48")
    config.write_text(json.dumps({"num_heads": 5}))
    fails(lambda: open_wan_transformer(folder), "width 48 and 5 heads")
    config.unlink()
    fails(lambda: open_wan_transformer(folder), 'no multiple of 128.*put a config.json with "num_heads"')


def test_the_layout_of_diffusers_is_recognised(folder, tmp_path):
    model = load_wan_transformer(open_wan_transformer(folder))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    fails(lambda: open_wan_transformer(tmp_path), "without -Diffusers")


def test_pickles_that_hold_more_than_tensors_are_refused(tmp_path):
    class Code:
        def __reduce__(self):
            return (print, ("executed",))

    file = tmp_path / "model.pth"
    torch.save({"a": Code()}, file)
    fails(lambda: open_tensors(file), "could run code when it is opened, and was refused")
    torch.save({"a": torch.zeros(2), "epoch": 3}, file)
    fails(lambda: open_tensors(file), r"has more than tensors \(epoch\)")
    torch.save({"a": torch.zeros(2, dtype=torch.int8)}, file)
    fails(lambda: open_tensors(file), r"not in floating point .*\(int8\)")
    torch.save([torch.zeros(2)], file)
    fails(lambda: open_tensors(file), "holds a list; a dict of tensors was expected")
    file.write_bytes(file.read_bytes()[:200])
    fails(lambda: open_tensors(file), "cannot be read as a PyTorch file|is no PyTorch file")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    fails(lambda: open_tensors(file), "Git LFS pointer")
    fails(lambda: open_tensors(tmp_path / "nothing.pth"), "does not exist")
    (tmp_path / "model.onnx").write_bytes(b"x")
    fails(lambda: open_tensors(tmp_path / "model.onnx"), "has the suffix '.onnx'")


# --- LoRA ---


def test_lora_is_added_and_not_divided_by_its_rank(folder):
    lora = folder / "full_attention.ckpt"
    plain = load_wan_transformer(open_wan_transformer(folder)).state_dict()
    files = open_wan_transformer(folder, lora)
    merged = load_wan_transformer(files).state_dict()
    factors = torch.load(lora, weights_only=True)
    name = "blocks.1.ffn.2.weight"
    change = factors["blocks.1.ffn.2.lora_B.default.weight"] @ factors["blocks.1.ffn.2.lora_A.default.weight"]
    torch.testing.assert_close(merged[transformer_name(name)], plain[transformer_name(name)] + change)
    changed = {key for key in plain if not torch.equal(plain[key], merged[key])}
    assert changed == {transformer_name(name) for name in files.lora.pairs}
    assert len(changed) == 2 * 10


def test_adapter_and_prefix_are_optional(folder, tmp_path):
    factors = torch.load(folder / "full_attention.ckpt", weights_only=True)
    renamed = {f"diffusion_model.{name.replace('.default', '')}": tensor for name, tensor in factors.items()}
    save_file(renamed, tmp_path / "other.safetensors")
    one = load_wan_transformer(open_wan_transformer(folder, folder / "full_attention.ckpt")).state_dict()
    other = load_wan_transformer(open_wan_transformer(folder, tmp_path / "other.safetensors")).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_written_lora_files_have_the_published_names(folder, tmp_path):
    published = open_wan_transformer(folder, folder / "full_attention.ckpt").lora
    save_lora(tmp_path / "mine.safetensors", {name: published.factors(name) for name in published.pairs})
    again = open_wan_transformer(folder, tmp_path / "mine.safetensors").lora
    assert set(load_file(tmp_path / "mine.safetensors")) == set(torch.load(published.file, weights_only=True))
    assert again.ranks == published.ranks
    assert all(
        torch.equal(*pair) for n in again.pairs for pair in zip(again.factors(n), published.factors(n), strict=True)
    )


def test_merge_of_1x1_convolutions():
    weight, a, b = torch.randn(6, 4, 1, 1), torch.randn(2, 4, 1, 1), torch.randn(6, 2, 1, 1)
    expected = weight[..., 0, 0] + 0.5 * b[..., 0, 0] @ a[..., 0, 0]
    torch.testing.assert_close(merge(weight, a, b, 0.5)[..., 0, 0], expected)


def change(**entries):
    return lambda factors: factors.update(entries)


A, B = "blocks.0.self_attn.q.lora_A.default.weight", "blocks.0.self_attn.q.lora_B.default.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change(step=torch.zeros(1)), r"neither LoRA factors nor weights .*: step\. .*lora_ignore"),
        (lambda f: f.pop(A), "has blocks.0.self_attn.q.lora_B.default.weight without its partner A"),
        (change(**{A.replace("blocks.0", "blocks.9"): torch.zeros(2, 48)}), "changes 1 tensor that this network"),
        (change(**{A: torch.zeros(2, 40)}), "do not fit blocks.0.self_attn.q.weight of shape"),
        (change(**{A: torch.zeros(3, 48)}), "do not fit blocks.0.self_attn.q.weight of shape"),
        (change(**{A: torch.full((2, 48), torch.inf)}), "not finite"),
        (change(**{"blocks.0.self_attn.k.lora_A.other.weight": torch.zeros(2, 48)}), "two factors of one weight"),
        (
            change(**{"patch_embedding.lora_A.default.weight": torch.zeros(2, 36),
                      "patch_embedding.lora_B.default.weight": torch.zeros(48, 2)}),
            "a LoRA changes matrices alone",
        ),
    ],
)  # fmt: skip
def test_lora_files_of_something_else_are_errors(folder, edit, message):
    file = folder / "full_attention.ckpt"
    factors = torch.load(file, weights_only=True)
    edit(factors)
    torch.save(factors, file)
    fails(lambda: load_wan_transformer(open_wan_transformer(folder, file)), message)


def test_a_file_without_factors_would_change_nothing(folder, tmp_path):
    save_file({"blocks.0.self_attn.q.weight": torch.zeros(48, 48)}, tmp_path / "lora.safetensors")
    fails(lambda: open_wan_transformer(folder, tmp_path / "lora.safetensors"), "has no LoRA factors")


def test_whole_weights_in_a_lora_file_are_left_out_with_a_warning(folder, caplog):
    """The published pipelines leave them out in silence, and their results hold without them."""
    file = folder / "full_attention.ckpt"
    factors = torch.load(file, weights_only=True)
    expected = load_wan_transformer(open_wan_transformer(folder, file)).state_dict()
    torch.save({**factors, "head.head.bias": torch.ones(64)}, file)
    files = open_wan_transformer(folder, file)
    assert files.lora.ignored == ("head.head.bias",)
    assert "are left out: head.head.bias" in caplog.text
    actual = load_wan_transformer(files).state_dict()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_named_tensors_are_left_out(folder):
    shapes = open_wan_transformer(folder).tensors.shapes()
    file = folder / "full_attention.ckpt"
    torch.save({**torch.load(file, weights_only=True), "step": torch.zeros(1)}, file)
    assert open_lora(file, shapes, ignore=["step"]).ignored == ("step",)


def test_ranks_may_differ_between_weights(folder):
    shapes = open_wan_transformer(folder).tensors.shapes()
    state = {n: torch.zeros(s) for n, s in shapes.items()}
    factors = lora_factors(state, rank=3) | {
        k: v for k, v in lora_factors(state, rank=1).items() if k.startswith("blocks.0.")
    }
    torch.save(factors, folder / "full_attention.ckpt")
    lora = open_wan_transformer(folder, folder / "full_attention.ckpt").lora
    assert set(lora.ranks.values()) == {1, 3}


# --- the autoencoder ---


def test_autoencoder_is_that_of_diffusers(folder):
    ours, wan = load_wan_autoencoder(folder / "Wan2.1_VAE.pth"), KeyframeAutoencoder.from_wan(tiny_wan_autoencoder())
    assert ours.state_dict().keys() == wan.state_dict().keys()
    assert ours.config.dim_mult == (1, 2, 4, 4)
    frames = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(frames), wan.encode(frames))
        torch.testing.assert_close(ours.decode(ours.encode(frames)), wan.decode(wan.encode(frames)))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.update({"encoder.extra": torch.zeros(1)}), "has 1 tensor that the autoencoder .*: encoder.extra"),
        (lambda t: t.pop("encoder.middle.1.proj.bias"), "lacks 1 tensor: encoder.mid_block.attentions.0.proj.bias"),
        (lambda t: t.pop("conv2.weight"), "lacks conv2.weight; the autoencoder of Wan 2.1"),
        (lambda t: t.update({"conv1.weight": torch.zeros(32, 32, 2, 2, 2)}), "with a wrong shape"),
        (lambda t: t.update({"conv1.bias": torch.full((32,), torch.nan)}), "not finite"),
        (
            lambda t: t.update({next(n for n in t if n.endswith("time_conv.weight")): torch.zeros(3, 3, 3, 1, 1)}),
            "fits no temporal layer",
        ),
    ],
)
def test_autoencoders_of_something_else_are_errors(folder, edit, message):
    file = folder / "Wan2.1_VAE.pth"
    tensors = torch.load(file, weights_only=True)
    edit(tensors)
    torch.save(tensors, file)
    fails(lambda: load_wan_autoencoder(file), message)


def test_messages_name_the_file(folder):
    fails(lambda: open_wan_transformer(folder / "nowhere"), re.escape(str(folder / "nowhere")))
