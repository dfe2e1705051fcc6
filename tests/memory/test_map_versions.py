"""Saved maps of earlier versions: version 1 and 2 knew observed and imagined points only."""

from dataclasses import replace

import numpy as np
import pytest

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory import archive
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory

CAMERA = Camera.from_fov(48, 32, 1.2)
RENAMED = {"weight": "confidence", "confidence": "certainty", "max_weight": "max_confidence"}  # now -> version 1


@pytest.fixture
def memories():
    """A wall, half observed and half imagined with confidence .25, and the view that observed it."""
    rng = np.random.default_rng(0)
    image, depth = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8), np.full((32, 48), 2, np.float32)
    view, left = View(image, CAMERA, np.eye(4), depth, stamp_ns=7), np.arange(48)[None].repeat(32, 0) < 24
    cloud, bank = CloudMemory(voxel_size=0.02), ViewBank()
    cloud.insert(replace(view, depth=np.where(left, depth, 0)))
    imagined = replace(view, observed=np.zeros_like(left), confidence=np.full((32, 48), 0.25, np.float32))
    cloud.insert(replace(imagined, depth=np.where(left, 0, depth)))
    bank.add(view)
    bank.add(imagined)
    return cloud, bank


def save_as(version, path, cloud, bank, monkeypatch):
    """Writes a map as the package wrote it in that version."""
    state = cloud.state()
    state["observed"] = state.pop("provenance") == Provenance.OBSERVED
    del state["depth_confidence"]
    if version == 1:
        state = {RENAMED.get(name, name): array for name, array in state.items()}
    monkeypatch.setattr(archive, "VERSION", version)
    archive.write_archive(path, state, bank.state(), {})
    monkeypatch.undo()


@pytest.mark.parametrize("version", [1, 2])
def test_observed_becomes_provenance_and_depth_confidence(tmp_path, memories, version, monkeypatch, caplog):
    cloud, bank = memories
    save_as(version, tmp_path / "old.wsmap", cloud, bank, monkeypatch)
    loaded = archive.load_archive(tmp_path / "old.wsmap")
    assert "did not mark estimated depth" in caplog.text
    for name in ("points", "colours", "provenance", "weight", "confidence", "stamp_ns", "spacing", "max_weight"):
        np.testing.assert_array_equal(getattr(loaded.cloud, name), getattr(cloud, name), err_msg=name)
    assert set(loaded.cloud.provenance.tolist()) == {Provenance.IMAGINED, Provenance.OBSERVED}
    np.testing.assert_array_equal(loaded.cloud.depth_confidence, loaded.cloud.observed.astype(np.float32))
    np.testing.assert_allclose(loaded.cloud.confidence[~loaded.cloud.observed], 0.25, atol=1e-4)
    observation, imagined = loaded.bank.views
    assert observation.is_observation
    assert observation.observed_mask.all()
    assert not imagined.observed_mask.any()
    # The loaded memory keeps all three classes apart.
    other = replace(bank.views[0], estimated=np.ones((32, 48), bool), depth=np.full((32, 48), 3, np.float32))
    assert loaded.cloud.insert(other).added > 100
    assert loaded.cloud.estimated_count > 100


def test_version_1_without_certainty_has_the_confidence_of_the_class(tmp_path, memories):
    cloud, bank = memories
    state = cloud.state()
    state["observed"] = state.pop("provenance") == Provenance.OBSERVED
    state = {RENAMED.get(name, name): state[name] for name in state if name not in ("confidence", "depth_confidence")}
    archive.write_archive(tmp_path / "old.wsmap", state, bank.state(), {})
    loaded = archive.load_archive(tmp_path / "old.wsmap").cloud
    np.testing.assert_array_equal(loaded.weight, cloud.weight)
    np.testing.assert_array_equal(loaded.confidence, cloud.observed.astype(np.float32))


def test_a_map_keeps_all_classes_and_confidences(tmp_path, memories, caplog):
    cloud, bank = memories
    sure = np.full((32, 48), 0.5, np.float32)
    photo = replace(
        bank.views[0],
        depth=np.full((32, 48), 3, np.float32),
        estimated=np.ones((32, 48), bool),
        depth_confidence=sure,
    )
    cloud.insert(photo)
    bank.add(photo)
    archive.save_archive(tmp_path / "a.wsmap", cloud, bank, {})
    loaded = archive.load_archive(tmp_path / "a.wsmap")
    assert not caplog.text
    assert set(loaded.cloud.provenance.tolist()) == {1, 2, 3}
    for name in ("provenance", "confidence", "depth_confidence"):
        np.testing.assert_array_equal(getattr(loaded.cloud, name), getattr(cloud, name))
    read = loaded.bank.views[2]
    assert read.is_observation
    np.testing.assert_array_equal(read.estimated, photo.estimated)
    np.testing.assert_array_equal(read.depth_confidence, sure)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"provenance": np.zeros(9, np.uint8)}, "provenance is uint8"),
        ({"provenance": None}, "provenance that is not 1"),
        ({"depth_confidence": np.zeros(9, np.uint16)}, "depth_confidence is uint16"),
    ],
)
def test_invalid_classes_are_rejected(memories, change, words):
    state = memories[0].state()
    ((name, value),) = change.items()
    if value is None:
        value = state[name].copy()
        value[3] = 4
    with pytest.raises(ValueError, match=words):
        CloudMemory.from_state({**state, name: value})


def test_an_observed_mask_of_another_type_is_rejected(memories):
    state = memories[0].state()
    state["observed"] = state.pop("provenance")
    with pytest.raises(ValueError, match="observed is uint8; bool was expected"):
        CloudMemory.from_state(state)


@pytest.mark.parametrize(("name", "dtype"), [("estimated", np.uint8), ("depth_confidence", np.uint8)])
def test_invalid_labels_of_a_view_are_rejected(memories, name, dtype):
    state = {**memories[1].state(), f"0.{name}": np.zeros((32, 48), dtype)}
    with pytest.raises(ValueError, match=f"{name} of type uint8"):
        ViewBank.from_state(state)
