"""`worldstereo export` with every model that ships and every part of it."""

import pytest
import torch
from helpers.checkpoints import write_checkpoint
from typer.testing import CliRunner

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from worldstereo_ros.cli.main import app
from worldstereo_ros.export import verify as verification
from worldstereo_ros.export.errors import ModelExportError
from worldstereo_ros.export.metadata import PARTS, autoencoder_example_inputs, read_metadata
from worldstereo_ros.export.runners import OnnxRuntimeRunner
from worldstereo_ros.export.runtime import ExportedAutoencoder
from worldstereo_ros.models import VARIANTS
from worldstereo_ros.models.checkpoints.hub import find_checkpoint
from worldstereo_ros.models.checkpoints.loading import load_autoencoder
from worldstereo_ros.weights.bundled import BUNDLED

pytestmark = pytest.mark.usefixtures("one_thread")
AUTOENCODER_PARTS = PARTS[1:]


def export(model, target, *options):
    result = CliRunner().invoke(app, ["export", str(model), str(target), *options])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports of a model, each made once."""
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def get(model, part):
        target = folder / f"{part}.onnx"
        if part not in done:
            done[part] = export(model, target, "--part", part)
        return target, done[part]

    return get


@pytest.mark.parametrize("model", BUNDLED)
@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_a_bundled_model_is_exported_and_verified(exported, model, part):
    target, output = exported(model, part)
    assert read_metadata(target)["part"] == part
    assert "ok" in output
    assert "differs" not in output


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_exports_its_control_branch(small_checkpoint, tmp_path, variant):
    export(small_checkpoint, tmp_path / "control.onnx", "--variant", variant.removeprefix("worldstereo-"))
    assert read_metadata(tmp_path / "control.onnx")["part"] == "control"


def test_control_branch_of_a_published_checkpoint_is_exported(tmp_path):
    """Its autoencoder is exported by the tests of `test_onnx`."""
    write_checkpoint(tmp_path / "model", autoencoder=False)
    assert "ok" in export(tmp_path / "model", tmp_path / "control.onnx")


@torch.no_grad()
def test_exported_small_autoencoder_equals_torch_at_other_sizes(exported):
    model = load_autoencoder(find_checkpoint("small"))
    encoder, decoder = (exported("small", part)[0] for part in AUTOENCODER_PARTS)
    session = ExportedAutoencoder.of(model, encoder=OnnxRuntimeRunner(encoder), decoder=OnnxRuntimeRunner(decoder))
    assert isinstance(session, ExportedAutoencoder)
    assert not list(session.parameters())
    for size in ((1, 1, 1), (4, 3, 7)):
        (latents,) = autoencoder_example_inputs(read_metadata(decoder), size, torch.float32, seed=4)
        images = model.decode(latents)
        assert images.std() > 0.1
        torch.testing.assert_close(session.decode(latents), images, atol=1e-4, rtol=0)
        torch.testing.assert_close(session.encode(images), model.encode(images), atol=1e-4, rtol=0)
        clip = latents.transpose(0, 1)
        torch.testing.assert_close(torch.stack(list(session.decode_frames(clip))), images, atol=1e-4, rtol=0)
    half = ExportedAutoencoder.of(model, decoder=OnnxRuntimeRunner(decoder))
    torch.testing.assert_close(half.encode(images), model.encode(images))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("part", AUTOENCODER_PARTS)
def test_autoencoders_are_exported_in_half_precision(small_checkpoint, tmp_path, part, dtype):
    output = export(small_checkpoint, tmp_path / "part.onnx", "--part", part, "--dtype", dtype)
    assert ("not verified" if dtype == "bfloat16" else "ok") in output
    assert read_metadata(tmp_path / "part.onnx")["dtype"] == dtype


def test_file_that_cannot_be_verified_is_removed(small_checkpoint, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ModelExportError("onnxruntime could not run it")

    monkeypatch.setattr(verification, "verify", fail)
    target = tmp_path / "decoder.onnx"
    arguments = ["export", str(small_checkpoint), str(target), "--part", "autoencoder-decoder"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "could not run it" in result.output
    assert not target.exists()


def test_offsets_of_an_autoencoder_are_refused(small_checkpoint, tmp_path):
    arguments = ["export", str(small_checkpoint), str(tmp_path / "a.onnx"), "--part", "autoencoder-decoder"]
    result = CliRunner().invoke(app, [*arguments, "--offsets"])
    assert result.exit_code == 1
    assert "--offsets is for the part control" in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())
