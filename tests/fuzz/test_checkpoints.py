"""Damaged weights and configurations of checkpoints."""

import json

import pytest
from fuzz.mutations import damaged, damaged_json
from fuzz.running import bounded, fuzz
from helpers.checkpoints import DMD_VARIANT, MEMORY, write_checkpoint, write_small_checkpoint
from hypothesis import strategies as st

from worldstereo_ros.models.checkpoints.hub import find_checkpoint
from worldstereo_ros.models.checkpoints.inspection import inspect_checkpoint
from worldstereo_ros.models.checkpoints.loading import load_autoencoder, load_transformer
from worldstereo_ros.models.schedulers import make_scheduler
from worldstereo_ros.pipelines.diffusion.text_encoders import load_image_encoder, load_text_encoder

pytestmark = pytest.mark.usefixtures("one_thread", "no_network")


@pytest.fixture
def small(tmp_path):
    return write_small_checkpoint(tmp_path / "small", (DMD_VARIANT,))


def load_all(root):
    """Everything that a pipeline loads of the small model."""
    checkpoint = find_checkpoint(root, local_files_only=True)
    inspect_checkpoint(checkpoint)
    load_transformer(checkpoint)
    load_autoencoder(checkpoint)
    scheduler = make_scheduler(checkpoint.config.raw, checkpoint.base("scheduler"))
    scheduler.set_timesteps(3)


def test_damaged_weights(small):
    files = [small / DMD_VARIANT / "model.safetensors", next((small / "base" / "vae").glob("*.safetensors"))]
    originals = [file.read_bytes() for file in files]

    def check(index, data):
        # Damage to the header counts most; it is a small part of the file.
        files[index].write_bytes(data)
        try:
            with bounded(data, ".safetensors"):
                load_all(small)
        finally:
            files[index].write_bytes(originals[index])

    def header(content):
        length = 8 + int.from_bytes(content[:8], "little")
        return st.one_of(damaged(content), damaged(content[:length]).map(lambda start: start + content[length:]))

    for index, content in enumerate(originals):
        fuzz(check, st.just(index), header(content), examples=12, parts=len(originals))


def test_damaged_configurations(small, no_network):
    files = [file for file in sorted(small.rglob("*.json")) if "index" not in file.name]
    originals = {file: json.loads(file.read_text()) for file in files}

    def check(index_and_content):
        index, content = index_and_content
        data = json.dumps(content).encode()
        files[index].write_bytes(data)
        try:
            with bounded(data, ".json"):
                load_all(small)
        finally:
            files[index].write_text(json.dumps(originals[files[index]]))
        assert no_network == []

    strategies = [st.tuples(st.just(i), damaged_json(originals[file])) for i, file in enumerate(files)]
    fuzz(check, st.one_of(strategies), examples=60)


def test_damaged_configurations_of_encoders(tmp_path, no_network):
    root = tmp_path / "published"
    write_checkpoint(root, MEMORY, encoders=True, autoencoder=False)
    folders = ("text_encoder", "image_encoder", "image_processor", "scheduler")
    files = [file for folder in folders for file in sorted((root / "base" / folder).glob("*.json"))]
    originals = {file: json.loads(file.read_text()) for file in files}

    def check(index_and_content):
        import torch

        index, content = index_and_content
        data = json.dumps(content).encode()
        files[index].write_bytes(data)
        try:
            with bounded(data, ".json"):
                checkpoint = find_checkpoint(root, local_files_only=True)
                if files[index].parent.name == "scheduler":
                    make_scheduler(checkpoint.config.raw, root / "base").set_timesteps(3)
                elif files[index].parent.name == "text_encoder":
                    load_text_encoder(checkpoint, torch.device("cpu"), torch.float32)
                else:
                    load_image_encoder(checkpoint, torch.device("cpu"), torch.float32)
        finally:
            files[index].write_text(json.dumps(originals[files[index]]))
        assert no_network == []

    strategies = [st.tuples(st.just(i), damaged_json(originals[file])) for i, file in enumerate(files)]
    fuzz(check, st.one_of(strategies), examples=30)
