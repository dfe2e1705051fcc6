#!/usr/bin/env python3
"""Writes the generated pages of docs/reference/ and config/worldstereo.yaml.

With --check it writes nothing and fails if a file is missing or out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from cli_page import cli_page
from node_page import node_page
from reference_pages import api_pages, interfaces_page

from worldstereo_ros.ros.node.parameter_text import to_yaml

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
API = REFERENCE / "python"
PAGES: dict[Path, Callable[[], str]] = {
    REFERENCE / "node.md": node_page,
    REFERENCE / "cli.md": cli_page,
    REFERENCE / "interfaces.md": interfaces_page,
    ROOT / "config" / "worldstereo.yaml": to_yaml,
}


def generated_files() -> dict[Path, str]:
    """Returns the content of every generated file by its path."""
    return {path: make() for path, make in PAGES.items()} | {API / name: text for name, text in api_pages().items()}


def stale_files() -> tuple[dict[Path, str], list[Path]]:
    """Returns the files to write with their content, and the generated files to remove."""
    files = generated_files()
    to_write = {path: text for path, text in files.items() if not path.exists() or path.read_text() != text}
    return to_write, [path for path in sorted(API.glob("*.md")) if path not in files]


def main() -> None:
    """Writes the files, or checks them."""
    check = "--check" in sys.argv[1:]
    to_write, to_remove = stale_files()
    if check:
        for path in (*to_write, *to_remove):
            print(f"{path.relative_to(ROOT)} is out of date; run scripts/write_docs.py.", file=sys.stderr)
        sys.exit(1 if to_write or to_remove else 0)
    for path, text in to_write.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")
    for path in to_remove:
        path.unlink()
        print(f"removed {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
