"""jobs.yaml: sources, paths and seeds; every combination is a job. All of it is checked before anything starts.

settings: {model: small}        # options of `worldstereo imagine` that all jobs share
sources:                        # what is observed
  - hall.wsmap                  # a saved map, a recording, a bag, or worlds:SPLIT:COUNT; or with options:
  - {name: kitchen, source: recordings/kitchen, observations: 4, size: 320x240}
paths:                          # what is imagined along
  - orbit
  - {name: walk, path: walk.txt, views: 8}
seeds: [0, 1]
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from worldstereo_ros.batch.jobs import Job
from worldstereo_ros.batch.options import PATH_OPTIONS, SETTINGS, SOURCE_OPTIONS, check_keys, check_options
from worldstereo_ros.utils.errors import InputError

MAX_FILE_BYTES = 8 * 2**20
MAX_JOBS = 100_000
MAX_SEED = 2**32 - 1
MAX_STAMPED_FILES = 200_000  # in a folder that is a source
KINDS = ("source", "map", "bag", "worlds")  # keys that say what a source is
MAP_SUFFIX, MAP_FILE, POSES_FILE, BAG_SUFFIXES = ".wsmap", "world.wsmap", "poses.txt", (".mcap", ".db3", ".bag")
WORLDS = "worlds:"
WORLD_PATH = "walk"  # the recorded path of a procedural world
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")

ExpandWorlds = Callable[[str], list[tuple[str, int]]]


@dataclass(frozen=True)
class JobList:
    """The content of a jobs.yaml.

    Attributes:
        jobs: with fingerprints, source by source, path by path, seed by seed.
        settings: options that all jobs share; those that are not given are missing.
        base: folder that relative paths start from, that of the file.
        inputs: files and folders that the jobs read.
    """

    jobs: list[Job]
    settings: dict[str, Any]
    base: Path
    inputs: list[Path]


def read_job_list(
    file: Path,
    *,
    presets: Iterable[str],
    expand_worlds: ExpandWorlds,
    check_size: Callable[[str], object],
    version: str,
) -> JobList:
    """Reads and checks a list of jobs.

    Args:
        file: YAML file.
        presets: names of generated paths.
        expand_worlds: gives split and number of each world of `worlds:SPLIT:COUNT`; raises InputError.
        check_size: raises InputError for text that is no size of images.
        version: of this package, for the fingerprints.

    Raises:
        InputError: anything is wrong with it; the sentence says where.
    """
    content = _read_yaml(file)
    base = file.absolute().parent
    try:
        check_keys(content, ("settings", "sources", "paths", "seeds"), "the file")
        settings = check_options(content.get("settings") or {}, SETTINGS, "settings")
        sources = [
            source
            for number, entry in enumerate(_entries(content, "sources"), 1)
            for source in _source(entry, f"sources, entry {number}", base, expand_worlds, check_size)
        ]
        has_recordings = any(source["kind"] in ("source", "bag") for source in sources)
        paths = [
            _path(entry, f"paths, entry {number}", base, tuple(presets), sources, has_recordings)
            for number, entry in enumerate(_entries(content, "paths"), 1)
        ]
        _check_distinct(sources, "sources")
        _check_distinct(paths, "paths")
        seeds = _seeds(content.get("seeds", [0]))
        count = len(sources) * len(paths) * len(seeds)
        if count > MAX_JOBS:
            raise InputError(
                f"{len(sources)} sources x {len(paths)} paths x {len(seeds)} seeds are {count} jobs; {MAX_JOBS} are "
                "the limit of one list. Split it."
            )
        return _combine(sources, paths, seeds, settings, base, version)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _combine(
    sources: list[dict[str, Any]],
    paths: list[dict[str, Any]],
    seeds: list[int],
    settings: dict[str, Any],
    base: Path,
    version: str,
) -> JobList:
    inputs: dict[str, Path] = {}  # as they are written
    for text in (*(s.get("file", "") for s in sources), *(p.get("file", "") for p in paths)):
        if text:
            inputs[text] = base / text
    model_stamps = [_stamp(path) for path in _model_files(settings, base)]
    stamps = {text: _stamp(path) for text, path in inputs.items()}
    jobs = []
    for source in sources:
        for path in paths:
            read = [stamps.get(entry.get("file", "")) for entry in (source, path)] + model_stamps
            jobs += [
                Job(f"{source['name']}/{path['name']}/seed_{seed}", source, path, seed).with_fingerprint(
                    settings, read, version
                )
                for seed in seeds
            ]
    return JobList(jobs, settings, base, list(inputs.values()))


def _model_files(settings: dict[str, Any], base: Path) -> list[Path]:
    """Files and folders that the models are read from, where they are named as such."""
    found = []
    for key in ("model", "depth_model"):
        text = settings.get(key, "").removeprefix("anyrecon:")
        candidates = [base / name for name in (text, text.rpartition(":")[0]) if name]
        found += [path for path in candidates if path.exists()][:1]
    return found


# --- the file --------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                line = node.value[index][0].start_mark.line + 1
                raise InputError(f"line {line}: the key '{key}' is there twice.")
        return super().construct_mapping(node, deep)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{file} has more than {MAX_FILE_BYTES >> 20} MB; a list of jobs in YAML was expected.")
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); a list of jobs in YAML was expected.") from None
    except UnicodeDecodeError:
        raise InputError(f"{file} is no text in UTF-8; a list of jobs in YAML was expected.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}"
        raise InputError(f"{file} is no YAML: {getattr(error, 'problem', None) or 'it is damaged'}{where}.") from None
    except (InputError, ValueError, TypeError, RecursionError) as error:
        text = str(error) if isinstance(error, InputError) else "its content is not understood."
        raise InputError(text if text.startswith(str(file)) else f"{file}: {text}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} has no keys; `sources` and `paths`, and maybe `seeds` and `settings`, were expected.")
    return content


def _entries(content: dict[str, Any], key: str) -> list[Any]:
    found = content.get(key)
    if not isinstance(found, list) or not found:
        raise InputError(f"`{key}` is {_shown(found)}; a list with at least one entry was expected.")
    if len(found) > MAX_JOBS:
        raise InputError(f"`{key}` has {len(found)} entries; {MAX_JOBS} are the limit.")
    return found


def _check_distinct(entries: list[dict[str, Any]], where: str) -> None:
    names: dict[str, str] = {}
    for entry in entries:
        name = entry["name"]
        if name.lower() in names:  # some file systems do not tell them apart
            raise InputError(f"`{where}`: two entries are named '{name}'; give one of them another `name`.")
        names[name.lower()] = name


def _seeds(found: Any) -> list[int]:
    if not isinstance(found, list) or not found:
        raise InputError(f"`seeds` is {_shown(found)}; a list of numbers, such as [0, 1, 2], was expected.")
    for seed in found:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED:
            raise InputError(f"`seeds` holds {_shown(seed)}; whole numbers from 0 to {MAX_SEED} were expected.")
    if len(set(found)) < len(found):
        twice = next(seed for index, seed in enumerate(found) if seed in found[:index])
        raise InputError(f"`seeds` holds {twice} twice.")
    return found


# --- sources ---------------------------------------------------------------------------------------------------------


def _source(
    entry: Any, where: str, base: Path, expand_worlds: ExpandWorlds, check_size: Callable[[str], object]
) -> list[dict[str, Any]]:
    """The sources of an entry: one, or one for each world."""
    if isinstance(entry, str):
        entry = {_kind(entry, base): entry}
    if not isinstance(entry, dict):
        raise InputError(f"{where} is {_shown(entry)}; the path of a source, or keys and values, were expected.")
    given = [kind for kind in KINDS if kind in entry]
    check_keys(entry, ("name", *KINDS, *SOURCE_OPTIONS), where)
    if len(given) != 1:
        raise InputError(f"{where}: one of {', '.join(KINDS)} was expected; there is {' and '.join(given) or 'none'}.")
    kind, text = given[0], entry[given[0]]
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{where}: `{kind}` is {_shown(text)}; text was expected.")
    options = check_options({k: v for k, v in entry.items() if k not in ("name", kind)}, SOURCE_OPTIONS, where)
    _check_fits(kind, options, where)
    if "size" in options:
        _located(where, check_size, options["size"])
    if "observe" in options and "observations" in options:
        raise InputError(f"{where}: `observe` names the frames and `observations` their number; one was expected.")
    if kind == "worlds":
        text = text if text.startswith(WORLDS) else WORLDS + text
        worlds = _located(where, expand_worlds, text)
        name = _name(entry.get("name", ""), "world", where)
        return [
            {"kind": "world", "name": f"{name}_{split}_{index}", "split": split, "index": index, **options}
            for split, index in worlds
        ]
    path = base / text
    if not path.exists():
        raise InputError(f"{where}: {path} does not exist.")
    real = path.resolve()
    default = real.parent.name if path.name == MAP_FILE else real.stem if real.is_file() else real.name
    return [{"kind": kind, "name": _name(entry.get("name", ""), default, where), "file": text, **options}]


def _kind(text: str, base: Path) -> str:
    """Which kind of source a text without a key is."""
    path = base / text
    if text.startswith(WORLDS):
        return "worlds"
    if path.suffix == MAP_SUFFIX or ((path / MAP_FILE).is_file() and not (path / POSES_FILE).is_file()):
        return "map"
    if path.suffix in BAG_SUFFIXES or (path / "metadata.yaml").is_file():
        return "bag"
    return "source"


def _check_fits(kind: str, options: dict[str, Any], where: str) -> None:
    fitting = {name for name, option in SOURCE_OPTIONS.items() if kind in option.kinds}
    for name in options:
        if name not in fitting:
            listed = f"those are {', '.join(sorted(fitting))}" if fitting else "there is none"
            raise InputError(f"{where}: `{name}` is no option of a source of the kind `{kind}`; {listed}.")


# --- paths -----------------------------------------------------------------------------------------------------------


def _path(
    entry: Any, where: str, base: Path, presets: tuple[str, ...], sources: list[dict[str, Any]], has_recordings: bool
) -> dict[str, Any]:
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, dict):
        raise InputError(f"{where} is {_shown(entry)}; the name of a path, or keys and values, were expected.")
    check_keys(entry, ("name", "path", *PATH_OPTIONS), where)
    text = entry.get("path")
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(
            f"{where}: `path` is {_shown(text)}; a generated path, a file or a recorded path was expected."
        )
    options = check_options({k: v for k, v in entry.items() if k not in ("name", "path")}, PATH_OPTIONS, where)
    found: dict[str, Any] = {"path": text, **options}
    file = base / text
    if text not in presets and file.exists():
        if file.is_dir() and not (file / POSES_FILE).is_file():
            raise InputError(f"{where}: {file} is a folder without {POSES_FILE}; a file of poses was expected.")
        found["file"] = text
    elif text not in presets:
        is_topic = text.startswith("/") and any(source["kind"] == "bag" for source in sources)
        if not is_topic and ("/" in text or Path(text).suffix):
            raise InputError(f"{where}: {file} does not exist; a file of poses was expected.")
        is_walk = text == WORLD_PATH and any(source["kind"] == "world" for source in sources)
        if not (is_topic or is_walk or has_recordings):
            raise InputError(
                f"{where}: '{text}' is neither a generated path ({', '.join(presets)}) nor a file, and no source is a "
                "recording, which could have a path of that name."
            )
    default = (file.resolve().stem if file.is_file() else file.name) if "file" in found else text.strip("/")
    return {"name": _name(entry.get("name", ""), default, where), **found}


def _name(given: Any, default: str, where: str) -> str:
    if given != "":
        if not isinstance(given, str) or not _NAME.fullmatch(given):
            raise InputError(
                f"{where}: the name {_shown(given)} cannot be that of a folder; up to 80 letters, digits, '.', '_' and "
                "'-' were expected, a letter or digit first."
            )
        return given
    return re.sub(r"^[^A-Za-z0-9]+", "", re.sub(r"[^A-Za-z0-9._-]", "_", default))[:80] or "unnamed"


def _located(where: str, function: Callable[[str], Any], value: str) -> Any:
    try:
        return function(value)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    text = repr(value)
    if isinstance(value, float) and not math.isfinite(value):
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- stamps ----------------------------------------------------------------------------------------------------------


def _stamp(path: Path) -> str:
    """SHA-256 of names, sizes and times of the last change of a file and what is read beside it, or of all in a folder.

    It tells a changed input.

    Raises:
        InputError: a folder has more files than a recording has.
    """
    if path.is_file():
        beside = {path.name: path} | {name: path.with_name(name) for name in _names_beside(path)}
        stats = {name: file.stat() for name, file in beside.items() if file.is_file()}
        return _digest([[name, status.st_size, status.st_mtime_ns] for name, status in sorted(stats.items())])
    found: list[list[Any]] = []
    for parent, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            file = Path(parent) / name
            try:
                status = file.stat()
            except OSError:  # a broken link; whoever reads it says so
                continue
            found.append([file.relative_to(path).as_posix(), status.st_size, status.st_mtime_ns])
        if len(found) > MAX_STAMPED_FILES:
            raise InputError(
                f"{path} holds more than {MAX_STAMPED_FILES} files; the folder of one recording was expected."
            )
    return _digest(found)


def _names_beside(file: Path) -> tuple[str, ...]:
    """Names of the files beside a photo, a video or a file of poses that are read with it: see `io.datasets`."""
    return f"{file.stem}_depth.png", "depth.png", "intrinsics.json", "prompt.json"


def _digest(content: list[list[Any]]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
