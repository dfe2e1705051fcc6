"""What is written about the node is what the node is."""

from __future__ import annotations

import re

import pytest
from helpers.paths import REPOSITORY
from node_page import node_page


def test_node_page_is_up_to_date():
    assert (REPOSITORY / "docs" / "node.md").read_text() == node_page(), "run scripts/write_docs.py"


def test_every_test_named_in_the_fault_list_exists():
    text = (REPOSITORY / "docs" / "faults.md").read_text()
    sources = "\n".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    names = set(re.findall(r"`(test_[a-z0-9_]+)(?:\[[^`]*)?`", text))
    assert len(names) > 35
    for name in sorted(names):
        assert f"def {name}(" in sources, f"{name} is named in docs/faults.md and does not exist"
    for name in re.findall(r"`((?:tests/)?test_[a-z0-9_]+\.py)`", text):
        assert list((REPOSITORY / "tests").rglob(name.removeprefix("tests/"))), name


def test_fault_list_has_every_row():
    rows = re.findall(r"^\| (\d+) \|", (REPOSITORY / "docs" / "faults.md").read_text(), re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, 36))


@pytest.mark.parametrize("page", ["node.md", "nav2.md", "faults.md"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", (REPOSITORY / "docs" / page).read_text()):
        if "://" not in target:
            assert (REPOSITORY / "docs" / target).exists(), target
