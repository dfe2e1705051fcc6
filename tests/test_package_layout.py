"""The layout of the package, as far as import contracts (pyproject.toml) cannot check it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

PACKAGE = REPOSITORY / "worldstereo_ros"
FOLDERS = [folder.name for folder in PACKAGE.iterdir() if folder.is_dir() and folder.name != "__pycache__"]


def private_imports(file: Path) -> Iterator[str]:
    """Private names of other top-level folders that a module imports or reads from an imported module."""
    own = file.relative_to(PACKAGE).parts[0]
    foreign_modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("worldstereo_ros."):
            parts = (node.module or "").split(".")[1:]
            if parts[0] == own:
                continue
            foreign_modules |= {alias.asname or alias.name for alias in node.names}
            for name in (*parts, *(alias.name for alias in node.names)):
                if name.startswith("_"):
                    yield f"{'.'.join(parts)}: {name}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            if private and node.value.id in foreign_modules:
                yield f"{node.value.id}.{node.attr}"


def test_package_root_holds_world_py_and_folders_only():
    assert sorted(file.name for file in PACKAGE.iterdir() if file.is_file()) == ["__init__.py", "world.py"]


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_no_folder_uses_private_names_of_another(folder):
    found = {
        str(file.relative_to(PACKAGE)): names
        for file in sorted((PACKAGE / folder).rglob("*.py"))
        if (names := list(private_imports(file)))
    }
    assert found == {}


def test_private_imports_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    file = tmp_path / "io" / "reader.py"
    file.parent.mkdir()
    file.write_text(
        "from worldstereo_ros.memory import cloud\nfrom worldstereo_ros.depth.alignment import _fit\ncloud._hash\n"
    )
    assert list(private_imports(file)) == ["depth.alignment: _fit", "cloud._hash"]
