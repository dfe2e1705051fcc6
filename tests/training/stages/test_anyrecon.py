"""Training of AnyRecon's LoRA at toy size: data, all three phases, and files that the pipeline reads."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.anyrecon_files import write_anyrecon
from helpers.training_runs import QUIET, SMOKE
from safetensors.torch import load_file

from worldstereo_ros.models.checkpoints.wan_loading import load_wan_transformer, open_wan_transformer
from worldstereo_ros.models.lora_layers import (
    adapter_factors,
    adapter_parameters,
    add_lora,
    lora_layers,
    set_adapter,
    set_factors,
)
from worldstereo_ros.models.worldstereo.context_window import ContextWindow
from worldstereo_ros.training.config import StageConfig, TrainingConfigError
from worldstereo_ros.training.data.capture_clips import choose_capture_frames, sample_capture_clip
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.stages import anyrecon
from worldstereo_ros.training.stages.anyrecon import (
    FAKE,
    STUDENT,
    TEACHER,
    AnyReconStage,
    AnyReconTraining,
    train_anyrecon,
)
from worldstereo_ros.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
STAGE = StageConfig(steps=2, batch=2, frames=6, learning_rate=1e-2, warmup=0, validate_minutes=0, critic_updates=2)
TOY = AnyReconTraining(
    stage=STAGE,
    size=(32, 48),
    rank=2,
    window=ContextWindow(1, 1, 2),
    worlds=SMOKE.worlds,
    device="cpu",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_anyrecon(tmp_path_factory.mktemp("base"), lora="")


@pytest.fixture(scope="module")
def worlds(training_worlds):
    return WorldDataset(training_worlds, "training", 4), WorldDataset(training_worlds, "validation", 2)


def make_stage(phase, base, folder, worlds, settings=TOY):
    folder.mkdir(exist_ok=True)
    return AnyReconStage(phase, base, folder, settings, torch.device("cpu"), *worlds)


# --- clips ---


def test_captures_are_the_first_frame_and_two_to_four_more_half_of_them_near():
    random = np.random.default_rng(0)
    chosen = [choose_capture_frames(40, random) for _ in range(2000)]
    assert all(frames[0] == 0 and frames == sorted(set(frames)) for frames in chosen)
    assert {len(frames) for frames in chosen} == {3, 4, 5}
    near = np.mean([max(frames) < 20 for frames in chosen])
    assert 0.5 < near < 0.68  # half of them by intent, others by chance
    assert max(choose_capture_frames(3, random)) < 3
    assert len(choose_capture_frames(3, random)) == 2


def test_clips_have_captures_first_and_renders_of_their_points(worlds):
    training, _ = worlds
    random = np.random.default_rng(1)
    errors, others = [], []
    for world in training.sample_worlds(4, random):
        clip = sample_capture_clip(world, 8, random)
        assert len(clip.images) == len(clip.frames) == len(clip.masks) == 8
        assert sorted(clip.positions) == list(range(8))
        assert clip.positions[0] == 0
        targets = clip.positions[clip.captures :]
        assert targets == sorted(targets)
        for index in range(clip.captures):
            assert clip.masks[index].all()
            assert np.array_equal(clip.frames[index], clip.images[index])
        layers = (layer[clip.captures :] for layer in (clip.frames, clip.images, clip.masks))
        for frame, image, visible in zip(*layers, strict=True):
            errors.append(np.abs(frame.astype(int) - image)[visible].mean(axis=-1))
            others.append(np.abs(frame.astype(int) - image[:, ::-1])[visible].mean(axis=-1))
    error, other = (np.concatenate(values) for values in (errors, others))
    assert error.mean() < 0.6 * other.mean()  # a render shows the view that it is of


def test_clips_longer_than_a_walk_are_an_error(worlds):
    world = worlds[0].sample_worlds(1, np.random.default_rng(0))[0]
    with pytest.raises(InputError, match="A clip of 900 frames was requested"):
        sample_capture_clip(world, 900, np.random.default_rng(0))


# --- layers ---


@torch.no_grad()
def test_layers_compute_what_a_merged_lora_does(base, tmp_path):
    from worldstereo_ros.models.checkpoints.lora import save_lora

    files = open_wan_transformer(base)
    model = load_wan_transformer(files)
    original = {new: name for name, new in files.names.items()}
    names = ["blocks.0.attn1.to_q.weight", "blocks.1.ffn.net.2.weight"]
    add_lora(model, names, 3, ("a", "b"))
    for factor in adapter_parameters(model, "b"):
        factor.normal_(std=0.3)
    inputs = (torch.randn(1, 36, 2, 4, 6), torch.tensor([500.0]), torch.randn(1, 512, 24), torch.randn(1, 5, 32))
    plain = model(*inputs).sample
    set_adapter(model, "b")
    changed = model(*inputs).sample
    save_lora(tmp_path / "b.safetensors", {original[n]: pair for n, pair in adapter_factors(model, "b").items()})
    merged = load_wan_transformer(open_wan_transformer(base, tmp_path / "b.safetensors"))
    torch.testing.assert_close(merged(*inputs).sample, changed, atol=1e-4, rtol=1e-4)
    assert (changed - plain).abs().max() > 1e-2
    set_adapter(model, "")
    torch.testing.assert_close(model(*inputs).sample, plain)  # a new adapter changes nothing
    with pytest.raises(InputError, match="no adapter 'c'; a, b exist"):
        set_adapter(model, "c")


def test_wrong_layers_and_factors_are_errors(base):
    model = load_wan_transformer(open_wan_transformer(base))
    with pytest.raises(InputError, match="no weight of a linear layer"):
        add_lora(model, ["patch_embedding.weight"], 2, ("a",))
    with pytest.raises(InputError, match="0 weights, rank 2"):
        add_lora(model, [], 2, ("a",))
    add_lora(model, ["proj_out.weight"], 2, ("a",))
    with pytest.raises(InputError, match="changes other weights"):
        set_factors(model, "a", {})
    with pytest.raises(InputError, match="has rank 3"):
        set_factors(model, "a", {"proj_out.weight": (torch.zeros(3, 48), torch.zeros(64, 3))})


# --- phases ---


def test_all_phases_train_and_write_published_files(base, tmp_path, training_worlds):
    run = tmp_path / "run"
    for phase in ("dense", "sparse", "distill"):
        metrics = train_anyrecon(base, run, phase, TOY, worlds=training_worlds, console=QUIET)
        assert np.isfinite(metrics["loss"])
        file = run / f"{phase}.safetensors"
        lora = open_wan_transformer(base, file).lora
        assert len(lora.pairs) == 2 * 10  # the modules of the published file: none of the image attention
        assert not any("_img" in name for name in lora.pairs)
        assert set(lora.ranks.values()) == {2}
        assert all(name.endswith((".lora_A.default.weight", ".lora_B.default.weight")) for name in load_file(file))
    assert (run / "logs" / "anyrecon-distill.png").is_file()
    dense, distilled = (load_file(run / f"{name}.safetensors") for name in ("dense", "distill"))
    assert any(not torch.equal(dense[name], distilled[name]) for name in dense)
    from worldstereo_ros.pipelines.auto import load_pipeline

    pipeline = load_pipeline(f"anyrecon:{base}", lora=run / "distill.safetensors", size=(32, 48), depth=None)
    (image,) = pipeline.generate([np.zeros((32, 48, 3), np.uint8)], [np.zeros((32, 48), bool)])
    assert image.shape == (32, 48, 3)


def test_the_base_stays_as_it_is_and_the_loss_falls(base, tmp_path, worlds):
    stage = make_stage("dense", base, tmp_path / "run", worlds, replace(TOY, stage=replace(STAGE, batch=1)))
    frozen = {n: p.clone() for n, p in stage.model.named_parameters() if ".down." not in n and ".up." not in n}
    stage.start_step()
    (group,) = stage.parameter_groups
    optimizer = torch.optim.Adam(group.parameters, lr=2e-2)
    losses = []
    for _ in range(25):
        stage.generator.manual_seed(0)  # the same noise, so that the losses can be compared
        loss, _ = group.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    state = dict(stage.model.named_parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in frozen.items())


def test_distillation_moves_student_and_fake_but_not_the_teacher(base, tmp_path, worlds):
    folder = tmp_path / "run"
    make_stage("dense", base, folder, worlds).save()
    stage = make_stage("distill", base, folder, worlds)
    before = {name: [p.clone() for p in adapter_parameters(stage.model, name)] for name in (STUDENT, TEACHER, FAKE)}
    stage.start_step()
    for group in stage.parameter_groups:
        loss, _ = group.loss()
        loss.backward()
        with torch.no_grad():
            for parameter in group.parameters:
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
    moved = {
        name: any(
            not torch.equal(a, b) for a, b in zip(before[name], adapter_parameters(stage.model, name), strict=True)
        )
        for name in before
    }
    assert moved == {STUDENT: True, TEACHER: False, FAKE: True}
    assert {layer.active for layer in lora_layers(stage.model).values()} == {STUDENT}


def test_phases_build_on_each_other(base, tmp_path, worlds, monkeypatch):
    with pytest.raises(TrainingConfigError, match="train the phase dense first"):
        make_stage("sparse", base, tmp_path / "empty", worlds)
    with pytest.raises(TrainingConfigError, match="no phase 'warm'; one of dense, sparse, distill"):
        train_anyrecon(base, tmp_path / "empty", "warm", TOY)
    with pytest.raises(TrainingConfigError, match="multiples of 16"):
        train_anyrecon(base, tmp_path / "empty", "dense", replace(TOY, size=(30, 48)))
    monkeypatch.setattr(anyrecon, "MAX_CPU_PARAMETERS", 10)
    with pytest.raises(TrainingConfigError, match="cannot be trained on a CPU"):
        train_anyrecon(base, tmp_path / "empty", "dense", TOY)
    dense = make_stage("dense", base, tmp_path / "run", worlds)
    assert dense.model.context_window is None
    with torch.no_grad():
        for factor in adapter_parameters(dense.model, STUDENT):
            factor.fill_(0.01)
    dense.save()
    sparse = make_stage("sparse", base, tmp_path / "run", worlds)
    assert sparse.model.context_window == TOY.window
    assert all((factor == 0.01).all() for factor in adapter_parameters(sparse.model, STUDENT))


def test_the_command_line_trains_and_says_what_is_missing(base, tmp_path, training_worlds):
    from typer.testing import CliRunner

    from worldstereo_ros.cli.main import app

    def run(*arguments):
        command = ["train", "anyrecon", *map(str, arguments), "--size", "32", "48", "--frames", "6", "--rank", "2"]
        sizes = ["--number-of-worlds", "2", "--worlds", str(training_worlds), "--steps", "1"]
        return CliRunner().invoke(app, [*command, *sizes, "--out", str(tmp_path / "run")])

    result = run(base)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "dense.safetensors").is_file()
    assert "has no LoRA" not in result.output
    missing = run(tmp_path)
    assert missing.exit_code != 0
    assert "the transformer is missing" in " ".join(missing.output.split())
    assert not (tmp_path / "run" / "worlds").exists()
