"""Finds the files of AnyRecon: Wan 2.1's own files and the LoRA, wherever the user keeps them.

    models/
      diffusion_pytorch_model-00001-of-00007.safetensors ...     transformer, original layout
      models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth    CLIP
      models_t5_umt5-xxl-enc-bf16.pth                            text encoder
      Wan2.1_VAE.pth                                             autoencoder
      full_attention.ckpt                                        AnyRecon's LoRA

The base may be a folder of its own, given as `base`, named in `anyrecon.json` beside the LoRA
(`{"base": "../Wan2.1-I2V-14B-720P", "lora": "full_attention.ckpt"}`), or a folder below.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from worldstereo_ros.models.checkpoints.loading import BASE_STEM
from worldstereo_ros.models.checkpoints.weights import CheckpointError, read_json

SETTINGS_FILE = "anyrecon.json"
LORA_NAMES = ("full_attention.ckpt", "AnyRecon_full_attention.ckpt")
LORA_SUFFIXES = (".ckpt", ".safetensors", ".pth", ".pt")
AUTOENCODER_NAMES = ("Wan2.1_VAE.pth", "Wan2.1_VAE.safetensors")
CLIP_NAMES = (
    "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    "models_clip_open-clip-xlm-roberta-large-vit-huge-14.safetensors",
)
TEXT_NAMES = ("models_t5_umt5-xxl-enc-bf16.pth", "models_t5_umt5-xxl-enc-bf16.safetensors")
_WHERE = (
    "The files are those of the repository Wan-AI/Wan2.1-I2V-14B-720P (the original one, without -Diffusers) and "
    "AnyRecon's LoRA; see docs/guides/anyrecon.md."
)


@dataclass(frozen=True)
class AnyReconFiles:
    """The files of one model.

    Attributes:
        base: folder of the transformer.
        lora: LoRA file; None: the base alone.
        autoencoder, clip, text: files of the other parts.
    """

    base: Path
    lora: Path | None
    autoencoder: Path
    clip: Path
    text: Path


def find_files(path: str | Path, *, lora: str | Path | None = None, base: str | Path | None = None) -> AnyReconFiles:
    """Finds the files of AnyRecon.

    Args:
        path: folder with the LoRA or with everything, or the LoRA file.
        lora: LoRA file; "" for none; None: the one in `path`.
        base: folder of Wan 2.1's own files; None: that of `anyrecon.json`, `path`, or the one folder below it.

    Raises:
        CheckpointError: a file or folder is missing, or there are several that it could be.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(f"There is no {path}. {_WHERE}")
    folder = path if path.is_dir() else path.parent
    if path.is_file() and path.name != SETTINGS_FILE and lora is None:
        lora = path
    settings = _read_settings(folder)
    base_folder = _find_base(folder, base, settings)
    if lora is None:
        lora = settings.get("lora")
        lora_file = None if lora == "" else _existing(folder / lora, "LoRA") if lora else _find_lora(folder)
    else:
        lora_file = None if str(lora) == "" else _existing(Path(lora).expanduser(), "LoRA")
    parts = {"autoencoder": AUTOENCODER_NAMES, "CLIP model": CLIP_NAMES, "text encoder": TEXT_NAMES}
    found = [_find_part((base_folder, folder), names, what) for what, names in parts.items()]
    return AnyReconFiles(base_folder, lora_file, *found)


def _read_settings(folder: Path) -> dict[str, str]:
    file = folder / SETTINGS_FILE
    if not file.is_file():
        return {}
    content = read_json(file)
    unknown = sorted(set(content) - {"base", "lora"})
    if unknown or not all(isinstance(value, str) for value in content.values()):
        raise CheckpointError(f"{file} may have the keys base and lora, each with a path; it has {', '.join(content)}.")
    return content


def _find_base(folder: Path, base: str | Path | None, settings: dict[str, str]) -> Path:
    if base is not None or "base" in settings:
        chosen = Path(base).expanduser() if base is not None else folder / Path(settings["base"]).expanduser()
        if not chosen.is_dir():
            raise CheckpointError(f"The base {chosen} is no folder. {_WHERE}")
        if not _has_transformer(chosen):
            raise CheckpointError(f"{chosen} has no {BASE_STEM}*.safetensors. {_hint(chosen)}{_WHERE}")
        return chosen
    if _has_transformer(folder):
        return folder
    below = [child for child in sorted(folder.iterdir()) if child.is_dir() and _has_transformer(child)]
    if len(below) == 1:
        return below[0]
    if below:
        names = ", ".join(child.name for child in below)
        raise CheckpointError(f"{folder} has several base models ({names}); name one in {SETTINGS_FILE} (base).")
    raise CheckpointError(
        f"{folder} has no {BASE_STEM}*.safetensors, nor has a folder in it: the transformer is missing. "
        f"{_hint(folder)}{_WHERE}"
    )


def _has_transformer(folder: Path) -> bool:
    return any(folder.glob(f"{BASE_STEM}*.safetensors"))


def _hint(folder: Path) -> str:
    if (folder / "transformer").is_dir():
        return "It has the layout of diffusers. "
    return ""


def _find_lora(folder: Path) -> Path:
    named = [folder / name for name in LORA_NAMES if (folder / name).is_file()]
    others = [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and file.suffix in LORA_SUFFIXES and ("lora" in file.name.lower() or file.suffix == ".ckpt")
    ]
    candidates = named or [file for file in others if not file.name.startswith(BASE_STEM)]
    if len(candidates) > 1:
        names = ", ".join(file.name for file in candidates)
        raise CheckpointError(f"{folder} has several files that could be the LoRA ({names}); name one with lora.")
    if not candidates:
        raise CheckpointError(
            f"{folder} has no LoRA ({' or '.join(LORA_NAMES)}); without it the base model does not know captures. "
            f'Put it there, or name it with lora ("" for the base model alone). {_WHERE}'
        )
    return candidates[0]


def _existing(file: Path, what: str) -> Path:
    if not file.is_file():
        raise CheckpointError(f"The {what} {file} does not exist. {_WHERE}")
    return file


def _find_part(folders: tuple[Path, ...], names: tuple[str, ...], what: str) -> Path:
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise CheckpointError(f"{folders[0]} has no {names[0]}: the {what} is missing. {_WHERE}")
