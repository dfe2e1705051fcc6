"""The pages of docs/: navigation, links, anchors, generated pages, and the commands and imports they show."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.paths import REPOSITORY

DOCS = REPOSITORY / "docs"
PACKAGE = REPOSITORY / "worldstereo_ros"
PAGES = sorted(DOCS.rglob("*.md"))
WITH_README = [REPOSITORY / "README.md", *PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def prose(page: Path) -> str:
    """The text without fenced code."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as Python-Markdown's toc extension makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())
        number, unique = 0, slug
        while unique in found:
            number += 1
            unique = f"{slug}_{number}"
        found.add(unique)
    return found


def mkdocs_config() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())


def nav_entries(entry: Any) -> Iterator[str]:
    """Every page below an entry of the navigation."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        for value in entry.values():
            yield from nav_entries(value)
    else:
        for value in entry:
            yield from nav_entries(value)


def test_nav_lists_every_page_once():
    entries = list(nav_entries(mkdocs_config()["nav"]))
    assert len(entries) == len(set(entries))
    assert set(entries) == {str(page.relative_to(DOCS)) for page in PAGES}


def test_mkdocs_treats_every_broken_link_as_an_error():
    config = mkdocs_config()
    assert config["strict"] is True
    assert set(config["validation"]["links"].values()) == {"warn"}
    assert set(config["validation"]["nav"].values()) == {"warn"}


@pytest.mark.parametrize("page", WITH_README, ids=name_of)
def test_links_and_anchors_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name_of(page)} links to {target}, which does not exist"
        if page.is_relative_to(DOCS):
            assert file.is_relative_to(DOCS), f"{name_of(page)} links to {target}, outside docs/"
        if anchor:
            assert anchor in anchors(file), f"{name_of(page)} links to {target}; {file.name} has no such heading"


def test_every_image_is_used():
    text = "\n".join(page.read_text() for page in WITH_README)
    for image in (DOCS / "images").iterdir():
        assert f"images/{image.name}" in text, f"{image.name} is on no page"


def test_every_guide_goes_from_a_command_to_an_image():
    for guide in sorted((DOCS / "guides").glob("*.md")):
        text = guide.read_text()
        assert "```bash" in text or "```python" in text, guide.name
        assert "](../images/" in text, guide.name


def test_readme_has_fewer_than_150_lines():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) < 150


def test_generated_pages_are_up_to_date():
    import write_docs

    to_write, to_remove = write_docs.stale_files()
    assert not to_write, "run scripts/write_docs.py"
    assert not to_remove, "run scripts/write_docs.py"


def test_small_model_tables_are_up_to_date():
    import write_small_model

    assert write_small_model.main(["--check"]) == 0, "run scripts/write_small_model.py"


def test_provenance_tables_are_up_to_date():
    import write_provenance

    assert write_provenance.main(["--check"]) == 0, "run scripts/write_provenance.py"


@pytest.mark.parametrize("page", WITH_README, ids=name_of)
def test_named_source_files_exist(page):
    for path in re.findall(r"`((?:[\w]+/)+\w+\.py|config/[\w/.]+)`", page.read_text()):
        assert any((folder / path).is_file() for folder in (REPOSITORY, PACKAGE)), f"{name_of(page)} names {path}"


@pytest.mark.parametrize("page", WITH_README, ids=name_of)
def test_python_examples_import_names_that_exist(page):
    for language, code in FENCE.findall(page.read_text()):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("worldstereo_ros"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{name_of(page)}: {node.module} has no {alias.name}"


def commands_in(text: str) -> Iterator[list[str]]:
    """The arguments of each call of `worldstereo` in the shell examples of a page."""
    blocks = [code for language, code in FENCE.findall(text) if language == "bash"]
    blocks += re.findall(r"`((?:\.venv/bin/)?worldstereo [a-z][^`]*)`", FENCE.sub("", text))
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|;", line):
            words = shlex.split(part, comments=True)
            for program in ("worldstereo", ".venv/bin/worldstereo"):
                if words and words[0] == program:
                    yield words[1:]
            if "worldstereo_ros.cli" in words:
                yield words[words.index("worldstereo_ros.cli") + 1 :]


@pytest.mark.parametrize("page", [page for page in WITH_README if page.name != "cli.md"], ids=name_of)
def test_shell_examples_use_commands_and_options_that_exist(page):
    import typer.main

    from worldstereo_ros.cli.main import app

    for words in commands_in(page.read_text()):
        command, rest = typer.main.get_command(app), list(words)
        while hasattr(command, "commands") and rest and rest[0] in command.commands:
            command = command.commands[rest.pop(0)]
        if hasattr(command, "commands") and rest and rest[0].isupper():
            continue  # a placeholder for the command
        assert not hasattr(command, "commands") or not rest, f"{name_of(page)}: worldstereo {' '.join(words)}"
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for word in rest:
            if word.startswith("--"):
                assert word.partition("=")[0] in options, f"{name_of(page)}: worldstereo {' '.join(words)}"


@pytest.mark.parametrize("page", WITH_README, ids=name_of)
def test_script_examples_use_options_that_exist(page):
    text = page.read_text().replace("\\\n", " ")
    for script, arguments in re.findall(r"python ((?:benchmarks|scripts|examples)/\w+\.py)([^\n`#]*)", text):
        source = (REPOSITORY / script).read_text()
        for option in re.findall(r"--[a-z][a-z-]*", arguments):
            assert f'"{option}"' in source, f"{name_of(page)}: {script} has no {option}"


@pytest.mark.slow
def test_mkdocs_builds_without_warnings(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; `make docs` installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "site" / "index.html").is_file()
