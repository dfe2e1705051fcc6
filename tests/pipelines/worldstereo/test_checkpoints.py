"""Invalid checkpoints in the published layout, names of models, and the command line."""

import json

import numpy as np
import pytest
from helpers.checkpoints import CAMERA as CAMERA_VARIANT
from helpers.checkpoints import DMD_VARIANT, change_config, edit_tensors, write_checkpoint
from helpers.walls import ODD_WALL as WALL
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.models import VARIANTS, CheckpointError
from worldstereo_ros.pipelines.auto import load_pipeline, split_variant

CAMERA = WALL.camera
pytestmark = pytest.mark.usefixtures("one_thread")


# --- checkpoints and names ---


def truncate(root):
    file = root / DMD_VARIANT / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def insert_nan(root):
    def change(tensors):
        name = next(name for name in tensors if name.startswith("blocks.0.attn1"))
        tensors[name][...] = float("nan")

    edit_tensors(root / DMD_VARIANT / "model.safetensors", change)


def other_variant(root):
    change_config(root / DMD_VARIANT, dmd_steps=None)


def truncate_text(root):
    file = root / "base" / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def drop_text_tensor(root):
    edit_tensors(root / "base" / "text_encoder" / "model.safetensors", lambda t: t.pop(sorted(t)[0]))


def drop(*parts):
    def remove(root):
        folder = root.joinpath("base", *parts)
        folder.rename(folder.with_name("gone"))

    return remove


def corrupt_tokenizer(root):
    for file in (root / "base" / "tokenizer").iterdir():
        file.write_text("{")


def pickled_text(root):
    folder = root / "base" / "text_encoder"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "model.safetensors"),
        (insert_nan, "not finite"),
        (other_variant, "worldstereo-memory-dmd was requested"),
        (truncate_text, "text_encoder"),
        (drop_text_tensor, "text_encoder lacks 1 tensor"),
        (pickled_text, "text_encoder"),
        (drop("image_encoder"), "no image_encoder"),
        (drop("tokenizer"), "no tokenizer"),
        (drop("vae"), "vae"),
        (corrupt_tokenizer, "tokenizer"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_invalid_checkpoints_raise_a_one_line_error(published_checkpoints, tmp_path, damage, message):
    import shutil

    root = tmp_path / "model"
    shutil.copytree(published_checkpoints, root)
    damage(root)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pipeline(str(root), variant="memory-dmd")
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "geometricc"}, "'geometricc' is unknown"),
        ({"model": "no/such folder"}, "neither|no model"),
        ({"model": ".", "dtype": "int8"}, "'int8' is unknown"),
        ({"model": "a/b:memory", "variant": "camera"}, "camera was requested"),
        ({"model": ".", "variant": "video"}, "'video' does not exist"),
    ],
)
def test_load_pipeline_rejects_unknown_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_pipeline(**arguments)


def test_split_variant_splits_names_but_not_existing_paths(tmp_path):
    assert split_variant("owner/name:memory") == ("owner/name", "memory")
    assert split_variant("owner/name", "camera") == ("owner/name", "camera")
    odd = tmp_path / "a:memory"
    odd.mkdir()
    assert split_variant(str(odd)) == (str(odd), "")


# --- the command line ---


def write_source(root):
    """A posed sequence of one frame in the layout of the example data."""
    import cv2

    view = WALL.view()
    (root / "frames").mkdir(parents=True)
    (root / "depth").mkdir()
    cv2.imwrite(str(root / "frames" / "000000.png"), view.image[..., ::-1])
    cv2.imwrite(str(root / "depth" / "000000.png"), (view.depth * 1000).astype(np.uint16))
    K = {name: getattr(CAMERA, name) for name in ("width", "height", "fx", "fy", "cx", "cy")}
    (root / "intrinsics.json").write_text(json.dumps({**K, "depth_scale": 1000.0}))
    (root / "poses.txt").write_text("0 0 0 0 0 0 0 1\n")
    return root


def test_imagine_and_inspect_commands(published_checkpoints, tmp_path):
    source = write_source(tmp_path / "scene")
    out = tmp_path / "out"
    arguments = ["imagine", str(source), "--model", str(published_checkpoints), "--variant", "memory-dmd"]
    result = CliRunner().invoke(app, [*arguments, "--views", "5", "--path", "turn", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert (out / "contact_sheet.png").stat().st_size > 1000

    result = CliRunner().invoke(app, ["inspect", str(published_checkpoints)])
    assert result.exit_code == 0, result.output
    for variant in VARIANTS:
        assert variant in result.output
    assert "memory needed" in result.output
    result = CliRunner().invoke(app, ["inspect", f"{published_checkpoints}:camera"])
    assert DMD_VARIANT not in result.output
    assert CAMERA_VARIANT in result.output


def test_inspect_command_fails_for_invalid_checkpoints(tmp_path):
    write_checkpoint(tmp_path, CAMERA_VARIANT, autoencoder=False)
    edit_tensors(tmp_path / CAMERA_VARIANT / "model.safetensors", lambda t: t.pop("controlnet.proj_in.weight"))
    result = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert result.exit_code == 1
    assert "controlnet.proj_in.weight" in result.output
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "nothing")])
    assert result.exit_code == 1
    assert "nothing" in result.output
