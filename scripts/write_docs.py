#!/usr/bin/env python3
"""Writes what is made from the node's tables: docs/node.md and config/worldstereo.yaml.

With --check it writes nothing and fails where a file is out of date.
"""

import sys
from pathlib import Path

from node_page import node_page

from worldstereo_ros.ros.node.parameters import to_yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = {ROOT / "docs" / "node.md": node_page, ROOT / "config" / "worldstereo.yaml": to_yaml}


def main() -> None:
    """Writes the files, or checks them."""
    check = "--check" in sys.argv[1:]
    stale = [path for path, make in PAGES.items() if not path.exists() or path.read_text() != make()]
    for path in stale:
        if check:
            print(f"{path.relative_to(ROOT)} is out of date; run scripts/write_docs.py.", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(PAGES[path]())
            print(f"wrote {path.relative_to(ROOT)}")
    if check and stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
