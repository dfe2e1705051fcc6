"""Locates a checkpoint and its base model: a folder, or a repository on the Hugging Face hub."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from worldstereo_ros.models.checkpoints.config import VARIANTS, CheckpointConfig, read_config
from worldstereo_ros.models.checkpoints.diagnosis import PICKLE_SUFFIXES, explain_weight_file
from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.utils.errors import first_line
from worldstereo_ros.weights.bundled import BUNDLED, bundled_folder

PUBLISHED_REPO_ID = "hanshanxue/WorldStereo"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

_offline_lock = threading.RLock()


@contextmanager
def offline() -> Iterator[None]:
    """Keeps the hub client off the network while a library reads a local folder.

    Configurations can name hub ids (an adapter's base model, a pretrained backbone, code), which libraries fetch even
    where they are asked for local files. Threads wait for each other.
    """
    from huggingface_hub import constants

    with _offline_lock:
        before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was located; its weights are not loaded yet.

    Attributes:
        root: folder (or hub snapshot) of all variants.
        folder: folder of this variant, with `config.json` and `model.safetensors`.
        config: content of `config.json`.
        local_files_only: use only what is in the local cache of the hub.
    """

    root: Path
    folder: Path
    config: CheckpointConfig
    local_files_only: bool = False

    @property
    def variant(self) -> str:
        """One of `VARIANTS`."""
        return self.config.variant

    def base(self, *parts: str) -> Path:
        """Returns the folder of the base model, downloaded if necessary.

        A relative `base_model` is searched for beside `config.json`, then in `root`; it must lie below `root`.
        Otherwise it is a hub id. Only JSON, safetensors and tokenizer files of `parts` are downloaded.

        Args:
            parts: subfolders that are needed: `transformer`, `vae`, `text_encoder`, ...; default `transformer`.

        Raises:
            CheckpointError: the base model is not found.
        """
        name = self.config.base_model
        local = Path(name).expanduser()
        if local.is_absolute():
            if local.is_dir():
                return local
            raise CheckpointError(
                f"The base model {local} of {self.folder} does not exist; correct base_model in config.json."
            )
        root = Path(os.path.normpath(self.root))
        for parent in (self.folder, self.root):
            candidate = Path(os.path.normpath(parent / name))
            if candidate.is_dir() and candidate.is_relative_to(root):
                return candidate
        if not _HUB_ID.fullmatch(name):
            raise CheckpointError(
                f"The base model '{name}' of {self.folder} is neither a folder below {root} nor a hub id (owner/name); "
                "correct base_model in config.json."
            )
        kinds = ("*.json", "*.safetensors", "*.model", "*.txt")
        patterns = [f"{part}/{kind}" for part in parts or ("transformer",) for kind in kinds]
        return _download_snapshot(name, patterns, "the base model", self.local_files_only)


def find_checkpoint(model: str | Path, variant: str | None = None, *, local_files_only: bool = False) -> Checkpoint:
    """Locates a checkpoint and reads its `config.json`.

    Args:
        model: a folder with one subfolder for each variant, the folder of a variant, a hub id (`owner/name`), a hub id
            with a variant (`owner/name/worldstereo-memory`), or the name of a bundled model (`small`; for a folder of
            that name write `./small`).
        variant: one of `VARIANTS`, with or without `worldstereo-`; None = the variant that is there, of several the
            one with the fewest denoising steps.
        local_files_only: use only what is in the local cache of the hub.

    Raises:
        CheckpointError: there is no such checkpoint, or it is of another variant.
    """
    if variant is not None and f"worldstereo-{variant}" in VARIANTS:
        variant = f"worldstereo-{variant}"
    if variant is not None and variant not in VARIANTS:
        raise CheckpointError(f"The variant '{variant}' does not exist; choose one of {', '.join(VARIANTS)}.")
    path = _resolve_folder(model)
    if path.is_file():
        raise _not_a_folder_error(path)
    if not path.exists():
        return _find_on_hub(str(model), variant, local_files_only)
    # Absolute, so that `path.name` and `path.parent` exist for "." as well.
    path = Path.cwd() / path
    if (path / "config.json").is_file():
        expected = variant or (path.name if path.name in VARIANTS else None)
        return Checkpoint(path.parent, path, read_config(path / "config.json", expected), local_files_only)
    available = [name for name in VARIANTS if (path / name / "config.json").is_file()]
    selected = variant or (available[0] if available else None)
    if selected not in available:
        found = f"it has {', '.join(available)}" if available else "it has no folder of a variant with a config.json"
        raise CheckpointError(f"{path} has no checkpoint{f' {selected}' if selected else ''}; {found}.")
    folder = path / selected
    return Checkpoint(path, folder, read_config(folder / "config.json", selected), local_files_only)


def list_variants(root: str | Path) -> list[str]:
    """Lists the variants below a folder, or of a bundled model.

    Args:
        root: the folder, or the name of a bundled model.
    """
    folder = _resolve_folder(root)
    return [name for name in VARIANTS if (folder / name / "config.json").is_file()]


def _resolve_folder(model: str | Path) -> Path:
    if model not in BUNDLED:  # a Path is never a bundled name: it means a folder
        return Path(model).expanduser()
    folder = bundled_folder(str(model))
    if not folder.is_dir():
        raise CheckpointError(
            f"The bundled model '{model}' is not installed: the folder {folder} is missing. Install worldstereo_ros "
            "again, or use the model geometric, which needs no weights."
        )
    return folder


def _find_on_hub(model: str, variant: str | None, local_files_only: bool) -> Checkpoint:
    owner_and_name, _, last = model.rpartition("/")
    if last in VARIANTS and _HUB_ID.fullmatch(owner_and_name):
        if variant not in (None, last):
            raise CheckpointError(f"'{model}' names the variant {last}, but {variant} was requested.")
        model, variant = owner_and_name, last
    if not _HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"There is no model '{model}': it is neither an existing folder nor a hub id such as {PUBLISHED_REPO_ID}."
        )
    selected = variant or VARIANTS[0]
    files = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
    root = _download_snapshot(model, [f"{selected}/{file}" for file in files], "the checkpoint", local_files_only)
    folder = root / selected
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"The hub repository {model} has no {selected}/config.json; choose another variant.")
    return Checkpoint(root, folder, read_config(folder / "config.json", selected), local_files_only)


def _download_snapshot(repository: str, patterns: list[str], what: str, local_files_only: bool) -> Path:
    """Returns the local folder of a hub repository, with the files that match the patterns."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    download = f"run `hf download {repository}` on a machine with network access, and copy its cache or folder here"
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=local_files_only))
    except GatedRepoError:
        reason = f"access is restricted; request it on https://huggingface.co/{repository} and run `hf auth login`"
    except RepositoryNotFoundError:
        reason = "the hub has no such repository, or it is private; check the name, or run `hf auth login`"
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        reason = f"it was not downloaded before, and the hub is offline or cannot be reached; {download}"
    except (HfHubHTTPError, OSError) as error:
        reason = f"the download failed ({first_line(error)}); try again, or {download}"
    except Exception as error:  # the HTTP client raises its own types, which vary with its version
        reason = f"the hub cannot be reached ({type(error).__name__}); check the network, or {download}"
    raise CheckpointError(f"{repository} ({what}) is not available: {reason}.")


def _not_a_folder_error(path: Path) -> CheckpointError:
    if path.suffix in PICKLE_SUFFIXES:
        return CheckpointError(
            f"{path} is a pickle, which can execute code when it is opened; give a folder with config.json and "
            "model.safetensors."
        )
    explained = explain_weight_file(path) if path.suffix == ".gguf" else ""
    return CheckpointError(
        f"{path} is a file; give the folder with config.json and model.safetensors. {explained}".rstrip()
    )
