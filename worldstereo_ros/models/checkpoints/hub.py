"""Where a checkpoint and its base are: a folder, or a repository on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from worldstereo_ros.models.checkpoints.config import VARIANTS, CheckpointConfig, read_config
from worldstereo_ros.models.checkpoints.weights import PICKLES, CheckpointError
from worldstereo_ros.weights.bundled import BUNDLED, bundled_folder

PUBLISHED = "hanshanxue/WorldStereo"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found; its weights are still on disk.

    Attributes:
        root: the folder (or hub snapshot) that holds the variants.
        folder: the one with `config.json` and `model.safetensors`.
        settings: what `config.json` says.
        local_files_only: never ask the hub.
    """

    root: Path
    folder: Path
    settings: CheckpointConfig
    local_files_only: bool = False

    @property
    def variant(self) -> str:
        """One of `VARIANTS`."""
        return self.settings.variant

    def base(self, *parts: str) -> Path:
        """The folder of the base model, with these of its subfolders there (transformer, vae, text_encoder, ...).

        A relative `base_model` is looked for beside `config.json`, then in the root, and may not leave the root; then
        it is a hub id, of which only the parts are fetched, and of them only JSON, safetensors and tokenizer files.

        Raises:
            CheckpointError: it is nowhere.
        """
        name = self.settings.base_model
        local = Path(name).expanduser()
        if local.is_absolute():
            if local.is_dir():
                return local
            raise CheckpointError(f"The base model {local} of {self.folder} is not a folder on this machine.")
        root = Path(os.path.normpath(self.root))
        for parent in (self.folder, self.root):
            candidate = Path(os.path.normpath(parent / name))
            if candidate.is_dir() and candidate.is_relative_to(root):
                return candidate
        if not _HUB_ID.fullmatch(name):
            raise CheckpointError(
                f"The base model '{name}' of {self.folder} is neither a folder below {root} nor a hub id (owner/name)."
            )
        kinds = ("*.json", "*.safetensors", "*.model", "*.txt")
        patterns = [f"{part}/{kind}" for part in parts or ("transformer",) for kind in kinds]
        return _snapshot(name, patterns, "the base model", self.local_files_only)


def find_checkpoint(model: str | Path, variant: str | None = None, *, local_files_only: bool = False) -> Checkpoint:
    """Finds a checkpoint and reads its `config.json`.

    Args:
        model: a folder with one subfolder a variant, the folder of a variant itself, a hub id (`owner/name`), a hub id
            with its variant (`owner/name/worldstereo-memory`), or `small`, the model that comes with the package (a
            folder of that name is `./small`).
        variant: one of `VARIANTS`, with or without `worldstereo-`; None: the one that is there, and of several the
            one with the fewest steps.
        local_files_only: take from the hub only what was fetched before.

    Raises:
        CheckpointError: there is none, or it is another variant's.
    """
    if variant is not None and f"worldstereo-{variant}" in VARIANTS:
        variant = f"worldstereo-{variant}"
    if variant is not None and variant not in VARIANTS:
        raise CheckpointError(f"The variant '{variant}' is not known; choose one of {', '.join(VARIANTS)}.")
    path = _folder(model)
    if path.is_file():
        raise _no_folder(path)
    if not path.exists():
        return _on_hub(str(model), variant, local_files_only)
    # Absolute, so that the folder of the variant has a name and a parent.
    path = Path.cwd() / path
    if (path / "config.json").is_file():
        asked = variant or (path.name if path.name in VARIANTS else None)
        return Checkpoint(path.parent, path, read_config(path / "config.json", asked), local_files_only)
    here = [name for name in VARIANTS if (path / name / "config.json").is_file()]
    chosen = variant or (here[0] if here else None)
    if chosen not in here:
        found = f"it has {', '.join(here)}" if here else "no folder of a variant with a config.json is in it"
        raise CheckpointError(f"{path} has no checkpoint{f' {chosen}' if chosen else ''}; {found}.")
    folder = path / chosen
    return Checkpoint(path, folder, read_config(folder / "config.json", chosen), local_files_only)


def list_variants(root: str | Path) -> list[str]:
    """The variants below a folder, or of a model that comes with the package."""
    folder = _folder(root)
    return [name for name in VARIANTS if (folder / name / "config.json").is_file()]


def _folder(model: str | Path) -> Path:
    if model not in BUNDLED:  # a Path never is: it means a folder
        return Path(model).expanduser()
    folder = bundled_folder(str(model))
    if not folder.is_dir():
        raise CheckpointError(
            f"The model '{model}' comes with the package and this installation lacks it: there is no folder {folder}. "
            "Install worldstereo_ros again, or use the model geometric, which needs no weights."
        )
    return folder


def _on_hub(model: str, variant: str | None, local_files_only: bool) -> Checkpoint:
    owner_and_name, _, last = model.rpartition("/")
    if last in VARIANTS and _HUB_ID.fullmatch(owner_and_name):
        if variant not in (None, last):
            raise CheckpointError(f"'{model}' names the variant {last} and {variant} was asked for.")
        model, variant = owner_and_name, last
    if not _HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"There is no model '{model}': it is no folder on this machine and no hub id such as {PUBLISHED}."
        )
    chosen = variant or VARIANTS[0]
    files = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
    root = _snapshot(model, [f"{chosen}/{file}" for file in files], "the checkpoint", local_files_only)
    folder = root / chosen
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"The hub repository {model} has no {chosen}/config.json.")
    return Checkpoint(root, folder, read_config(folder / "config.json", chosen), local_files_only)


def _snapshot(repository: str, patterns: list[str], what: str, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=local_files_only))
    except GatedRepoError:
        why = "its owner gives it on request; ask on its page and log in with `hf auth login`"
    except RepositoryNotFoundError:
        why = "the hub has no such repository, or it is private; check the name, or log in with `hf auth login`"
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        why = "it was not fetched before and the hub cannot be reached; fetch it where there is a network"
    except (HfHubHTTPError, OSError) as error:
        why = f"the hub answered: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    except Exception as error:  # the client's transport raises types of its own, which vary with its version
        why = f"the hub cannot be reached ({type(error).__name__}); fetch it where there is a network"
    raise CheckpointError(f"{repository}, {what}, could not be had: {why}.")


def _no_folder(path: Path) -> CheckpointError:
    if path.suffix in PICKLES:
        return CheckpointError(
            f"{path} is a pickle, which can run code when it is opened; give a folder with config.json and "
            "model.safetensors."
        )
    return CheckpointError(f"{path} is a file; give the folder with config.json and model.safetensors.")
