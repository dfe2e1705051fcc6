"""The small model: checkpoints of its kind at toy size, and the bundled weights."""

import json
import logging
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoints import CAMERA as CAMERA_VARIANT
from helpers.checkpoints import (
    DMD_VARIANT,
    MEMORY,
    SMALL_TEXT_DIM,
    change_config,
    write_checkpoint,
    write_small_checkpoint,
)
from helpers.paths import REPOSITORY
from helpers.walls import WALL, away
from safetensors import safe_open
from typer.testing import CliRunner

import worldstereo_ros
from worldstereo_ros.cli.doctor import examine
from worldstereo_ros.cli.main import app
from worldstereo_ros.evaluation.demo_scenarios import scene_scenario
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.models import VARIANTS, CheckpointError, find_checkpoint, inspect_checkpoint
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline
from worldstereo_ros.weights.bundled import bundled_folder
from worldstereo_ros.world import WorldModel

CAMERA = WALL.camera
BUNDLED = bundled_folder("small")
MEGABYTE = 1_000_000
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def installed(small_checkpoint, monkeypatch):
    """Installs the toy model in place of the bundled one."""
    monkeypatch.setattr(worldstereo_ros, "__path__", [str(small_checkpoint.parents[1]), *worldstereo_ros.__path__])
    return small_checkpoint


@pytest.fixture(scope="module")
def pipeline(small_checkpoint):
    return WorldStereoPipeline.from_pretrained(small_checkpoint, "memory-dmd")


def transformer_calls(pipeline, **arguments) -> list[tuple[tuple, dict]]:
    """The arguments of the transformer, one row for each forward pass."""
    rows = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda _module, args, kwargs: rows.append((args, kwargs)), with_kwargs=True
    )
    try:
        list(WALL.world(pipeline).imagine(away(3), CAMERA, **arguments))
    finally:
        hook.remove()
    return rows


# --- config.json ---


@pytest.mark.parametrize(("variant", "guidance"), [(CAMERA_VARIANT, 5.0), (MEMORY, 5.0), (DMD_VARIANT, 1.0)])
def test_config_defaults_are_those_of_published_checkpoints(tmp_path, variant, guidance):
    write_checkpoint(tmp_path, variant, autoencoder=False)
    settings = find_checkpoint(tmp_path).config
    assert (settings.text_encoder, settings.guidance_scale, settings.render_fill) == ("umt5", None, "grey")
    assert settings.uses_text
    assert not settings.fills_render_holes
    assert settings.guidance == guidance


def test_config_keys_of_small_models_are_read(small_checkpoint):
    settings = find_checkpoint(small_checkpoint, "memory").config
    assert not settings.uses_text
    assert settings.fills_render_holes
    assert settings.guidance == 1.0
    report = str(inspect_checkpoint(small_checkpoint, "memory"))
    assert "UniPC, no guidance" in report
    assert "prompts are ignored" in report


def test_guidance_is_off_without_text_unless_configured(tmp_path):
    write_checkpoint(tmp_path, MEMORY, autoencoder=False)
    change_config(tmp_path / MEMORY, text_encoder="none")
    assert find_checkpoint(tmp_path).config.guidance == 1.0
    change_config(tmp_path / MEMORY, text_encoder="umt5", guidance_scale=3)
    assert find_checkpoint(tmp_path).config.guidance == 3.0
    assert "UniPC, guidance 3" in str(inspect_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_encoder": "bert"}, "text_encoder is 'bert'; umt5 or none was expected"),
        ({"text_encoder": ["none"]}, r"text_encoder is \['none'\]"),
        ({"render_fill": "black"}, "render_fill is 'black'; grey or smooth was expected"),
        ({"render_fill": True}, "render_fill is True"),
        ({"guidance_scale": "5"}, "guidance_scale is '5'; a number in 1..100"),
        ({"guidance_scale": True}, "guidance_scale is True"),
        ({"guidance_scale": 0}, "guidance_scale is 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": 1e30}, r"guidance_scale is 1e\+30"),
        ({"guidance_scale": 5}, "guidance_scale is 5 and text_encoder is none; .* must be 1"),
    ],
)
def test_config_rejects_invalid_values(tmp_path, changes, message):
    root = write_small_checkpoint(tmp_path, (MEMORY,))
    change_config(root / MEMORY, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        find_checkpoint(root)
    assert str(caught.value).endswith(".")


# --- without text ---


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_imagine_without_text_and_image_encoders(small_checkpoint, variant):
    assert {folder.name for folder in (small_checkpoint / "base").iterdir()} == {"transformer", "vae", "scheduler"}
    pipeline = WorldStereoPipeline.from_pretrained(small_checkpoint, variant, steps=4)
    views = list(WALL.world(pipeline).imagine(away(6), CAMERA))
    assert pipeline.name == variant
    assert [view.image.shape for view in views] == [(48, 64, 3)] * 6
    assert views[0].observed_fraction > 0.8
    assert views[-1].observed_fraction < 0.05
    assert views[-1].image.std() > 1


def test_transformer_gets_one_zero_token_and_runs_once_per_step(small_checkpoint):
    rows = transformer_calls(load_pipeline(str(small_checkpoint), variant="memory", steps=3), prompt="a hall")
    assert len(rows) == 3  # guidance would run it twice
    for (_, _, text), _ in rows:
        assert text.shape == (1, 1, SMALL_TEXT_DIM)
        assert not text.any()


def test_ignored_prompt_is_logged_once(small_checkpoint, caplog):
    pipeline = WorldStereoPipeline.from_pretrained(small_checkpoint)
    with caplog.at_level(logging.INFO, logger="worldstereo_ros"):
        plain = list(WALL.world(pipeline).imagine(away(2), CAMERA, prompt=" "))
        assert not caplog.records
        for prompt in ("a red kitchen", "a forest"):
            prompted = list(WALL.world(pipeline).imagine(away(2), CAMERA, prompt=prompt))
            for one, other in zip(plain, prompted, strict=True):
                np.testing.assert_array_equal(one.image, other.image)
    assert [record.getMessage() for record in caplog.records] == [
        "The prompt is ignored: this model has no text conditioning."
    ]


def test_base_with_image_embedding_needs_text(tmp_path):
    write_checkpoint(tmp_path, DMD_VARIANT, encoders=True)
    change_config(tmp_path / DMD_VARIANT, text_encoder="none")
    with pytest.raises(CheckpointError, match="text_encoder none, but its base has an image embedding"):
        WorldStereoPipeline.from_pretrained(tmp_path)


def test_full_vae_without_video_autoencoder_encodes_frames_one_by_one(tmp_path, pipeline):
    root = write_small_checkpoint(tmp_path, (DMD_VARIANT,))
    change_config(root / DMD_VARIANT, latent_cond_mode="full_vae")
    other = WorldStereoPipeline.from_pretrained(root)
    assert other.video_condition is None
    for one, two in zip(transformer_calls(pipeline), transformer_calls(other), strict=True):
        assert torch.equal(one[0][0], two[0][0])


# --- holes ---


def test_smooth_fill_changes_hole_latents_and_keeps_the_hole_mask(tmp_path, pipeline):
    root = write_small_checkpoint(tmp_path, (DMD_VARIANT,), layout=False)
    change_config(root / DMD_VARIANT, render_fill=None)
    (_, smooth), (_, grey) = (transformer_calls(p)[0] for p in (pipeline, WorldStereoPipeline.from_pretrained(root)))
    assert torch.equal(smooth["render_mask"], grey["render_mask"])
    with_holes = smooth["render_mask"].flatten(3).any(3)[0, 0]
    changed = (smooth["render_latent"] != grey["render_latent"]).flatten(3).any(3)[0].any(0)
    assert changed[with_holes].all()
    assert changed.tolist()[0] is False  # the start view
    assert with_holes[-1]


def test_model_with_layout_gets_planes_and_smooth_fill(tmp_path, pipeline):
    plain = WorldStereoPipeline.from_pretrained(write_small_checkpoint(tmp_path, (DMD_VARIANT,), layout=False))
    (_, both), (_, smooth) = (transformer_calls(p)[0] for p in (pipeline, plain))
    assert smooth.get("layout") is None
    difference, channels = both["layout"].split((16, 4), dim=1)
    torch.testing.assert_close(both["render_latent"] + difference, smooth["render_latent"], atol=1e-5, rtol=1e-5)
    assert not both["layout"][:, :, 0].any()  # the start view
    # The wall is extrapolated to both sides of its observed part.
    probability = channels[0, 1]
    assert probability.amax((1, 2)).max() > 0.5
    assert difference[0, :, probability.amax((1, 2)).argmax()].abs().max() > 0.01


def test_layout_needs_smooth_fill(tmp_path):
    root = write_small_checkpoint(tmp_path, (DMD_VARIANT,))
    change_config(root / DMD_VARIANT, render_fill="grey")
    with pytest.raises(CheckpointError, match=r"layout_channels is 20 and render_fill grey; .* must be smooth"):
        find_checkpoint(root)
    settings = find_checkpoint(write_small_checkpoint(tmp_path / "b", (DMD_VARIANT,))).config
    control = {**settings.controlnet_cfg, "layout_channels": 3}
    change_config(tmp_path / "b" / DMD_VARIANT, controlnet_cfg=control)
    with pytest.raises(CheckpointError, match="layout_channels is 3; 0 or 20 was expected"):
        find_checkpoint(tmp_path / "b")


def test_observed_pixels_equal_those_of_the_geometric_pipeline(pipeline):
    for view, memory in zip(
        WALL.world(pipeline).imagine(away(4), CAMERA),
        WALL.world(GeometricPipeline()).imagine(away(4), CAMERA),
        strict=True,
    ):
        np.testing.assert_array_equal(view.observed, memory.observed)
        np.testing.assert_array_equal(view.image[view.observed], memory.image[view.observed])


# --- the name `small` ---


def test_small_is_the_bundled_model(installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()  # a folder of that name is ./small
    assert find_checkpoint("small").root == installed
    with pytest.raises(CheckpointError, match="no folder of a variant"):
        find_checkpoint("./small")
    pipeline = load_pipeline("small")
    assert (pipeline.name, pipeline.config.variant, pipeline.steps) == ("small", DMD_VARIANT, None)
    assert load_pipeline("small:memory").config.variant == MEMORY
    assert load_pipeline("small", variant="camera").config.variant == CAMERA_VARIANT


def test_load_pipeline_passes_options_on(installed):
    pipeline = load_pipeline("small", variant="memory", steps=2, reference_attention="paired", compose_observed=False)
    assert pipeline.transformer.config.reference_attention == "paired"
    stages = []
    views = list(WALL.world(pipeline).imagine(away(2), CAMERA, on_step=lambda *step: stages.append(step)))
    assert [step for step in stages if step[0] == "denoising"] == [("denoising", 0, 2), ("denoising", 1, 2)]
    assert not any(view.observed.any() for view in views)
    with pytest.raises(ValueError, match="0 denoising steps"):
        load_pipeline("small", steps=0)


def test_missing_bundled_model_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(worldstereo_ros, "__path__", [str(tmp_path)])
    for load in (load_pipeline, find_checkpoint, inspect_checkpoint, WorldStereoPipeline.from_pretrained):
        with pytest.raises(
            CheckpointError, match=r"bundled model 'small' is not installed: the folder .* is missing"
        ) as caught:
            load("small")
        assert str(tmp_path / "weights" / "small") in str(caught.value)
        assert "geometric" in str(caught.value)


def test_commands_accept_small(installed, tmp_path):
    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    views = [WALL.view(stamp, 0.1 * stamp) for stamp in range(4)]
    write_sequence(tmp_path / "scene", views)
    run("imagine", tmp_path / "scene", "--model", "small", "--views", 5, "--path", "turn", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "contact_sheet.png").stat().st_size > 1000
    output = run("inspect", "small")
    assert all(variant in output for variant in VARIANTS)
    assert CAMERA_VARIANT not in run("inspect", "small:memory")


def test_evaluate_command_accepts_small(installed, tmp_path):
    write_sequence(tmp_path / "scene", [WALL.view(stamp, 0.1 * stamp) for stamp in range(4)])
    arguments = ["evaluate", "--data", tmp_path / "scene", "--protocol", "single", "--pipeline", "small"]
    result = CliRunner().invoke(app, [str(part) for part in (*arguments, "--json", tmp_path / "rows.json")])
    assert result.exit_code == 0, result.output
    (row,) = (row for row in json.loads((tmp_path / "rows.json").read_text())["rows"] if row["pipeline"] == "small")
    assert row["psnr"] > 5


def small_model_finding():
    return next(finding for finding in examine() if finding.name == "small model")


def test_doctor_checks_the_bundled_model(installed, tmp_path, monkeypatch):
    finding = small_model_finding()
    assert finding.ok
    size = sum(file.stat().st_size for file in installed.rglob("*") if file.is_file())
    assert f"{size / MEGABYTE:.1f} MB" in finding.state
    assert DMD_VARIANT in finding.state
    monkeypatch.setattr(worldstereo_ros, "__path__", [str(tmp_path)])
    finding = small_model_finding()
    assert not finding.ok
    assert not finding.required
    assert finding.fix
    write_small_checkpoint(tmp_path / "weights" / "small", (DMD_VARIANT,))
    file = tmp_path / "weights" / "small" / DMD_VARIANT / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    finding = small_model_finding()
    assert not finding.ok
    assert "truncated" in finding.state


@pytest.mark.slow
def test_wheel_contains_the_weights(tmp_path):
    """Builds a wheel from a copy of the package, with the toy model in place of the bundled one."""
    source = tmp_path / "source"
    (source / "worldstereo_ros").mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(REPOSITORY / name, source)
    shutil.copy(REPOSITORY / "worldstereo_ros" / "__init__.py", source / "worldstereo_ros")
    weights = write_small_checkpoint(source / "worldstereo_ros" / "weights" / "small", max_shard_bytes=100_000)
    (weights / "README.md").write_text("A card.\n")
    (weights / "notes.bin").write_bytes(b"not packaged")
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", str(tmp_path)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if "/weights/" in name}
    there = {str(file.relative_to(source)) for file in weights.rglob("*") if file.is_file()}
    assert len(there) > 8
    assert packed == {name for name in there if not name.endswith(".bin")}


# --- the bundled weights ---


def weights_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_bundled_weights_are_small_complete_and_documented():
    files = [file for file in BUNDLED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 48 * MEGABYTE
    assert max(file.stat().st_size for file in files) <= 16 * MEGABYTE
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".md"}
    card = (BUNDLED / "README.md").read_text()
    assert len(card) > 1000
    for word in ("licen", "seed", "step"):
        assert word in card.lower()
    for file in weights_of(BUNDLED):
        numbers = {"BF16": 0, "F32": 0}
        with safe_open(str(file), framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118 - no mapping
                part = reader.get_slice(name)
                numbers[part.get_dtype()] += int(np.prod(part.get_shape()))
        # Norms, tables and the time embedding stay in full precision.
        assert numbers["F32"] < 0.05 * numbers["BF16"], file
    report = inspect_checkpoint("small")
    assert report.usable
    assert report.variant == DMD_VARIANT
    assert report.from_base == 0


@pytest.mark.parametrize("shape", [(64, 48), (80, 45)], ids=["4:3", "16:9"])
def test_bundled_model_imagines_in_one_step(shape):
    width, height = shape
    scenario = scene_scenario("room", 3, 4, observed_count=4, width=2 * width, height=2 * height)
    pipeline = load_pipeline("small", local_files_only=True)
    stages = []

    def imagine(pipeline, seed):
        world = WorldModel(pipeline)
        for view in scenario.observed_views:
            world.observe(view)
        return list(
            world.imagine(
                scenario.path, scenario.observed_views[0].camera, seed=seed, on_step=lambda *s: stages.append(s)
            )
        )

    views = imagine(pipeline, 5)
    assert [step for step in stages if step[0] == "denoising"] == [("denoising", 0, 1)]
    again, other, memory = imagine(pipeline, 5), imagine(pipeline, 6), imagine(GeometricPipeline(), 5)
    assert len(views) == 4
    assert any((view.image != different.image).any() for view, different in zip(views, other, strict=True))
    for view, same, from_memory in zip(views, again, memory, strict=True):
        assert view.image.shape == (2 * height, 2 * width, 3)
        assert np.isfinite(view.depth).all()
        np.testing.assert_array_equal(view.image, same.image)
        np.testing.assert_array_equal(view.observed, from_memory.observed)
        np.testing.assert_array_equal(view.image[view.observed], from_memory.image[view.observed])
        assert not (view.observed & ~view.covered).any()


def test_doctor_accepts_the_bundled_model():
    assert small_model_finding().ok
