"""The folder of results: what an earlier run wrote is replaced, everything else stays."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from worldstereo_ros.io.results_folder import MARKER_FILE, ResultsFolder
from worldstereo_ros.utils.atomic_files import WriteError
from worldstereo_ros.utils.errors import InputError

NAMES = ("imagined", "cloud.ply")


def write_run(out: Path, frames: int, names=NAMES) -> None:
    with ResultsFolder(out, names) as results:
        (results.path / "imagined" / "frames").mkdir(parents=True)
        for index in range(frames):
            (results.path / "imagined" / "frames" / f"{index}.png").write_bytes(b"frame")
        (results.path / "cloud.ply").write_bytes(b"cloud")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MARKER_FILE)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_results_of_an_earlier_run_are_replaced_and_other_files_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "bag").mkdir()
    (tmp_path / "bag" / "a.mcap").write_bytes(b"recording")
    write_run(tmp_path, 3)
    write_run(tmp_path, 1)
    assert contents(tmp_path) == {
        "notes.txt": b"mine",
        "bag/a.mcap": b"recording",
        "imagined/frames/0.png": b"frame",
        "cloud.ply": b"cloud",
    }


@pytest.mark.parametrize("mine", ["imagined/frames/000000.png", "imagined/notes.txt", "cloud.ply", "imagined/"])
def test_files_that_no_run_wrote_are_not_replaced(tmp_path, mine):
    if mine.endswith("/"):
        (tmp_path / mine).mkdir()
    else:
        (tmp_path / mine).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / mine).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"is in the way.* choose another --out\."):
        ResultsFolder(tmp_path, NAMES)
    assert contents(tmp_path) == before
    assert not (tmp_path / MARKER_FILE).exists()


def test_files_that_were_added_or_changed_since_the_run_are_not_replaced(tmp_path):
    write_run(tmp_path, 2)
    (tmp_path / "imagined" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt is in the way"):
        ResultsFolder(tmp_path, NAMES)
    (tmp_path / "imagined" / "notes.txt").unlink()
    (tmp_path / "cloud.ply").write_text("edited by hand")
    with pytest.raises(InputError, match=r"cloud\.ply is in the way"):
        ResultsFolder(tmp_path, NAMES)
    # A run that writes other names removes what it may, and leaves the rest.
    with ResultsFolder(tmp_path, ["sheet.png"]):
        pass
    assert contents(tmp_path) == {"cloud.ply": b"edited by hand"}


def test_links_are_neither_followed_nor_removed(tmp_path):
    out, mine = tmp_path / "out", tmp_path / "mine"
    write_run(out, 1)
    mine.mkdir()
    shutil.move(out / "imagined" / "frames", mine / "frames")
    (out / "imagined" / "frames").symlink_to(mine / "frames")
    with pytest.raises(InputError, match="frames is in the way"):
        ResultsFolder(out, NAMES)
    with ResultsFolder(out, ["sheet.png"]):
        pass
    assert contents(mine) == {"frames/0.png": b"frame"}
    assert (out / "imagined" / "frames").is_symlink()


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        "[]",
        '{"worldstereo_results": 2}',
        '{"worldstereo_results": 1, "names": [".."], "files": {"../mine.txt": [4, 0]}}',
        '{"worldstereo_results": 1, "names": ["../mine.txt", "/"], "files": null}',
        '{"worldstereo_results": 1, "names": 3, "files": {}}',
    ],
)
def test_damaged_and_hostile_markers_own_nothing(tmp_path, content):
    (tmp_path / "mine.txt").write_text("mine")
    os.utime(tmp_path / "mine.txt", ns=(0, 0))
    out = tmp_path / "out"
    out.mkdir()
    (out / "cloud.ply").write_text("mine")
    (out / MARKER_FILE).write_text(content)
    with pytest.raises(InputError, match="is in the way"):
        ResultsFolder(out, NAMES)
    with ResultsFolder(out, ["sheet.png"]):
        pass
    assert contents(tmp_path).keys() >= {"mine.txt", "out/cloud.ply"}


KILLED = """
import os, signal, sys
from worldstereo_ros.io.results_folder import ResultsFolder
with ResultsFolder(sys.argv[1], ["imagined", "cloud.ply"]) as results:
    (results.path / "imagined").mkdir()
    (results.path / "imagined" / "0.png").write_bytes(b"half")
    (results.path / ".cloud.ply.0123456789abcdef.partial").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_is_replaced(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert (tmp_path / "imagined" / "0.png").exists()
    write_run(tmp_path, 1)
    assert contents(tmp_path) == {"imagined/frames/0.png": b"frame", "cloud.ply": b"cloud"}


def test_what_a_failed_run_left_is_replaced(tmp_path):
    def fail():
        with ResultsFolder(tmp_path, NAMES) as results:
            (results.path / "cloud.ply").write_bytes(b"cloud")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert json.loads((tmp_path / MARKER_FILE).read_text())["files"].keys() == {"cloud.ply"}
    write_run(tmp_path, 1)


def test_sources_and_results_are_kept_apart(tmp_path):
    bag = tmp_path / "recordings" / "bag"
    bag.mkdir(parents=True)
    for out in (tmp_path, bag.parent, bag):
        with pytest.raises(InputError, match="lies in the output folder"):
            ResultsFolder(out, NAMES, sources=[None, bag])
    with pytest.raises(InputError, match="lies in the source"):
        ResultsFolder(bag / "new" / "out", NAMES, sources=[bag])
    (tmp_path / "link").symlink_to(bag)
    with pytest.raises(InputError, match="lies in the source"):
        ResultsFolder(tmp_path / "link" / "out", NAMES, sources=[bag])
    ResultsFolder(bag.parent / "bag_out", NAMES, sources=[bag])


def test_folders_that_cannot_be_written_are_named_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file is a file; a folder for the results"):
        ResultsFolder(tmp_path / "file", NAMES)
    with pytest.raises(WriteError, match="a part of this one is a file"):
        ResultsFolder(tmp_path / "file" / "out", NAMES)
    with pytest.raises(WriteError, match=r"/proc/nowhere could not be written: No such file"):
        ResultsFolder("/proc/nowhere", NAMES)
    ResultsFolder(tmp_path / "new" / "out", NAMES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    with ResultsFolder(tmp_path, NAMES), pytest.raises(InputError, match="Another run writes"):
        ResultsFolder(tmp_path, NAMES).__enter__()
    write_run(tmp_path, 1)


def test_a_link_to_a_folder_is_a_folder(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    write_run(tmp_path / "out", 1)
    assert "cloud.ply" in contents(tmp_path / "disk")
