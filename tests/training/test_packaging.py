"""Packaging of trained weights, and the model card."""

import json
import os
import shutil

import pytest
import torch
from helpers.training_runs import SMOKE, weights_of
from safetensors.torch import load_file, save_file

from worldstereo_ros.models import CheckpointError
from worldstereo_ros.models.checkpoints.saving import save_weights, write_json
from worldstereo_ros.models.depth_network import load_depth_network
from worldstereo_ros.models.stereo_refiner import StereoRefiner
from worldstereo_ros.training.config import STAGES
from worldstereo_ros.training.logs import append_log, read_log
from worldstereo_ros.training.packaging import package_weights

pytestmark = pytest.mark.usefixtures("one_thread")


def test_package_loads_and_has_a_model_card(trained, tmp_path):
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
        period = read_log(trained / "logs" / f"{stage}.jsonl")[0]
        assert f"| {period.steps} | {period.seconds / 60:.1f} | {SMOKE.stages[stage].batch} |" in card
        metric = "absrel" if stage == "depth" else "psnr"
        assert f"{metric} {period.metrics[metric]:.3f}" in card
    assert "| single | small | 6 | 21.75 |" in card
    assert f"{os.cpu_count()} cores" in card
    assert "license: apache-2.0" in card
    everything = package_weights(trained, out, variants=("memory-dmd", "memory", "camera"))  # replaces the first one
    assert everything > size
    assert list((out / "base" / "transformer").glob("*.safetensors"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["packed", "rows.json"]


def test_model_card_lists_the_periods_of_a_run_with_their_settings_and_notes(trained_copy, tmp_path):
    log = trained_copy / "logs" / "finetune.jsonl"
    header = json.loads(log.read_text().splitlines()[0])
    settings = {**header["settings"], "covered_weight": 0.25, "precomputed_clips": 12}
    append_log(log, {**header, "round": 1, "resumed": True, "worlds": 634, "settings": settings, "notes": "a note"})
    append_log(log, {"step": 0, "seconds": 1.0, "validation_loss": 0.9})
    append_log(log, {"step": 2300, "seconds": 120.0, "validation_loss": 0.5})
    package_weights(trained_copy, tmp_path / "packed")
    card = (tmp_path / "packed" / "README.md").read_text()
    first = read_log(log)[0]
    assert (
        f"| finetune | 1 | {first.steps} | {first.seconds / 60:.1f} | {SMOKE.worlds.cache_size} | - | - | - |" in card
    )
    assert "| finetune | 2 | 2300 | 2.0 | 634 | 12 | `covered_weight: 0.25` | a note |" in card
    assert f"| {first.steps + 2300} | {(first.seconds + 120) / 60:.1f} |" in card


def test_model_card_shows_a_dash_for_metrics_that_are_not_finite(trained_copy, tmp_path):
    log = trained_copy / "logs" / "memory.jsonl"
    append_log(log, {"step": 9, "seconds": 1.0, "validation_loss": 0.5, "validation_psnr_holes": float("nan")})
    package_weights(trained_copy, tmp_path / "packed")
    assert "loss 0.500, psnr in holes - |" in (tmp_path / "packed" / "README.md").read_text()


def test_large_damaged_or_foreign_files_are_not_packaged(trained_copy, tmp_path):
    out = tmp_path / "packed"
    package_weights(trained_copy, out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=r"at most 0\.01 MB in all are allowed"):
        package_weights(trained_copy, out, max_bytes=10_000)
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
    with pytest.raises(ValueError, match="is not an earlier package"):
        package_weights(trained_copy, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").is_file()


def test_networks_of_runs_of_their_own_stay_in_a_package(trained_copy, tmp_path):
    out, refiner = tmp_path / "packed", StereoRefiner(width=32, heads=2, depth=1, pixel_width=8)
    package_weights(trained_copy, out)
    run = trained_copy / "base" / "stereo"
    save_weights(run, "diffusion_pytorch_model", refiner.state_dict())
    write_json(
        run / "config.json", {"_class_name": "StereoRefiner", "width": 32, "heads": 2, "depth": 1, "pixel_width": 8}
    )
    size = package_weights(trained_copy, out)
    files = {file: file.read_bytes() for file in (out / "base" / "stereo").iterdir()}
    assert len(files) == 2
    shutil.rmtree(run)
    assert package_weights(trained_copy, out) == size
    assert {file: file.read_bytes() for file in files} == files
