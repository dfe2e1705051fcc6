"""jobs.yaml: what is in it, and a sentence for each thing that can be wrong."""

import os

import pytest

from worldstereo_ros.batch import job_list
from worldstereo_ros.batch.job_list import read_job_list
from worldstereo_ros.cli.sources import parse_size
from worldstereo_ros.utils.errors import InputError

PRESETS = ("forward", "orbit")


def worlds(text):
    _, split, count = text.split(":")
    if not count.isdecimal():
        raise InputError(f"'{text}' names no worlds.")
    return [(split, index) for index in range(int(count))]


@pytest.fixture
def folder(tmp_path):
    for name in ("kitchen", "walks", "place"):
        (tmp_path / name).mkdir()
    for name in ("hall.wsmap", "kitchen/poses.txt", "walks/poses.txt", "walk.txt", "run.mcap", "place/world.wsmap"):
        (tmp_path / name).write_text("x")
    return tmp_path


def read(folder, text, version="1"):
    file = folder / "jobs.yaml"
    file.write_text(text) if isinstance(text, str) else file.write_bytes(text)
    return read_job_list(file, presets=PRESETS, expand_worlds=worlds, check_size=parse_size, version=version)


def refused(folder, text):
    with pytest.raises(InputError) as error:
        read(folder, text)
    sentence = str(error.value)
    assert sentence.startswith(str(folder / "jobs.yaml"))
    assert sentence.endswith((".", "?"))
    assert "\n" not in sentence
    return sentence


def test_every_combination_is_a_job(folder):
    listed = read(
        folder,
        """
settings: {model: geometric, clearance: 1, loop: false}
sources:
  - hall.wsmap
  - {name: cooking, source: kitchen, observations: 4, observe: [0, 3], size: 64x48}
  - worlds:test:2
paths: [forward, {path: walk.txt, views: 3}]
seeds: [0, 5]
""".replace("observations: 4, ", ""),
    )
    assert len(listed.jobs) == 4 * 2 * 2
    assert listed.jobs[0].name == "hall/forward/seed_0"
    assert listed.jobs[-1].name == "world_test_1/walk/seed_5"
    assert listed.settings == {"model": "geometric", "clearance": 1.0, "loop": False}
    assert listed.base == folder
    sources = {job.source["name"]: job.source for job in listed.jobs}
    assert sources["cooking"] == {
        "kind": "source", "name": "cooking", "file": "kitchen", "observe": "0,3", "size": "64x48",
    }  # fmt: skip
    assert sources["world_test_1"] == {"kind": "world", "name": "world_test_1", "split": "test", "index": 1}
    assert listed.jobs[2].path == {"name": "walk", "path": "walk.txt", "file": "walk.txt", "views": 3}
    assert set(listed.inputs) == {folder / "hall.wsmap", folder / "kitchen", folder / "walk.txt"}
    assert len({job.fingerprint for job in listed.jobs}) == 16


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("hall.wsmap", "map", "hall"),
        ("place", "map", "place"),
        ("place/world.wsmap", "map", "place"),
        ("kitchen", "source", "kitchen"),
        ("run.mcap", "bag", "run"),
    ],
)
def test_the_kind_of_a_source_is_found(folder, text, kind, name):
    (job,) = read(folder, f"sources: [{text}]\npaths: [forward]").jobs
    assert (job.source["kind"], job.source["name"], job.seed) == (kind, name, 0)


def test_the_fingerprint_tells_what_the_results_depend_on(folder):
    text = "sources: [kitchen]\npaths: [walk.txt]\n"
    first = read(folder, text).jobs[0].fingerprint
    assert read(folder, text).jobs[0].fingerprint == first
    others = [
        read(folder, text, version="2"),
        read(folder, text + "settings: {clearance: 0.1}"),
        read(folder, text + "seeds: [1]"),
    ]
    for file in ("kitchen/poses.txt", "walk.txt"):
        os.utime(folder / file, ns=(1, 1))
        others.append(read(folder, text))
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text("1")
    for size in ("1", "22"):
        (folder / "model" / "weights").write_text(size)
        others.append(read(folder, text + "settings: {model: model}"))
    assert len({first, *(other.jobs[0].fingerprint for other in others)}) == 8


def test_the_fingerprint_tells_what_is_read_beside_a_photo_and_a_file_of_poses(folder):
    """A depth image or intrinsics that came later were not seen, and jobs without them counted as done."""
    (folder / "photo.png").write_text("x")
    (folder / "plans").mkdir()
    (folder / "plans" / "a.txt").write_text("x")
    text = "sources: [photo.png]\npaths: [plans/a.txt]\n"
    found = [read(folder, text).jobs[0].fingerprint]
    for name in ("photo_depth.png", "intrinsics.json", "prompt.json", "plans/intrinsics.json"):
        for content in ("1", "22"):
            (folder / name).write_text(content)
            found.append(read(folder, text).jobs[0].fingerprint)
    assert len(set(found)) == len(found) == 9
    (folder / "other.png").write_text("x")
    assert read(folder, text).jobs[0].fingerprint == found[-1]


def test_paths_that_a_source_may_have_recorded_are_left_to_its_jobs(folder):
    assert read(folder, "sources: [kitchen]\npaths: [approach]").jobs[0].path == {
        "name": "approach",
        "path": "approach",
    }
    assert read(folder, "sources: [run.mcap]\npaths: [/plan]").jobs[0].path["path"] == "/plan"
    assert read(folder, "sources: [worlds:test:1]\npaths: [walk]").jobs[0].path["path"] == "walk"
    assert read(folder, "sources: [kitchen]\npaths: [walks]").jobs[0].path["file"] == "walks"
    assert "no source is a recording" in refused(folder, "sources: [hall.wsmap]\npaths: [approach]")


GOOD = "sources: [kitchen]\npaths: [forward]\n"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "has no keys"),
        ("- 1", "has no keys"),
        ("a: [", "is no YAML"),
        ("a: !!python/object:os.system {}", "is no YAML"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        ("x: &a [*a]", "the key 'x' is unknown"),
        (GOOD + "sorces: [a]", "the key 'sorces' is unknown; did you mean 'sources'?"),
        (GOOD + "paths: [orbit]", "line 3: the key 'paths' is there twice."),
        ("paths: [forward]", "`sources` is missing; a list"),
        ("sources: kitchen\npaths: [forward]", "`sources` is 'kitchen'; a list"),
        ("sources: []\npaths: [forward]", "`sources` is []"),
        ("sources: [kitchen]", "`paths` is missing"),
        ("sources: [attic]\npaths: [forward]", "attic does not exist"),
        ("sources: [1]\npaths: [forward]", "sources, entry 1 is 1"),
        ("sources: [kitchen, kitchen]\npaths: [forward]", "two entries are named 'kitchen'"),
        ("sources: [kitchen]\npaths: [forward, {path: orbit, name: Forward}]", "two entries are named 'Forward'"),
        ("sources: [{name: a}]\npaths: [forward]", "one of source, map, bag, worlds was expected; there is none"),
        ("sources: [{map: hall.wsmap, bag: run.mcap}]\npaths: [forward]", "there is map and bag"),
        ("sources: [{source: kitchen, observation: 2}]\npaths: [forward]", "did you mean 'observations'?"),
        ("sources: [{source: kitchen, observations: 0}]\npaths: [forward]", "a whole number from 1 to 10000 was"),
        ("sources: [{source: kitchen, observations: true}]\npaths: [forward]", "`observations` is True"),
        ("sources: [{source: kitchen, observations: 2, observe: [1]}]\npaths: [forward]", "one was expected"),
        ("sources: [{source: kitchen, observe: 1}]\npaths: [forward]", "a list of numbers of frames"),
        ("sources: [{source: kitchen, size: 64}]\npaths: [forward]", "`size` is 64; text was expected"),
        ("sources: [{source: kitchen, size: 1x1}]\npaths: [forward]", "16 to 8192 pixels a side"),
        ("sources: [{source: kitchen, fov: .nan}]\npaths: [forward]", "a number from 1 to 170"),
        (
            "sources: [{source: kitchen, image_topic: /a}]\npaths: [forward]",
            "no option of a source of the kind `source`",
        ),
        ("sources: [{map: hall.wsmap, size: 64x48}]\npaths: [forward]", "of the kind `map`; there is none"),
        ("sources: [worlds:test:x]\npaths: [forward]", "names no worlds"),
        ("sources: [{source: kitchen, name: a/b}]\npaths: [forward]", "cannot be that of a folder"),
        ("sources: [{source: kitchen, name: ..}]\npaths: [forward]", "cannot be that of a folder"),
        ("sources: [kitchen]\npaths: [walk2.txt]", "walk2.txt does not exist"),
        ("sources: [kitchen]\npaths: [place]", "place is a folder without poses.txt"),
        ("sources: [kitchen]\npaths: [{views: 2}]", "`path` is missing"),
        ("sources: [kitchen]\npaths: [{path: forward, views: 2000}]", "from 1 to 1000"),
        ("sources: [kitchen]\npaths: [{path: forward, distance: .inf}]", "`distance` is inf; a number was expected"),
        (GOOD + "seeds: 3", "`seeds` is 3; a list of numbers"),
        (GOOD + "seeds: [-1]", "`seeds` holds -1"),
        (GOOD + "seeds: [1, 1]", "`seeds` holds 1 twice"),
        (GOOD + "seeds: [a]", "`seeds` holds 'a'"),
        (GOOD + "settings: [a]", "`settings` is ['a']"),
        (GOOD + "settings: {modell: a}", "settings: the key 'modell' is unknown; did you mean 'model'?"),
        (GOOD + "settings: {loop: 1}", "`loop` is 1; true or false was expected"),
        (GOOD + "settings: {clearance: -1}", "a number from 0 to 1000"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(folder, text, part):
    assert part in refused(folder, text)


def test_a_missing_file_and_a_huge_list_are_refused(folder, monkeypatch):
    with pytest.raises(InputError, match="cannot be read"):
        read_job_list(folder / "no", presets=(), expand_worlds=worlds, check_size=parse_size, version="1")
    monkeypatch.setattr(job_list, "MAX_JOBS", 5)
    assert "3 sources x 2 paths x 1 seeds are 6 jobs; 5 are the limit" in refused(
        folder, "sources: [worlds:test:3]\npaths: [forward, orbit]"
    )
    monkeypatch.setattr(job_list, "MAX_FILE_BYTES", 5)
    assert "has more than" in refused(folder, GOOD)


def test_a_name_that_no_folder_can_have_is_changed(folder):
    (folder / "die Küche").mkdir()
    (job,) = read(folder, "sources: ['die Küche']\npaths: [forward]").jobs
    assert job.name == "die_K_che/forward/seed_0"
