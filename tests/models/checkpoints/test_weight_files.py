"""Weight files that are something else, or have other names for the same tensors: what is said of them."""

import io
import json
import logging

import pytest
import torch
from helpers.checkpoints import DMD_VARIANT as DMD
from helpers.checkpoints import assert_load_fails, edit_tensors, tiny_wan_autoencoder, write_checkpoint

from worldstereo_ros.models.checkpoints.hub import find_checkpoint
from worldstereo_ros.models.checkpoints.inspection import inspect_checkpoint
from worldstereo_ros.models.checkpoints.loading import load_autoencoder, load_transformer
from worldstereo_ros.models.checkpoints.names import common_prefix, several_models, unwrap_names
from worldstereo_ros.models.checkpoints.saving import save_weights
from worldstereo_ros.models.checkpoints.weights import CheckpointError, open_weights
from worldstereo_ros.models.depth_network import DepthNetwork, load_depth_network

pytestmark = pytest.mark.usefixtures("one_thread")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 26012345\n"


@pytest.fixture
def root(tmp_path):
    write_checkpoint(tmp_path, DMD, autoencoder=False)
    return tmp_path


def rename(root, change):
    """Renames all tensors of a checkpoint with `change(name)`."""

    def edit(tensors):
        renamed = {change(name): tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(renamed)

    edit_tensors(root / DMD / "model.safetensors", edit)


def torch_file():
    out = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, r"Git LFS pointer to a file of 26012345 bytes.*git lfs pull"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "HTML page.*download the raw file"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "error message of a server"),
        (bytes(4096), "zero bytes.*fetch it again"),
        (b"\x1f\x8b\x08\0" + bytes(50), "gzip archive. Unpack it"),
        (b"\x80\x02}q\0.", "PyTorch file .* by another name, .*weights_only=True.*save_file"),
        (torch_file(), "PyTorch file .* by another name, .*weights_only=True.*save_file"),
        (b"GGUF\x03\0\0\0" + bytes(100), "GGUF file.*safetensors files of the original model"),
    ],
    ids=["lfs", "html", "xml", "zeros", "gzip", "pickle", "torch", "gguf"],
)
def test_other_file_by_the_name_of_the_weights(root, content, message):
    (root / DMD / "model.safetensors").write_bytes(content)
    assert_load_fails(root, message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_lora_weights.safetensors", "is a LoRA .*fuse_lora"),
        ("adapter_model.safetensors", "is a LoRA .*fuse_lora"),
        ("model.fp16.safetensors", r"has model\.fp16\.safetensors; rename it to model\.safetensors"),
        ("model-00001-of-00002.safetensors", r"a shard, but not model\.safetensors\.index\.json"),
        ("model-Q4.gguf", "quantised for other programs"),
        ("pytorch_model.bin", "a pickle, which can execute code"),
    ],
)
def test_weights_by_another_name(root, name, message):
    (root / DMD / "model.safetensors").rename(root / DMD / name)
    assert_load_fails(root, r"has neither model\.safetensors nor .*" + message)


def test_lora_is_named(root):
    rename(root, lambda name: f"diffusion_model.{name.removesuffix('.weight')}.lora_A.weight")
    assert_load_fails(root, "not those of this model. It is a LoRA .*Merge it into the model")


def test_names_of_wan_are_named(root):
    folder = root / "base" / "transformer"
    save_weights(
        folder,
        "diffusion_pytorch_model",
        {"blocks.0.self_attn.q.weight": torch.zeros(2), "text_embedding.0.weight": torch.zeros(2)},
    )
    assert_load_fails(root, "Wan's own repository. Use the repository of the same name with -Diffusers")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_quantised_weights_are_named(root, dtype):
    edit_tensors(
        root / DMD / "model.safetensors", lambda t: t.update({"proj_out.weight": t["proj_out.weight"].to(dtype)})
    )
    assert_load_fails(root, r"\(F8_E\w+\).*quantised to 8-bit floating point \(fp8\)")


def test_integer_quantisation_is_named(root):
    edit_tensors(
        root / DMD / "model.safetensors", lambda t: t.update({"proj_out.qweight": torch.zeros(8, dtype=torch.int32)})
    )
    assert_load_fails(root, "quantised to integers")


@pytest.mark.parametrize(
    ("change", "removed"),
    [
        (lambda name: f"module.{name}", "'module.'"),
        (lambda name: f"_orig_mod.{name}", "'_orig_mod.'"),
        (lambda name: f"module._orig_mod.{name}", "'_orig_mod.' and 'module.'"),
        (
            lambda name: name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."),
            "'_checkpoint_wrapped_module.'",
        ),
        (lambda name: f"model.diffusion_model.{name}", "'model.diffusion_model.'"),
        (lambda name: f"transformer.{name}", "'transformer.'"),
    ],
)
def test_wrapped_names_are_those_of_the_model(root, caplog, change, removed):
    expected = load_transformer(find_checkpoint(root)).state_dict()
    rename(root, change)
    with caplog.at_level(logging.WARNING):
        actual = load_transformer(find_checkpoint(root)).state_dict()
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"Removed {removed} from the names of ")
    report = inspect_checkpoint(root)
    assert report.usable
    assert removed.replace("'", "").replace(" and ", ", ") in dict(report.rows())["removed"]


def test_wrapped_names_in_shards(tmp_path):
    save_weights(
        tmp_path,
        "model",
        {f"module.{name}": torch.full((8,), i) * 1.0 for i, name in enumerate("ab")},
        max_shard_bytes=32,
    )
    weights = open_weights(tmp_path, "model")
    assert len(weights.files) == 2
    assert {name: float(tensor[0]) for name, tensor in weights.read(["b", "a"])} == {"a": 0, "b": 1}


def test_model_that_is_in_the_file_twice_is_refused(root):
    def twice(tensors):
        copies = {f"{prefix}.{name}": tensor.clone() for prefix in ("ema", "model") for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(copies)

    edit_tensors(root / DMD / "model.safetensors", twice)
    assert_load_fails(root, r"holds the model more than once, under 'ema\.' and 'model\.'; save one of them")


def test_wrapped_autoencoder_and_depth_network(tmp_path):
    write_checkpoint(tmp_path)
    folder = tmp_path / "base" / "vae"
    expected = load_autoencoder(find_checkpoint(tmp_path)).state_dict()
    tiny = {f"module.{name}": tensor for name, tensor in tiny_wan_autoencoder().state_dict().items()}
    save_weights(folder, "diffusion_pytorch_model", tiny)
    actual = load_autoencoder(find_checkpoint(tmp_path)).state_dict()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)

    network = DepthNetwork(widths=(8, 8, 8), blocks=(1, 1), layers=1, heads=2)
    save_weights(
        tmp_path / "depth", "diffusion_pytorch_model", {f"net.{n}": t for n, t in network.state_dict().items()}
    )
    (tmp_path / "depth" / "config.json").write_text(json.dumps({"_class_name": "DepthNetwork", **network.config}))
    loaded = load_depth_network(tmp_path / "depth").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())


def test_names_are_changed_only_where_that_is_unambiguous():
    assert unwrap_names(["module.a", "module.b"]) == ({"module.a": "a", "module.b": "b"}, ["module"])
    assert unwrap_names(["module.a", "b"]) == ({"module.a": "module.a", "b": "b"}, [])
    assert unwrap_names(["a", "_orig_mod.a"]) == ({"a": "a", "_orig_mod.a": "_orig_mod.a"}, [])
    assert unwrap_names(["module.module.a"])[0] == {"module.module.a": "a"}
    assert unwrap_names([]) == ({}, [])
    assert common_prefix(["x.a", "x.b"], ["a", "b"]) == "x."
    assert common_prefix(["x.a", "b"], ["a", "b"]) == ""
    assert common_prefix(["x.a", "y.b"], ["a", "b"]) == ""
    assert common_prefix(["x.c", "x.d"], ["a", "b"]) == ""
    assert several_models(["x.a", "y.a", "z.c"], ["a"]) == ["x.", "y."]
    assert several_models(["x.a"], ["a"]) == []


@pytest.mark.parametrize("content", [POINTER, b"", b"<html>Not found</html>"])
def test_config_that_is_another_file_is_explained(root, content):
    (root / DMD / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"could not be read as JSON.*(git lfs pull|fetch it again|raw file)"):
        find_checkpoint(root)
