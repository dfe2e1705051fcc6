"""Training at toy size: every stage learns, goes on, is repeatable, ends well; what comes of it is packed and loads."""

import dataclasses
import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from worldstereo_ros.cli import app
from worldstereo_ros.models import CheckpointError
from worldstereo_ros.models.depth_network import load_depth_network
from worldstereo_ros.training import chain, loop
from worldstereo_ros.training.chain import make_stage, train_stages
from worldstereo_ros.training.clips import Shelf
from worldstereo_ros.training.journal import lasting, read_rounds, write_line
from worldstereo_ros.training.loading import ClipDraw, LoadedFeed
from worldstereo_ros.training.loop import TrainingError, TrainingInterruptedError, train, uninterrupted
from worldstereo_ros.training.run import VARIANT_OF, Run
from worldstereo_ros.training.settings import STAGES, SettingsError, describe, read_training_settings
from worldstereo_ros.training.ship import ship
from worldstereo_ros.training.worlds import World, draw_worlds

SMOKE = read_training_settings("smoke")
QUIET = Console(quiet=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("worlds")
    for split, count in (("training", SMOKE.worlds.kept), ("validation", SMOKE.worlds.validation)):
        assert draw_worlds(folder, split, range(count), SMOKE.sizes, soft_light=0.0) == count
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, worlds) -> Path:
    """The whole chain, by the command."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    arguments = ["train", "all", "--config", "smoke", "--out", str(folder), "--worlds", str(worlds), "--minutes", "5"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def copied(run_folder, tmp_path) -> Path:
    """The chain's folder, to change."""
    folder = tmp_path / "run"
    copy_tree(run_folder, folder)
    return folder


def copy_tree(source: Path, target: Path) -> None:
    for file in source.rglob("*"):
        if file.is_file():
            (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / file.relative_to(source)).write_bytes(file.read_bytes())


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        if "worlds" not in file.parts:
            found |= {f"{file.relative_to(folder)}:{name}": tensor for name, tensor in load_file(file).items()}
    assert found
    return found


def make(folder: Path, worlds: Path, name: str, **changes) -> loop.Stage:
    settings = dataclasses.replace(
        SMOKE, stages={**SMOKE.stages, name: dataclasses.replace(SMOKE.stages[name], **changes)}
    )
    torch.manual_seed(0)
    run = Run(folder, settings, Accelerator(mixed_precision="no", cpu=True))
    return make_stage(name, run, Shelf(worlds, "training", 4), Shelf(worlds, "validation", 2))


# --- the chain ---


def test_one_command_makes_every_variant_logs_and_pictures(run_folder):
    for part in ("base/vae", "base/transformer", *(VARIANT_OF.values()), "polished/base/vae"):
        assert (run_folder / part / "config.json").is_file()
    assert (run_folder / "base" / "scheduler" / "scheduler_config.json").is_file()
    for stage in STAGES:
        (first,) = read_rounds(run_folder / "logs" / f"{stage}.jsonl")
        assert first.steps == SMOKE.stages[stage].steps
        assert first.about["resumed"] is False
        assert first.about["settings"]["batch"] == SMOKE.stages[stage].batch
        assert first.figures["absrel"] < 3 if stage == "depth" else first.figures["psnr"] > 5
        assert (run_folder / "logs" / f"{stage}.png").stat().st_size > 1000
    assert read_training_settings(run_folder / "settings.json") == SMOKE


def test_minutes_are_for_all_stages_together(tmp_path, worlds, monkeypatch):
    shared = []

    def instead(stage, accelerator, logs, *, minutes, **options):
        shared.append(minutes)
        return {}

    monkeypatch.setattr(chain, "train", instead)
    stages = {"autoencoder": dataclasses.replace(SMOKE.stages["autoencoder"], minutes=1.0)}
    settings = dataclasses.replace(SMOKE, stages=stages)
    train_stages(["autoencoder"] * 3, settings, tmp_path, minutes=30, worlds=worlds, console=QUIET)
    # Nothing was trained, so each stage gets its share of all that is left: a third, a half, the rest.
    assert shared == pytest.approx([10, 15, 30], abs=0.5)
    assert shared[2] < 30


@pytest.mark.parametrize("stage", ["video", "control", "memory", "distill", "polish"])
def test_a_stage_says_which_one_must_come_before(tmp_path, worlds, stage):
    with pytest.raises(CheckpointError, match="train the stage autoencoder first"):
        make(tmp_path, worlds, stage)


def test_a_stage_says_what_an_earlier_one_left_out(copied, worlds):
    (copied / "worldstereo-camera" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="train the stage control first, memory builds on it"):
        make(copied, worlds, "memory")


def test_weights_of_another_configuration_are_refused(copied, worlds):
    wide = dataclasses.replace(SMOKE, transformer={**SMOKE.transformer, "ffn_dim": 128})
    with pytest.raises(CheckpointError, match="go on with the configuration of this run"):
        train_stages(["video"], wide, copied, worlds=worlds, console=QUIET)
    other = dataclasses.replace(SMOKE, autoencoder={**SMOKE.autoencoder, "widths": (8, 16, 16)})
    with pytest.raises(CheckpointError, match=r"widths \[8, 8, 16\] and the configuration \[8, 16, 16\]"):
        train_stages(["video"], other, copied, worlds=worlds, console=QUIET)


# --- learning ---


@pytest.mark.parametrize(("name", "player", "falls_to"), [
    ("autoencoder", 0, 0.7), ("video", 0, 0.5), ("control", 0, 0.8), ("memory", 0, 0.85), ("distill", 1, 0.5),
    ("polish", 0, 0.5),
])  # fmt: skip
def test_the_loss_falls_on_a_fixed_batch(run_folder, worlds, name, player, falls_to):
    """The same clips, the same noise: what is left is learning. Stages with fewer free weights fall less."""
    stage = make(run_folder, worlds, name)
    with torch.no_grad():  # a last layer that starts at nothing and was trained for seconds hides all behind it
        for parameter_name, parameter in stage.model.named_parameters():
            if name in ("memory", "distill", "polish") and parameter_name.endswith("render_head.weight"):
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    stage.start_step()
    trained = stage.players[player]
    optimizer = torch.optim.Adam(trained.parameters, lr=3e-3)
    losses = []
    for _ in range(30):
        stage._generator.manual_seed(0)
        stage._random = np.random.default_rng(3)
        loss, figures = trained.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(figures.get("regression", float(loss.detach())))
    assert losses[-1] < falls_to * losses[0]


def test_a_stage_trains_what_it_should_and_nothing_else(run_folder):
    base = load_file(run_folder / "base" / "transformer" / "diffusion_pytorch_model.safetensors")
    camera = load_file(run_folder / "worldstereo-camera" / "model.safetensors")
    memory = load_file(run_folder / "worldstereo-memory" / "model.safetensors")
    whole = load_file(run_folder / "worldstereo-memory-dmd" / "model.safetensors")
    assert all(name.startswith("controlnet.") for name in camera)
    blocks = {name for name in whole if name.startswith("blocks.") and (".ffn." in name or ".attn1." in name)}
    assert set(memory) == set(camera) | blocks | {name for name in whole if name.startswith("camera_embedding.")}
    assert all(torch.equal(memory[name], camera[name]) and torch.equal(whole[name], camera[name]) for name in camera)
    changed = {name for name in base if not torch.equal(base[name], memory.get(name, base[name]))}
    assert changed
    assert all(".ffn." in name or ".attn1." in name for name in changed)
    assert not torch.equal(whole["patch_embedding.weight"], base["patch_embedding.weight"])
    assert torch.equal(whole["camera_embedding.0.weight"], memory["camera_embedding.0.weight"])
    polished = load_file(run_folder / "polished" / "worldstereo-memory-dmd" / "model.safetensors")
    assert polished.keys() == whole.keys()
    steps = [
        json.loads((run_folder / VARIANT_OF[stage] / "config.json").read_text())["dmd_steps"]
        for stage in ("distill", "polish")
    ]
    assert steps == [SMOKE.dmd_steps, SMOKE.stages["polish"].painted_steps]
    assert not torch.equal(polished["controlnet.render_head.weight"], whole["controlnet.render_head.weight"])


# --- again, and on ---


@pytest.mark.parametrize("name", ["autoencoder", "memory"])
def test_the_same_seed_gives_the_same_weights_to_the_last_bit(copied, tmp_path, worlds, name):
    again = tmp_path / "again"
    copy_tree(copied, again)
    for folder in (copied, again):
        torch.rand(int(folder is again))  # whatever the global generator did before
        train_stages([name], SMOKE, folder, steps=3, worlds=worlds, console=QUIET)
    first, second = weights_of(copied), weights_of(again)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert first.keys() == second.keys()


def test_training_goes_on_from_the_weights_alone_with_other_draws(copied, worlds):
    before = weights_of(copied)
    (copied / "logs" / "video.png").unlink()
    result = CliRunner().invoke(
        app, ["train", "video", "--out", str(copied), "--worlds", str(worlds), "--steps", "2"]
    )  # the configuration is the run's own
    assert result.exit_code == 0, result.output
    _, second = read_rounds(copied / "logs" / "video.jsonl")
    assert (second.about["round"], second.about["resumed"], second.steps) == (1, True, 2)
    after = weights_of(copied)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    assert all(key.startswith("base/transformer") for key in moved)
    assert make(copied, worlds, "video").run.seeds("video") == [SMOKE.seed, 1, 2]


# --- how it ends ---


def test_numbers_that_are_not_finite_end_training_and_spare_the_weights(copied, worlds):
    before = weights_of(copied)
    stage = make(copied, worlds, "video")
    good = stage.players[0].loss

    def loss():
        value, figures = good()
        return value * float("nan"), figures

    stage.players[0].loss = loss
    with pytest.raises(TrainingError, match="not finite, at step 9; lower its learning_rate"):
        train(stage, stage.run.accelerator, copied / "logs", steps=50, console=QUIET)
    after = weights_of(copied)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(torch.isfinite(p).all() for p in stage.players[0].parameters)


def test_one_bad_step_is_passed_over(copied, worlds):
    stage = make(copied, worlds, "video")
    good, calls = stage.players[0].loss, []

    def loss():
        calls.append(1)
        value, figures = good()
        return value * (float("inf") if len(calls) == 2 else 1.0), figures

    stage.players[0].loss = loss
    figures = train(stage, stage.run.accelerator, copied / "logs", steps=4, console=QUIET)
    assert np.isfinite(figures["loss"])
    assert all(torch.isfinite(p).all() for p in stage.players[0].parameters)


def test_ctrl_c_writes_what_was_learnt(copied, worlds):
    before = weights_of(copied)
    stage = make(copied, worlds, "video", minutes=5.0)
    steps = iter(range(100))
    good = stage.start_step

    def start_step():
        if next(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        good()

    stage.start_step = start_step
    with pytest.raises(TrainingInterruptedError, match="after 3 steps; its weights are written"):
        train(stage, stage.run.accelerator, copied / "logs", minutes=5, steps=0, console=QUIET)
    assert read_rounds(copied / "logs" / "video.jsonl")[-1].steps == 3
    after = weights_of(copied)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    make(copied, worlds, "control")  # reads all of them


def test_ctrl_c_waits_for_what_must_not_be_cut():
    done = []

    def write():
        with uninterrupted():
            if threading.current_thread() is threading.main_thread():
                os.kill(os.getpid(), signal.SIGINT)
            done.append(threading.current_thread().name)

    with pytest.raises(KeyboardInterrupt):
        write()
    thread = threading.Thread(target=write, name="another thread, which signals never reach")
    thread.start()
    thread.join()
    assert done == [threading.main_thread().name, thread.name]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- what is refused ---


@pytest.mark.parametrize(("change", "says"), [
    ({"sizes": [[30, 48]]}, "30x48 is no multiple of 16"),
    ({"sizes": [[32]]}, "pairs of height and width"),
    ({"colour": "red"}, "colour is not known; keys are"),
    ({"worlds": {"kept": "many"}}, "worlds: kept is 'many'; a int was expected"),
    ({"worlds": {"kept": 0}}, "must be 1 or more"),
    ({"stages": {"vide": {}}}, "the stage 'vide' is not known"),
    ({"stages": {"video": {"learnrate": 1.0}}}, "learnrate is not known"),
    ({"stages": {"video": {"batch": 0}}}, "batch of video is 0"),
    ({"stages": {"video": {"frames": 1}}}, "frames of video is 1"),
    ({"stages": {"video": {"ema": 1.0}}}, "ema of 0 to below 1"),
    ({"precision": "fp8"}, "precision is 'fp8'; no or bf16"),
    ({"transformer": None}, "transformer is None; keys and values"),
])  # fmt: skip
def test_bad_settings_are_named(tmp_path, change, says):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**describe(SMOKE), **change}))
    with pytest.raises(SettingsError, match=says):
        read_training_settings(file)


def test_settings_that_are_not_there_or_no_yaml(tmp_path):
    with pytest.raises(SettingsError, match="one of cpu, gpu, smoke"):
        read_training_settings("tpu")
    file = tmp_path / "mine.yaml"
    for text, says in (("a: [", "could not be read as YAML"), ("- 1", "holds a list"), ("seed: 1", "missing")):
        file.write_text(text)
        with pytest.raises(SettingsError, match=says):
            read_training_settings(file)


@pytest.mark.parametrize(("arguments", "says"), [
    (["train", "video", "--config", "tpu"], "There is no training configuration 'tpu'"),
    (["train", "video", "--config", "smoke", "--minutes", "0"], "0.0 minutes were given"),
    (["train", "ship", "nowhere", "--out", "packed"], "There is no training configuration 'nowhere/settings.json'"),
    (["train", "ship", "nowhere", "--out", "packed", "--config", "smoke"], "config.json is missing"),
])  # fmt: skip
def test_the_command_says_in_a_sentence_what_is_wrong(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert says in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_gpu_that_is_not_there_is_named(tmp_path, worlds):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SettingsError, match="no usable CUDA GPU"):
        train_stages(["video"], dataclasses.replace(SMOKE, device="cuda"), tmp_path, worlds=worlds)


def test_a_folder_without_worlds_and_a_file_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="no training worlds in"):
        Shelf(tmp_path, "training", 4)
    save_file({"image": torch.zeros(1)}, tmp_path / "training-000000000.safetensors")
    with pytest.raises(ValueError, match="is no world: it holds"):
        World.load(tmp_path / "training-000000000.safetensors")


# --- batches from other processes ---


def test_packed_clips_are_the_same_to_what_cameras_resolve(worlds):
    draw = ClipDraw(2, 5, renders=True, memory=True)
    random = np.random.default_rng(1)
    batches = [draw(Shelf(worlds, "training", 4), random, torch.device("cpu")) for _ in range(3)]
    assert any(batch.references.shape[2] for batch in batches)
    for batch in batches:
        packed = {name: torch.from_numpy(array) for name, array in draw.pack(batch).items()}
        back = draw.unpack(packed)
        for field in dataclasses.fields(batch):
            before, after = getattr(batch, field.name), getattr(back, field.name)
            assert before.shape == after.shape
            assert torch.allclose(before.float(), after.float(), rtol=1e-3, atol=0.5 / 127.5 + 1e-5)


def test_loaders_give_the_same_batches_every_time_and_say_what_failed(worlds, tmp_path):
    shelf, device = Shelf(worlds, "training", 4), torch.device("cpu")
    draw = ClipDraw(2, 5, renders=False, memory=False)
    taken = []
    for _ in range(2):
        feed = LoadedFeed(draw, shelf, [0, 1, 0], device, 1)
        try:
            taken.append([feed.take().pictures for _ in range(2)])
        finally:
            feed.close()
    assert all(torch.equal(a, b) for a, b in zip(*taken, strict=True))
    assert not torch.equal(taken[0][0], taken[0][1])
    shelf.folder = tmp_path
    feed = LoadedFeed(draw, shelf, [0, 1, 0], device, 1)
    try:
        with pytest.raises(RuntimeError, match="no training worlds in"):
            feed.take()
    finally:
        feed.close()


def test_batches_are_learnt_from_again_while_no_new_one_is_ready(run_folder, worlds):
    stage = make(run_folder, worlds, "video")
    settings = dataclasses.replace(stage.run.settings, worlds=dataclasses.replace(SMOKE.worlds, loaders=1, replay=2))
    stage.run.settings = settings
    stage._replay = type(stage._replay)(maxlen=2)
    waited, take = [], stage._feed.take

    def rarely(*, wait=True):
        waited.append(wait)
        return take() if wait else None

    stage._feed.take = rarely
    seen = []
    for _ in range(8):
        stage.start_step()
        seen.append(stage._clips)
    assert waited == [True, True] + [False] * 6
    assert {id(clips) for clips in seen[2:]} == {id(clips) for clips in seen[:2]}


# --- the log ---


def test_logs_are_read_as_far_as_weights_were_written(tmp_path):
    log = tmp_path / "video.jsonl"
    write_line(log, {"step": 0, "seconds": 1.0, "validation_loss": 2.0})  # of the time before rounds had a first line
    write_line(log, {"step": 20, "seconds": 5.0, "video_loss": float("nan")})
    write_line(log, {"step": 30, "seconds": 9.0, "validation_loss": 1.0})
    write_line(log, {"step": 40, "seconds": 11.0, "video_loss": 1.0})  # a crash
    write_line(log, {"round": 1, "resumed": True})
    write_line(log, {"step": 0, "seconds": 1.0, "validation_loss": 0.9})
    write_line(log, {"step": 7, "seconds": 4.0, "interrupted": True})
    with log.open("a") as file:
        file.write('{"step": 9, "secon')
    assert [(one.steps, one.seconds, one.figures) for one in read_rounds(log)] == [
        (30, 9.0, {"loss": 1.0}),
        (7, 4.0, {"loss": 0.9}),
    ]
    with log.open("a") as file:
        file.write("\n")
    write_line(log, {"round": 2, "resumed": False})
    assert [one.about["round"] for one in lasting(read_rounds(log))] == [2]
    assert json.loads(log.read_text().splitlines()[1])["video_loss"] is None


# --- packing ---


def test_what_is_packed_loads_and_describes_itself(run_folder, tmp_path):
    out = tmp_path / "packed"
    rows = {"sequence": "test0", "protocol": "single", "pipeline": "small", "frames": 3, "psnr": 21.25}
    (tmp_path / "rows.json").write_text(json.dumps({"rows": [rows, {**rows, "sequence": "test1", "psnr": 22.25}]}))
    size = ship(run_folder, out, evaluation=tmp_path / "rows.json")
    files = [file for file in out.rglob("*") if file.is_file()]
    assert size == sum(file.stat().st_size for file in files)
    tensors = weights_of(out)
    small = [tensor for key, tensor in tensors.items() if "norm" not in key and tensor.ndim > 1]
    assert sum(t.dtype == torch.bfloat16 for t in small) > len(small) // 2
    assert not list((out / "base" / "transformer").glob("*.safetensors"))
    assert load_depth_network(out / "base" / "depth").config.pixels == 32 * 48
    card = (out / "README.md").read_text()
    for stage in STAGES:
        one = read_rounds(run_folder / "logs" / f"{stage}.jsonl")[0]
        assert f"| {one.steps} | {one.seconds / 60:.1f} | {SMOKE.stages[stage].batch} |" in card
        named = "absrel" if stage == "depth" else "psnr"
        assert f"{named} {one.figures[named]:.3f}" in card
    assert "| single | small | 6 | 21.75 |" in card
    assert f"{os.cpu_count()} cores" in card
    assert "license: apache-2.0" in card
    everything = ship(run_folder, out, variants=("memory-dmd", "memory", "camera"))  # in the place of what was there
    assert everything > size
    assert list((out / "base" / "transformer").glob("*.safetensors"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["packed", "rows.json"]


def test_what_is_too_large_damaged_or_not_ours_is_not_packed(copied, tmp_path):
    out = tmp_path / "packed"
    ship(copied, out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=r"at most 0\.01 MB in all may ship"):
        ship(copied, out, most_bytes=10_000)
    with pytest.raises(ValueError, match="some of memory-dmd, memory, camera were expected"):
        ship(copied, out, variants=("dmd",))
    weights = copied / "polished" / "worldstereo-memory-dmd" / "model.safetensors"
    tensors = load_file(weights)
    tensors["patch_embedding.weight"][0] = float("nan")
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match="are not finite"):
        ship(copied, out)
    tensors.pop("patch_embedding.weight")
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match="cannot be loaded, nothing was replaced"):
        ship(copied, out)
    assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="was not packed before"):
        ship(copied, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").is_file()
