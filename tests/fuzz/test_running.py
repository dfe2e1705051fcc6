"""What the fuzz suite notices: other errors, memory, hangs; and what it keeps."""

import itertools
import json
import time

import numpy as np
import pytest
from fuzz import running
from fuzz.mutations import damaged, damaged_json
from fuzz.running import HangError, bounded, fuzz
from hypothesis import strategies as st

from worldstereo_ros.utils.errors import InputError


@pytest.fixture(autouse=True)
def _without_time(monkeypatch):
    monkeypatch.setattr(running, "SECONDS", 0.0)


def append_to(run):
    def append(data):
        run.append(data)

    return append


def test_errors_for_users_pass_and_others_fail():
    with bounded():
        raise InputError("an explanation")
    with pytest.raises(AssertionError, match="without a message"), bounded():
        raise InputError("")
    with pytest.raises(KeyError), bounded():
        raise KeyError("not for users")


def test_memory_is_bounded():
    with pytest.raises(AssertionError, match=r"\d+ MB for an input of 3 bytes"), bounded(b"abc", max_megabytes=50):
        np.ones(200 * 2**20, np.uint8)
    with bounded(max_megabytes=50):  # an earlier peak does not count
        np.ones(2**20, np.uint8)


def test_hangs_end(monkeypatch):
    monkeypatch.setattr(running, "HANG_S", 0.2)

    def never_ends():
        for _ in itertools.repeat(None):
            try:
                time.sleep(0.01)
            except Exception:
                continue

    with pytest.raises(HangError), bounded():
        never_ends()


def test_failing_inputs_are_kept_where_time_was_given(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "FOLDER", tmp_path)
    with pytest.raises(ZeroDivisionError), bounded(b"first", ".ply"):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(running, "SECONDS", 1.0)
    with pytest.raises(ZeroDivisionError), bounded(b"second", ".ply"):
        _ = 1 / 0
    (kept,) = (tmp_path / "inputs").glob("*.ply")
    assert kept.read_bytes() == b"second"


def test_inputs_are_the_same_in_each_run_and_new_where_time_was_given(tmp_path, monkeypatch):
    runs = [[], [], []]
    for run in runs[:2]:
        fuzz(append_to(run), damaged(bytes(range(50))), examples=10)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 5
    monkeypatch.setattr(running, "FOLDER", tmp_path)
    monkeypatch.setattr(running, "SECONDS", 1.0)
    monkeypatch.setattr(running._Share, "seconds", 0.001)
    fuzz(append_to(runs[2]), damaged(bytes(range(50))))
    assert len(runs[2]) > 100

    def odd(number):
        assert number % 2 == 0

    with pytest.raises(AssertionError):
        fuzz(odd, st.integers())
    assert any((tmp_path / "examples").rglob("*"))  # tried first the next time


def test_damage_changes_what_it_is_given():
    content, structure = bytes(range(200)), {"a": [1, {"b": 2}], "c": "d"}
    changed = []
    fuzz(lambda data, value: changed.append((data, json.dumps(value))), damaged(content), damaged_json(structure))
    assert sum(data != content for data, _ in changed) > 15
    assert sum(value != json.dumps(structure) for _, value in changed) > 15
    assert structure == {"a": [1, {"b": 2}], "c": "d"}
