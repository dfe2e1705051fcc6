"""What comes of training is packed, loads and describes itself."""

import json
import os

import pytest
import torch
from helpers.training_runs import SMOKE, weights_of
from safetensors.torch import load_file, save_file

from worldstereo_ros.models import CheckpointError
from worldstereo_ros.models.depth_network import load_depth_network
from worldstereo_ros.training.config import STAGES
from worldstereo_ros.training.logs import read_rounds
from worldstereo_ros.training.packaging import package_weights

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_is_packed_loads_and_describes_itself(trained, tmp_path):
    out = tmp_path / "packed"
    rows = {"sequence": "test0", "protocol": "single", "pipeline": "small", "frames": 3, "psnr": 21.25}
    (tmp_path / "rows.json").write_text(json.dumps({"rows": [rows, {**rows, "sequence": "test1", "psnr": 22.25}]}))
    size = package_weights(trained, out, evaluation=tmp_path / "rows.json")
    files = [file for file in out.rglob("*") if file.is_file()]
    assert size == sum(file.stat().st_size for file in files)
    tensors = weights_of(out)
    small = [tensor for key, tensor in tensors.items() if "norm" not in key and tensor.ndim > 1]
    assert sum(t.dtype == torch.bfloat16 for t in small) > len(small) // 2
    assert not list((out / "base" / "transformer").glob("*.safetensors"))
    assert load_depth_network(out / "base" / "depth").config.pixels == 32 * 48
    card = (out / "README.md").read_text()
    for stage in STAGES:
        one = read_rounds(trained / "logs" / f"{stage}.jsonl")[0]
        assert f"| {one.steps} | {one.seconds / 60:.1f} | {SMOKE.stages[stage].batch} |" in card
        named = "absrel" if stage == "depth" else "psnr"
        assert f"{named} {one.figures[named]:.3f}" in card
    assert "| single | small | 6 | 21.75 |" in card
    assert f"{os.cpu_count()} cores" in card
    assert "license: apache-2.0" in card
    everything = package_weights(trained, out, variants=("memory-dmd", "memory", "camera"))  # in the place of what was there
    assert everything > size
    assert list((out / "base" / "transformer").glob("*.safetensors"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["packed", "rows.json"]


def test_what_is_too_large_damaged_or_not_ours_is_not_packed(trained_copy, tmp_path):
    out = tmp_path / "packed"
    package_weights(trained_copy, out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=r"at most 0\.01 MB in all are allowed"):
        package_weights(trained_copy, out, most_bytes=10_000)
    with pytest.raises(ValueError, match="some of memory-dmd, memory, camera were expected"):
        package_weights(trained_copy, out, variants=("dmd",))
    weights = trained_copy / "finetuned" / "worldstereo-memory-dmd" / "model.safetensors"
    tensors = load_file(weights)
    tensors["patch_embedding.weight"][0] = float("nan")
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match="are not finite"):
        package_weights(trained_copy, out)
    tensors.pop("patch_embedding.weight")
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match="cannot be loaded, nothing was replaced"):
        package_weights(trained_copy, out)
    assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="was not packed before"):
        package_weights(trained_copy, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").is_file()
