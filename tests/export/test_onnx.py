"""Exported models against torch at sizes other than the traced one, and as replacements of torch modules."""

import sys

import pytest
import torch
from helpers.checkpoints import CONTROL, tiny_inputs, tiny_transformer, tiny_wan_autoencoder, write_checkpoint
from typer.testing import CliRunner

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from worldstereo_ros.cli.main import app
from worldstereo_ros.export import onnx, runtime
from worldstereo_ros.export.errors import ModelExportError
from worldstereo_ros.export.metadata import (
    autoencoder_example_inputs,
    control_example_inputs,
    read_metadata,
    weights_hash,
)
from worldstereo_ros.export.onnx import export_control
from worldstereo_ros.export.runners import OnnxRuntimeRunner, choose_providers
from worldstereo_ros.export.runtime import ExportedAutoencoder, ExportedControlBranch, use_control_backend
from worldstereo_ros.export.verify import VerificationResult, verify
from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder

TRACED_SIZE = (2, 3, 4, 3)
SIZES = [(1, 1, 1, 1), (1, 2, 3, 5), (3, 6, 2, 7), (1, 4, 9, 2)]
TWO_BLOCKS = {**CONTROL, "num_layers": 2}


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, 2))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def replaced(tmp_path_factory):
    """A transformer with a torch control branch, the same with onnxruntime, and the folder of the cache."""
    cache = tmp_path_factory.mktemp("cache")
    before, after = tiny_transformer(control=TWO_BLOCKS), tiny_transformer(control=TWO_BLOCKS)
    use_control_backend(after, "onnxruntime", cache_dir=cache)
    return before, after, cache


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_exported_control_branch_equals_torch_at_other_sizes(replaced, size):
    assert size != TRACED_SIZE
    before, after, _ = replaced
    inputs = control_example_inputs(after.controlnet.metadata, size, torch.float32, seed=2)
    expected, actual = before.controlnet(*inputs), after.controlnet(*inputs)
    assert [t.shape for t in actual] == [t.shape for t in expected]
    for index, (a, b) in enumerate(zip(expected, actual, strict=True)):
        assert a.abs().max() > 0.5
        torch.testing.assert_close(b, a, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            after.controlnet.residual(index, b), before.controlnet.residual(index, a), atol=1e-5, rtol=0
        )


@torch.no_grad()
def test_transformer_with_exported_control_branch_equals_torch(replaced):
    before, after, _ = replaced
    inputs = tiny_inputs(before, batch=2, frames=5)
    expected = before(**inputs).sample
    torch.testing.assert_close(after(**inputs).sample, expected, atol=1e-5, rtol=0)
    changed = {**inputs, "render_latent": inputs["render_latent"] + 1}
    assert (after(**changed).sample - expected).abs().max() > 1e-3


@torch.no_grad()
def test_layers_of_small_models_are_kept(tmp_path):
    control = {**TWO_BLOCKS, "num_layers": 1, "render_prior": [0.4, 0.9], "layout_channels": 20}
    before, after = tiny_transformer(control=control), tiny_transformer(control=control)
    for model in (before, after):
        model.controlnet.render_head.weight.fill_(0.1)  # zero in an untrained model
    use_control_backend(after, "onnxruntime", cache_dir=tmp_path)
    inputs = tiny_inputs(before, frames=5)
    expected = before(**inputs).sample
    torch.testing.assert_close(after(**inputs).sample, expected, atol=1e-4, rtol=0)
    for layer in (before.controlnet.layout_embedding, before.controlnet.render_head):
        layer.weight.zero_()
        assert (before(**inputs).sample - expected).abs().max() > 0.01
        expected = before(**inputs).sample


def test_torch_weights_of_a_replaced_branch_are_freed(replaced):
    before, after, _ = replaced
    names = [name for name, _ in after.named_parameters() if name.startswith("controlnet.")]
    assert names
    assert all(name.startswith("controlnet.proj_out.") for name in names)
    with pytest.raises(ModelExportError, match="load the model again"):
        use_control_backend(after, "torch")
    branch = before.controlnet
    use_control_backend(before, "torch")
    assert before.controlnet is branch


def test_wrong_input_shapes_raise(replaced):
    session = replaced[1].controlnet
    latent, volume, temb = control_example_inputs(session.metadata, (1, 2, 2, 2), torch.float32)
    with pytest.raises(ValueError, match=r"volume of the control branch has shape .* was expected"):
        session(latent, volume[..., :-8], temb)
    with pytest.raises(ValueError, match="temb"):
        session(latent, volume, temb[:, :-1])


def test_cached_file_is_reused_and_damaged_one_exported_again(replaced, monkeypatch):
    before, _, cache = replaced
    (cached,) = (cache / "onnx").iterdir()
    content, written = cached.read_bytes(), []

    def fake_export(branch, path, **_):  # an export takes seconds
        written.append(path)
        path.write_bytes(content)

    monkeypatch.setattr(runtime, "export_control", fake_export)
    again = tiny_transformer(control=TWO_BLOCKS)
    use_control_backend(again, "onnxruntime", cache_dir=cache)
    assert written == []

    cached.write_bytes(content[: len(content) // 2])
    again = tiny_transformer(control=TWO_BLOCKS)
    use_control_backend(again, "onnxruntime", cache_dir=cache)
    assert written == [cached]
    assert list((cache / "onnx").iterdir()) == [cached]
    inputs = tiny_inputs(before)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).sample, before(**inputs).sample, atol=1e-5, rtol=0)


def test_weights_hash_depends_on_the_weights():
    one, other = tiny_transformer(seed=0).controlnet, tiny_transformer(seed=0).controlnet
    assert weights_hash(one) == weights_hash(other)
    with torch.no_grad():
        other.proj_out[0].bias[3] += 1e-6
    assert weights_hash(one) != weights_hash(other)


@pytest.fixture(scope="module")
def video_file(tmp_path_factory):
    """A branch for video latents (three padded frames), standard operators, offsets, external data."""
    branch = tiny_transformer(control={**CONTROL, "mask_downsample": 4}).controlnet
    path = tmp_path_factory.mktemp("video") / "control.onnx"
    exported = export_control(branch, path, attention="standard", offsets=True, opset=18, max_embedded_bytes=0)
    return branch, exported


@torch.no_grad()
def test_export_of_offsets_with_external_data(video_file):
    import onnx as library

    branch, exported = video_file
    assert sorted(p.name for p in exported.path.parent.iterdir()) == [exported.path.name, exported.external_data.name]
    model = library.load(str(exported.path), load_external_data=False)
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 18)}
    assert exported.path.stat().st_size < exported.external_data.stat().st_size
    session = ExportedControlBranch(OnnxRuntimeRunner(exported.path), read_metadata(exported.path))
    for size in SIZES:
        inputs = control_example_inputs(exported.metadata, size, torch.float32, seed=3)
        assert inputs[1].shape[2] == 4 * size[1] - 3
        expected = [branch.residual(i, state) for i, state in enumerate(branch(*inputs))]
        actual = [session.residual(i, offset) for i, offset in enumerate(session(*inputs))]
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_file_without_external_data_or_metadata_raises(video_file, tmp_path):
    import onnx as library

    _, exported = video_file
    alone = tmp_path / "control.onnx"
    alone.write_bytes(exported.path.read_bytes())
    with pytest.raises(ModelExportError, match="which is not beside it"):
        read_metadata(alone)
    model = library.load(str(exported.path), load_external_data=False)
    del model.metadata_props[:]
    alone.write_bytes(model.SerializeToString())
    with pytest.raises(ModelExportError, match="do not name a part of a model"):
        read_metadata(alone)
    alone.write_bytes(b"\x80\x04 not protobuf")
    with pytest.raises(ModelExportError, match="not a readable ONNX file"):
        read_metadata(alone)
    with pytest.raises(ModelExportError, match="There is no file"):
        read_metadata(tmp_path / "none.onnx")


@pytest.fixture(scope="module")
def autoencoder():
    return KeyframeAutoencoder.from_wan(tiny_wan_autoencoder())


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint whose autoencoder has the weights of the fixture above."""
    root = tmp_path_factory.mktemp("model")
    write_checkpoint(root)
    return root


@pytest.fixture(scope="module")
def decoder(published):
    """Exported on the command line."""
    target = published / "out" / "decoder.onnx"
    result = CliRunner().invoke(app, ["export", str(published), str(target), "--part", "autoencoder-decoder"])
    assert result.exit_code == 0, result.output
    return onnx.ExportedFile(target, None, read_metadata(target))


@pytest.fixture(scope="module")
def encoder(published):
    """Exported on the command line, with its output."""
    target = published / "out" / "encoder.onnx"
    result = CliRunner().invoke(app, ["export", str(published), str(target), "--part", "autoencoder-encoder"])
    assert result.exit_code == 0, result.output
    return target, result.output


def test_command_line_exports_and_prints_errors(encoder):
    target, output = encoder
    for word in ("reading", "tracing", "writing", "verifying", "max abs error", "opset 20", "3 x 5 x 2", "ok"):
        assert word in output, output
    assert "differs" not in output
    assert read_metadata(target)["part"] == "autoencoder-encoder"


@pytest.mark.parametrize("size", [(1, 1, 1), (4, 3, 7), (2, 10, 4)])
@torch.no_grad()
def test_exported_autoencoder_equals_torch_at_other_sizes(autoencoder, encoder, decoder, size):
    session = ExportedAutoencoder.of(
        autoencoder, encoder=OnnxRuntimeRunner(encoder[0]), decoder=OnnxRuntimeRunner(decoder.path)
    )
    assert not list(session.parameters())
    (latents,) = autoencoder_example_inputs(decoder.metadata, size, torch.float32, seed=4)
    images = autoencoder.decode(latents)
    torch.testing.assert_close(session.decode(latents), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(session.encode(images), autoencoder.encode(images), atol=1e-5, rtol=0)
    clip = latents.transpose(0, 1)
    torch.testing.assert_close(torch.stack(list(session.decode_frames(clip))), images, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="was expected"):
        session.decode(latents[:, :-1])


@torch.no_grad()
def test_exported_autoencoder_without_encoder_uses_torch(autoencoder, decoder):
    session = ExportedAutoencoder.of(autoencoder, decoder=OnnxRuntimeRunner(decoder.path))
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    torch.testing.assert_close(session.encode(images), autoencoder.encode(images))


def test_verify_detects_other_weights(autoencoder, decoder):
    results = verify(decoder, autoencoder, sizes=[(1, 2, 3)])
    assert results[0].passes("float32")
    other = KeyframeAutoencoder.from_wan(tiny_wan_autoencoder(seed=1))
    assert not verify(decoder, other, sizes=[(1, 2, 3)])[0].passes("float32")


def test_file_that_fails_verification_is_removed(autoencoder, decoder, tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "model")
    target = tmp_path / "decoder.onnx"

    def fake_export(model, path, **_):
        path.write_bytes(decoder.path.read_bytes())
        return onnx.ExportedFile(path, None, decoder.metadata)

    monkeypatch.setattr(onnx, "export_autoencoder", fake_export)
    failed = [VerificationResult((1, 2, 3), 0.5, 1.0, 0.1, 0.1)]
    monkeypatch.setattr("worldstereo_ros.export.verify.verify", lambda *_, **__: failed)
    result = CliRunner().invoke(app, ["export", str(tmp_path / "model"), str(target), "--part", "autoencoder-decoder"])
    assert result.exit_code == 1
    assert "differ by 0.5" in result.output
    assert not target.exists()


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "control.onnx"
    path.write_bytes(b"old")

    class FullDisk:
        @staticmethod
        def save(model, file, external_data=None):
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "require_package", lambda name: FullDisk)
    with pytest.raises(ModelExportError, match="No space left on device"):
        onnx._save(None, path, external=True, tag="x")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "a.bin"}, r"ends in '\.bin'"),
        ({"opset": 12}, "18 to 23"),
        ({"attention": "flash"}, "fused or standard"),
    ],
)
def test_unsupported_export_arguments_raise(tmp_path, arguments, message):
    arguments = {"path": "a.onnx", **arguments}
    with pytest.raises(ModelExportError, match=message):
        export_control(tiny_transformer().controlnet, tmp_path / arguments.pop("path"), **arguments)
    assert not list(tmp_path.iterdir())


def test_choose_providers_by_device():
    cpu, cuda = torch.device("cpu"), torch.device("cuda:1")
    all_providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert choose_providers(cpu, all_providers) == ["CPUExecutionProvider"]
    assert choose_providers(cuda, all_providers) == all_providers[1:]
    assert choose_providers(cuda, all_providers, "tensorrt") == all_providers
    with pytest.raises(
        ModelExportError, match=r"pip uninstall onnxruntime` and `pip install 'worldstereo_ros\[export-gpu\]'"
    ):
        choose_providers(cuda, ["CPUExecutionProvider"])
    with pytest.raises(ModelExportError, match="the provider of onnxruntime is cuda"):
        choose_providers(cpu, all_providers, "cuda")
    with pytest.raises(ModelExportError, match="provider is 'npu'; choose auto"):
        choose_providers(cpu, all_providers, "npu")


def test_unavailable_backends_raise(monkeypatch):
    model = tiny_transformer()
    with pytest.raises(ModelExportError, match="torch, onnxruntime, tensorrt"):
        use_control_backend(model, "jax")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ModelExportError, match="TensorRT is needed and cannot be imported"):
        use_control_backend(model, "tensorrt")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelExportError, match=r"pip install 'worldstereo_ros\[export\]'"):
        use_control_backend(model, "onnxruntime")
    with pytest.raises(ModelExportError, match="control branch is none"):
        use_control_backend(tiny_transformer(control=None), "onnxruntime")


def test_folder_is_not_exported_as_a_point_cloud(tmp_path):
    result = CliRunner().invoke(app, ["export", str(tmp_path), str(tmp_path / "cloud.ply")])
    assert result.exit_code == 1
    assert "ends in .onnx" in result.output


def test_load_pipeline_sets_the_control_backend(monkeypatch, replaced, tmp_path):
    from types import SimpleNamespace

    from worldstereo_ros.export.runtime import ExportedControlBranch
    from worldstereo_ros.pipelines.auto import load_pipeline
    from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline
    from worldstereo_ros.ros.node import world_factory
    from worldstereo_ros.ros.node.parameters import ConfigurationError, make_parameters

    monkeypatch.setattr(runtime, "cache_folder", lambda: replaced[2])
    pipeline = SimpleNamespace(transformer=tiny_transformer(control=TWO_BLOCKS))
    monkeypatch.setattr(WorldStereoPipeline, "from_pretrained", lambda *_, **__: pipeline)
    assert not isinstance(load_pipeline(str(tmp_path)).transformer.controlnet, ExportedControlBranch)
    assert isinstance(
        load_pipeline(str(tmp_path), control_backend="onnxruntime").transformer.controlnet, ExportedControlBranch
    )
    with pytest.raises(ConfigurationError, match="'geometric' has no control branch"):
        world_factory.build_world(
            make_parameters({"model": "geometric", "control_backend": "onnxruntime", "device": "cpu"})
        )
    with pytest.raises(ConfigurationError, match="one of torch, onnxruntime, tensorrt was expected"):
        make_parameters({"control_backend": "openvino"})
