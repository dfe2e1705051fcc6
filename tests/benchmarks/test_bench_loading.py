"""Host memory while a checkpoint is loaded does not grow with the size of its files."""

import bench_loading
import pytest
import torch

from worldstereo_ros.models import CheckpointError
from worldstereo_ros.models.checkpoints import parameters, weights
from worldstereo_ros.models.checkpoints.weights import open_weights

MIB = 2**20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint in one file of 160 MiB, and the bytes of its tensors."""
    folder = tmp_path_factory.mktemp("checkpoint")
    written = bench_loading.write_checkpoint(folder, bench_loading.size_of(0.16), 1 << 40)
    assert 130 * MIB < written < 200 * MIB
    assert len(list((folder / "base").rglob("*.safetensors"))) == 1
    return folder, written


def test_host_memory_of_loading_is_a_part_of_the_file(checkpoint, monkeypatch):
    folder, written = checkpoint
    monkeypatch.setattr(weights, "MAX_MAPPED_BYTES", 16 * MIB)
    monkeypatch.setattr(parameters, "CHECKED_AT_ONCE", 1 << 20)
    bench_loading.load(folder, "discard")  # what it imports
    assert bench_loading.load(folder, "discard")["total"] < 56 * MIB
    on_cpu = bench_loading.load(folder, "cpu")
    assert on_cpu["weights"] > 0.9 * written
    assert on_cpu["total"] < 56 * MIB
    # Mapped once and for all, the whole file would count.
    monkeypatch.setattr(weights, "MAX_MAPPED_BYTES", 1 << 40)
    assert bench_loading.load(folder, "discard")["mapped"] > 0.8 * written


def test_every_tensor_is_read_once_in_parts_of_a_file(checkpoint, monkeypatch):
    folder, _ = checkpoint
    found = open_weights(folder / "base" / "transformer", "diffusion_pytorch_model")
    names = list(found.tensors)
    whole = {name: tensor.clone() for name, tensor in found.read(names)}
    monkeypatch.setattr(weights, "MAX_MAPPED_BYTES", 10 * MIB)  # less than the largest tensors
    read = list(found.read(names))
    assert sorted(name for name, _ in read) == sorted(names)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in read)


@pytest.mark.parametrize("place", [0, 5, 11])
def test_one_number_that_is_not_finite_is_found_in_any_part(monkeypatch, place, tmp_path):
    monkeypatch.setattr(parameters, "CHECKED_AT_ONCE", 4)
    tensor = torch.ones(3, 4)
    info = weights.TensorInfo(tmp_path / "model.safetensors", (3, 4), "F32", "t")
    assert parameters.check_finite(tensor, "t", info) is tensor
    tensor.view(-1)[place] = float("inf")
    with pytest.raises(CheckpointError, match="1 of 12 numbers of t are not finite"):
        parameters.check_finite(tensor, "t", info)


def test_layers_fill_the_size_that_is_asked_for():
    assert bench_loading.size_of(33).backbone["num_layers"] == 40
    assert 1 <= bench_loading.size_of(3).backbone["num_layers"] < 6
