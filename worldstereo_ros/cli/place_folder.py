"""What the folder of a place holds, for `worldstereo inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FIGURES_FILE = "figures.json"
REQUIRED = frozenset(("images", "registered", "left_out", "metric", "seconds", "points"))  # in the figures of a place
FILES = {
    "world.wsmap": "the memories: cloud and photographs with depth",
    "cloud.ply": "the cloud",
    "mesh.glb": "the mesh",
    "splats.ply": "Gaussian splats",
    "colmap": "poses and intrinsics of the photographs",
    "observed": "the photographs with depth, as a posed sequence",
}
OPTIONAL = {"mesh.glb": "mesh_triangles", "splats.ply": "splats"}  # which figure says that there is one


def is_place(folder: Path) -> bool:
    """Whether a path is the folder of a place that `worldstereo reconstruct` made."""
    return bool(_figures(folder))


def describe_folder(folder: Path) -> tuple[list[str], bool]:
    """(lines about the place, whether all its files are there)."""
    figures = _figures(folder)
    unit = "metres" if figures["metric"] else "arbitrary (metric: false)"
    lines = [
        _row("place", str(folder)),
        _row("photographs", f"{figures['registered']} of {figures['images']} registered"),
        _row(
            "poses", f"from the {figures.get('poses_from', 'photographs')}; source: {figures.get('source', 'unknown')}"
        ),
        _row("unit", unit),
        _row("points", _points(figures)),
    ]
    complete = True
    for name, what in FILES.items():
        file = folder / name
        wanted = name not in OPTIONAL or figures.get(OPTIONAL[name]) is not None
        if not file.exists():
            complete &= not wanted
            lines.append(_row(name, f"MISSING: {what}" if wanted else "not made"))
            continue
        count = figures.get(OPTIONAL.get(name, ""))
        number = "" if count is None else f", {count:,} {'triangles' if name == 'mesh.glb' else 'splats'}"
        lines.append(_row(name, f"{_bytes(file) / 1e6:.1f} MB, {what}{number}"))
    lines.append(_row("seconds", ", ".join(f"{stage} {value:.0f}" for stage, value in figures["seconds"].items())))
    lines += [_row("left out", f"{name}: {reason}") for name, reason in figures["left_out"].items()]
    lines += [_row("note", note) for note in figures.get("notes", [])]
    return lines, complete


def _figures(folder: Path) -> dict[str, Any]:
    """The figures of a place; empty if the folder is none."""
    try:
        content = json.loads((folder / FIGURES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and content.keys() >= REQUIRED else {}


def _points(figures: dict[str, Any]) -> str:
    parts = [
        f"{figures[f'{kind}_points']:,} {kind}" for kind in ("observed", "estimated") if f"{kind}_points" in figures
    ]
    return f"{figures['points']:,}" + (f" ({', '.join(parts)})" if parts else "")


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _row(label: str, value: str) -> str:
    return f"{label:<15}{value}"
