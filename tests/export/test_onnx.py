"""ExportedFile models compute what torch computes, at sizes they were not traced on, and take its place."""

import sys

import pytest
import torch
from helpers.checkpoints import CONTROL, tiny_inputs, tiny_transformer, tiny_wan_autoencoder, write_checkpoint
from typer.testing import CliRunner

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from worldstereo_ros.cli import export
from worldstereo_ros.cli.main import app
from worldstereo_ros.export import onnx, runtime
from worldstereo_ros.export.onnx import (
    ModelExportError,
    autoencoder_example,
    control_example,
    export_autoencoder,
    export_control,
    read_description,
    weights_hash,
)
from worldstereo_ros.export.runtime import (
    ExportedAutoencoder,
    ExportedControlBranch,
    OnnxRuntimeRunner,
    choose_providers,
    use_control_backend,
)
from worldstereo_ros.export.verify import VerificationResult, verify
from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder

TRACED = (2, 3, 4, 3)
SIZES = [(1, 1, 1, 1), (1, 2, 3, 5), (3, 6, 2, 7), (1, 4, 9, 2)]
TWO_BLOCKS = {**CONTROL, "num_layers": 2}


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, 2))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def swapped(tmp_path_factory):
    """A transformer before and after its control branch is run by onnxruntime, and where the file is kept."""
    cache = tmp_path_factory.mktemp("cache")
    before, after = tiny_transformer(control=TWO_BLOCKS), tiny_transformer(control=TWO_BLOCKS)
    use_control_backend(after, "onnxruntime", cache_dir=cache)
    return before, after, cache


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_the_control_branch_is_the_same_at_other_sizes(swapped, size):
    assert size != TRACED
    before, after, _ = swapped
    inputs = control_example(after.controlnet.description, size, torch.float32, seed=2)
    want, got = before.controlnet(*inputs), after.controlnet(*inputs)
    assert [t.shape for t in got] == [t.shape for t in want]
    for index, (a, b) in enumerate(zip(want, got, strict=True)):
        assert a.abs().max() > 0.5
        torch.testing.assert_close(b, a, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            after.controlnet.residual(index, b), before.controlnet.residual(index, a), atol=1e-5, rtol=0
        )


@torch.no_grad()
def test_the_transformer_does_not_notice(swapped):
    before, after, _ = swapped
    inputs = tiny_inputs(before, batch=2, frames=5)
    want = before(**inputs).sample
    torch.testing.assert_close(after(**inputs).sample, want, atol=1e-5, rtol=0)
    changed = {**inputs, "render_latent": inputs["render_latent"] + 1}
    assert (after(**changed).sample - want).abs().max() > 1e-3


@torch.no_grad()
def test_a_small_models_own_layers_stay(tmp_path):
    settings = {**TWO_BLOCKS, "num_layers": 1, "render_prior": [0.4, 0.9], "layout_channels": 20}
    before, after = tiny_transformer(control=settings), tiny_transformer(control=settings)
    for model in (before, after):
        model.controlnet.render_head.weight.fill_(0.1)  # untrained, it says nothing
    use_control_backend(after, "onnxruntime", cache_dir=tmp_path)
    inputs = tiny_inputs(before, frames=5)
    want = before(**inputs).sample
    torch.testing.assert_close(after(**inputs).sample, want, atol=1e-4, rtol=0)
    for layer in (before.controlnet.layout_embedding, before.controlnet.render_head):
        layer.weight.zero_()
        assert (before(**inputs).sample - want).abs().max() > 0.01
        want = before(**inputs).sample


def test_torch_weights_of_a_swapped_branch_are_let_go(swapped):
    before, after, _ = swapped
    names = [name for name, _ in after.named_parameters() if name.startswith("controlnet.")]
    assert names
    assert all(name.startswith("controlnet.proj_out.") for name in names)
    with pytest.raises(ModelExportError, match="load the model again"):
        use_control_backend(after, "torch")
    branch = before.controlnet
    use_control_backend(before, "torch")
    assert before.controlnet is branch


def test_inputs_that_do_not_fit_are_refused(swapped):
    session = swapped[1].controlnet
    latent, volume, temb = control_example(session.description, (1, 2, 2, 2), torch.float32)
    with pytest.raises(ValueError, match=r"volume of the control branch has shape .* was expected"):
        session(latent, volume[..., :-8], temb)
    with pytest.raises(ValueError, match="temb"):
        session(latent, volume, temb[:, :-1])


def test_a_kept_file_is_used_again_and_a_damaged_one_written_again(swapped, monkeypatch):
    before, _, cache = swapped
    (kept,) = (cache / "onnx").iterdir()
    whole, written = kept.read_bytes(), []

    def write_again(branch, path, **_):  # an export takes seconds; this one is known
        written.append(path)
        path.write_bytes(whole)

    monkeypatch.setattr(runtime, "export_control", write_again)
    again = tiny_transformer(control=TWO_BLOCKS)
    use_control_backend(again, "onnxruntime", cache_dir=cache)
    assert written == []

    kept.write_bytes(whole[: len(whole) // 2])
    again = tiny_transformer(control=TWO_BLOCKS)
    use_control_backend(again, "onnxruntime", cache_dir=cache)
    assert written == [kept]
    assert list((cache / "onnx").iterdir()) == [kept]
    inputs = tiny_inputs(before)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).sample, before(**inputs).sample, atol=1e-5, rtol=0)


def test_other_weights_are_another_file():
    one, other = tiny_transformer(seed=0).controlnet, tiny_transformer(seed=0).controlnet
    assert weights_hash(one) == weights_hash(other)
    with torch.no_grad():
        other.proj_out[0].bias[3] += 1e-6
    assert weights_hash(one) != weights_hash(other)


@pytest.fixture(scope="module")
def video_file(tmp_path_factory):
    """Weights for video latents (three frames in front), plain operators, offsets, weights in a file beside."""
    branch = tiny_transformer(control={**CONTROL, "mask_downsample": 4}).controlnet
    path = tmp_path_factory.mktemp("video") / "control.onnx"
    exported = export_control(branch, path, attention="standard", offsets=True, opset=18, external_bytes=0)
    return branch, exported


@torch.no_grad()
def test_offsets_with_weights_beside_the_file(video_file):
    import onnx as library

    branch, exported = video_file
    assert sorted(p.name for p in exported.path.parent.iterdir()) == [exported.path.name, exported.data.name]
    model = library.load(str(exported.path), load_external_data=False)
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 18)}
    assert exported.path.stat().st_size < exported.data.stat().st_size
    session = ExportedControlBranch(OnnxRuntimeRunner(exported.path), read_description(exported.path))
    for size in SIZES:
        inputs = control_example(exported.description, size, torch.float32, seed=3)
        assert inputs[1].shape[2] == 4 * size[1] - 3
        want = [branch.residual(i, state) for i, state in enumerate(branch(*inputs))]
        got = [session.residual(i, offset) for i, offset in enumerate(session(*inputs))]
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_a_file_without_its_weights_or_description_is_refused(video_file, tmp_path):
    import onnx as library

    _, exported = video_file
    alone = tmp_path / "control.onnx"
    alone.write_bytes(exported.path.read_bytes())
    with pytest.raises(ModelExportError, match="which is not beside it"):
        read_description(alone)
    model = library.load(str(exported.path), load_external_data=False)
    del model.metadata_props[:]
    alone.write_bytes(model.SerializeToString())
    with pytest.raises(ModelExportError, match="does not say which part"):
        read_description(alone)
    alone.write_bytes(b"\x80\x04 not protobuf")
    with pytest.raises(ModelExportError, match="no ONNX file"):
        read_description(alone)
    with pytest.raises(ModelExportError, match="There is no file"):
        read_description(tmp_path / "none.onnx")


@pytest.fixture(scope="module")
def autoencoder():
    return KeyframeAutoencoder.from_wan(tiny_wan_autoencoder())


@pytest.fixture(scope="module")
def decoder(autoencoder, tmp_path_factory):
    return export_autoencoder(autoencoder, tmp_path_factory.mktemp("decoder") / "decoder.onnx")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Written by the command line from a checkpoint; that autoencoder has the weights of the fixture above."""
    root = tmp_path_factory.mktemp("model")
    write_checkpoint(root)
    target = root / "out" / "encoder.onnx"
    result = CliRunner().invoke(app, ["export", str(root), str(target), "--part", "autoencoder-encoder"])
    assert result.exit_code == 0, result.output
    return target, result.output


def test_the_command_line_exports_and_shows_how_exact(encoder):
    target, output = encoder
    for word in ("reading", "tracing", "writing", "verifying", "max abs error", "opset 20", "3 x 5 x 2", "ok"):
        assert word in output, output
    assert "differs" not in output
    assert read_description(target)["part"] == "autoencoder-encoder"


@pytest.mark.parametrize("size", [(1, 1, 1), (4, 3, 7), (2, 10, 4)])
@torch.no_grad()
def test_the_autoencoder_is_the_same_at_other_sizes(autoencoder, encoder, decoder, size):
    session = ExportedAutoencoder.of(
        autoencoder, encoder=OnnxRuntimeRunner(encoder[0]), decoder=OnnxRuntimeRunner(decoder.path)
    )
    assert not list(session.parameters())
    (latents,) = autoencoder_example(decoder.description, size, torch.float32, seed=4)
    pictures = autoencoder.decode(latents)
    torch.testing.assert_close(session.decode(latents), pictures, atol=1e-5, rtol=0)
    torch.testing.assert_close(session.encode(pictures), autoencoder.encode(pictures), atol=1e-5, rtol=0)
    clip = latents.transpose(0, 1)
    torch.testing.assert_close(torch.stack(list(session.decode_frames(clip))), pictures, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="was expected"):
        session.decode(latents[:, :-1])


@torch.no_grad()
def test_one_half_may_stay_in_torch(autoencoder, decoder):
    session = ExportedAutoencoder.of(autoencoder, decoder=OnnxRuntimeRunner(decoder.path))
    pictures = torch.rand(2, 3, 16, 24) * 2 - 1
    torch.testing.assert_close(session.encode(pictures), autoencoder.encode(pictures))


def test_an_error_in_an_exported_model_is_seen(autoencoder, decoder):
    checks = verify(decoder, autoencoder, sizes=[(1, 2, 3)])
    assert checks[0].passes("float32")
    other = KeyframeAutoencoder.from_wan(tiny_wan_autoencoder(seed=1))
    assert not verify(decoder, other, sizes=[(1, 2, 3)])[0].passes("float32")


def test_a_file_that_computes_something_else_is_removed(autoencoder, decoder, tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "model")
    target = tmp_path / "decoder.onnx"

    def copied(model, path, **_):
        path.write_bytes(decoder.path.read_bytes())
        return onnx.ExportedFile(path, None, decoder.description)

    monkeypatch.setattr(export, "export_autoencoder", copied)
    monkeypatch.setattr(export, "verify", lambda *_, **__: [VerificationResult((1, 2, 3), 0.5, 1.0, 0.1, 0.1)])
    result = CliRunner().invoke(app, ["export", str(tmp_path / "model"), str(target), "--part", "autoencoder-decoder"])
    assert result.exit_code == 1
    assert "differ by 0.5" in result.output
    assert not target.exists()


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "control.onnx"
    path.write_bytes(b"old")

    class Full:
        @staticmethod
        def save(model, where, external_data=None):
            where.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "require_package", lambda name: Full)
    with pytest.raises(ModelExportError, match="No space left on device"):
        onnx._save(None, path, external=True, tag="x")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"path": "a.bin"}, r"ends in '\.bin'"),
        ({"opset": 12}, "18 to 23"),
        ({"attention": "flash"}, "fused or standard"),
    ],
)
def test_exports_that_cannot_be_are_refused(tmp_path, arguments, sentence):
    given = {"path": "a.onnx", **arguments}
    with pytest.raises(ModelExportError, match=sentence):
        export_control(tiny_transformer().controlnet, tmp_path / given.pop("path"), **given)
    assert not list(tmp_path.iterdir())


def test_providers_follow_the_device():
    cpu, cuda = torch.device("cpu"), torch.device("cuda:1")
    everything = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert choose_providers(cpu, everything) == ["CPUExecutionProvider"]
    assert choose_providers(cuda, everything) == everything[1:]
    assert choose_providers(cuda, everything, "tensorrt") == everything
    with pytest.raises(ModelExportError, match="onnxruntime-gpu"):
        choose_providers(cuda, ["CPUExecutionProvider"])
    with pytest.raises(ModelExportError, match="asked to run on cuda"):
        choose_providers(cpu, everything, "cuda")
    with pytest.raises(ModelExportError, match="not known"):
        choose_providers(cpu, everything, "npu")


def test_backends_that_cannot_be_are_refused(monkeypatch):
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


def test_a_folder_is_not_exported_as_a_cloud(tmp_path):
    result = CliRunner().invoke(app, ["export", str(tmp_path), str(tmp_path / "cloud.ply")])
    assert result.exit_code == 1
    assert "ends in .onnx" in result.output


def test_the_backend_is_chosen_where_pipelines_are_loaded(monkeypatch, swapped, tmp_path):
    from types import SimpleNamespace

    from worldstereo_ros.export.runtime import ExportedControlBranch
    from worldstereo_ros.pipelines.auto import load_pipeline
    from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline
    from worldstereo_ros.ros.node import world_factory
    from worldstereo_ros.ros.node.parameters import ConfigurationError, make_parameters

    monkeypatch.setattr(runtime, "cache_folder", lambda: swapped[2])
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
    with pytest.raises(ConfigurationError, match="must be one of torch, onnxruntime, tensorrt"):
        make_parameters({"control_backend": "openvino"})
