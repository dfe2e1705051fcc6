"""`worldstereo batch`: the same files as `worldstereo imagine` writes, sentences, exit status."""

import importlib.util
import json
from pathlib import Path

import pytest
from helpers.batch import InProcessEngine, here  # noqa: F401 (a fixture)
from helpers.textured_wall import textured_wall_views
from typer.testing import CliRunner

from worldstereo_ros.batch.engines import Died
from worldstereo_ros.batch.local_engine import LocalEngine
from worldstereo_ros.cli.main import app
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.visualization.result_files import RESULT_NAMES

pytestmark = pytest.mark.usefixtures("here", "one_thread")
LIST = """
settings: {model: geometric}
sources: [{source: wall, observations: 2, size: 64x48}]
paths: [{path: right, views: 2}]
seeds: [3]
"""


@pytest.fixture
def wall(tmp_path):
    write_sequence(tmp_path / "wall", textured_wall_views())
    return tmp_path


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr("worldstereo_ros.cli.batch._engine", lambda spec, *_: InProcessEngine(spec))


def run(*arguments):
    result = CliRunner().invoke(app, ["batch", *arguments], env={"COLUMNS": "400"}, terminal_width=400)
    return result.exit_code, " ".join(result.output.split())


def content(folder, names=RESULT_NAMES):
    """Bytes of all files by their names."""
    files = [file for name in names for file in (folder / name, *folder.glob(f"{name}/**/*")) if file.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def single(out, *arguments):
    """What one run of `imagine` writes."""
    result = CliRunner().invoke(app, ["imagine", *arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return content(out)


def test_a_process_gives_what_a_single_run_gives_bit_for_bit(wall):
    options = ["--model", "geometric", "--observations", "2", "--size", "64x48", "--path", "right", "--views", "2"]
    expected = single(wall / "single", "wall", *options, "--seed", "3")
    Path("jobs.yaml").write_text(LIST)
    status, text = run("jobs.yaml", "--workers", "1", "--out", "out")
    assert (status, text.count("1 job: 1 source x 1 path x 1 seed.")) == (0, 1), text
    assert content(wall / "out" / "wall" / "right" / "seed_3") == expected
    assert {"imagined/frames/000000.png", "imagined/depth/000000.png", "world.wsmap", "results.json"} <= set(expected)


def test_sources_of_all_kinds_and_one_that_is_bad(wall, in_process):
    expected = single(wall / "first", "wall", "--model", "geometric", "--size", "64x48", "--views", "2")
    of_map = ["--map", "first/world.wsmap", "--model", "geometric", "--path", "wall", "--views", "2", "--loop"]
    from_map = single(wall / "second", *of_map)
    Path("broken").mkdir()
    Path("broken/poses.txt").write_text("no pose")
    Path("jobs.yaml").write_text("""
settings: {model: geometric, loop: true}
sources: [first/world.wsmap, broken, {worlds: "demo:0:1", size: 64x48}]
paths: [{path: wall, views: 2}, {path: walk, views: 1}]
""")
    status, text = run("jobs.yaml", "--out", "out")
    assert status == 1
    assert content(wall / "out" / "first" / "wall" / "seed_0") == from_map
    assert expected["world.wsmap"] != from_map["world.wsmap"]
    manifest = json.loads((wall / "out" / "manifest.json").read_text())
    status_of = {job["name"]: (job["status"], job["error"]) for job in manifest["jobs"]}
    assert status_of["world_demo_0/walk/seed_0"] == ("done", None)
    assert [name for name, (status, _) in status_of.items() if status == "failed"] == [
        "first/walk/seed_0", "broken/wall/seed_0", "broken/walk/seed_0",
    ]  # fmt: skip
    assert "The path 'walk' is not a preset" in status_of["first/walk/seed_0"][1]
    assert status_of["broken/wall/seed_0"][1] == "The file broken/intrinsics.json does not exist."
    assert "3 done, 3 failed. See out/manifest.json." in text


def test_a_list_is_checked_alone(wall):
    Path("jobs.yaml").write_text(LIST)
    status, text = run("jobs.yaml", "--check", "--out", "out")
    assert (status, text) == (0, "jobs.yaml: 1 job: 1 source x 1 path x 1 seed.")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--engine", "slurm"], "The engine 'slurm' is unknown; local or ray was expected."),
        (["--address", "auto"], "--address is that of a Ray cluster; add --engine ray, or remove it."),
        (["--workers", "0"], "--workers is 0; 1 to 4096 were expected."),
        (["--out", "wall/out"], "lies in the source"),
        (["--out", "."], "lies in the output folder"),
        (["--engine", "ray"], "pip install 'worldstereo_ros[batch]'"),
    ],
)
def test_options_that_do_not_fit_are_refused(wall, monkeypatch, arguments, sentence):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else found(name))
    Path("jobs.yaml").write_text(LIST)
    status, text = run("jobs.yaml", *arguments)
    assert status == 1
    assert sentence in text
    assert not Path("batch_out/manifest.json").exists()


def test_options_of_models_that_do_not_fit_are_refused_before_anything_starts(wall):
    Path("jobs.yaml").write_text(LIST.replace("geometric", "geometric, prompt: a room"))
    assert "The pipeline geometric has no networks, and --prompt is for those." in run("jobs.yaml")[1]
    Path("jobs.yaml").write_text(LIST.replace("64x48", "64"))
    assert "WIDTHxHEIGHT, such as 640x480" in run("jobs.yaml")[1] or "text was expected" in run("jobs.yaml")[1]


def test_an_unknown_model_ends_the_batch_with_its_sentence(wall, in_process):
    Path("jobs.yaml").write_text(LIST.replace("geometric", "geometrical"))
    status, text = run("jobs.yaml")
    assert status == 1
    assert "No job can run: The model 'geometrical' is unknown" in text
    assert json.loads(Path("batch_out/manifest.json").read_text())["counts"]["pending"] == 1


def test_a_job_that_runs_again_is_told(wall, monkeypatch):
    class Dying(InProcessEngine):
        def submit(self, worker, job):
            self.submit = super().submit
            self._events.append(Died(worker, "the process was ended by SIGKILL"))

    monkeypatch.setattr("worldstereo_ros.cli.batch._engine", lambda spec, *_: Dying(spec))
    Path("jobs.yaml").write_text(LIST)
    status, text = run("jobs.yaml")
    assert status == 0, text
    sentence = "wall/right/seed_3 runs again: Its worker ended while it ran: the process was ended by SIGKILL."
    assert sentence in text
    assert "1 of 1 jobs are done already." in run("jobs.yaml")[1]
    Path("batch_out/wall/right/seed_3/results.json").write_text("changed")
    monkeypatch.setattr("worldstereo_ros.cli.batch._engine", lambda spec, *_: InProcessEngine(spec))
    status, text = run("jobs.yaml")
    assert (status, "1 that were done run again: an input, an option" in text) == (0, True), text


def test_the_local_engine_is_the_default():
    from worldstereo_ros.cli.batch import _engine

    assert isinstance(_engine(None, "local", 1, "", None), LocalEngine)
