"""The fault list names tests that exist."""

from __future__ import annotations

import re

from helpers.paths import REPOSITORY

FAULTS = REPOSITORY / "docs" / "reference" / "faults.md"


def test_every_test_named_in_the_fault_list_exists():
    text = FAULTS.read_text()
    sources = "\n".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    names = set(re.findall(r"`(test_[a-z0-9_]+)(?:\[[^`]*)?`", text))
    assert len(names) > 35
    for name in sorted(names):
        assert f"def {name}(" in sources, f"{name} is named in {FAULTS.name} and does not exist"
    for name in re.findall(r"`((?:tests/[a-z0-9_/]*)?test_[a-z0-9_]+\.py)`", text):
        assert list((REPOSITORY / "tests").rglob(name.removeprefix("tests/"))), name


def test_fault_list_has_every_row():
    rows = re.findall(r"^\| (\d+) \|", FAULTS.read_text(), re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, 87))
