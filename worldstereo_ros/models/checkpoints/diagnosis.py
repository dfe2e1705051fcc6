"""Says what a weight file that cannot be used really is, and the one thing to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from worldstereo_ros.utils.file_kinds import explain_unreadable, identify_file

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library
_LORA = ("lora_", "lora.", ".hada_", ".lokr_")
_QUANTISED = (".absmax", ".quant_map", ".quant_state", ".qweight", ".qzeros", ".scale_weight", ".weight_scale", ".SCB")
_WAN_NAMES = ("text_embedding.0.weight", "blocks.0.self_attn.q.weight")  # of Wan's own repository
_CONVERT_PICKLE = (
    "which can execute code when it is opened. Convert it once with a tool that you trust: load it with "
    "torch.load(..., weights_only=True) and write it with safetensors.torch.save_file."
)
_WRONG_KINDS = ("lfs-pointer", "annex-pointer", "html", "xml-error", "empty", "zeros")


def explain_weight_file(file: Path) -> str:
    """Says why a file is no readable safetensors file.

    Args:
        file: the file.

    Returns:
        One or two sentences.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(4096)
        kind = identify_file(file)
    except OSError:
        return explain_unreadable(file) or "It cannot be opened."
    if kind.name == "pickle" or (kind.name == "zip" and b"/data.pkl" in head):
        return f"It is a PyTorch file (a pickle) by another name, {_CONVERT_PICKLE}"
    if head.startswith(b"GGUF"):
        return "It is a GGUF file, quantised for other programs. Use the safetensors files of the original model."
    explained = explain_unreadable(file, "safetensors")
    return explained or _explain_truncation(file) or "It is damaged; download it again."


def explain_dtypes(dtypes: Mapping[str, str]) -> str:
    """Says what weights are that are not in floating point of 16 bits or more.

    Args:
        dtypes: dtype of each tensor, as safetensors names them.

    Returns:
        A sentence; empty if they are not quantised.
    """
    eight_bits = any(dtype.startswith(("F8", "F4", "F6")) for dtype in dtypes.values())
    if eight_bits or any(name.endswith(_QUANTISED) or ".quant_state." in name for name in dtypes):
        what = "8-bit floating point (fp8)" if eight_bits else "integers (bitsandbytes, GPTQ or AWQ)"
        return f"It is quantised to {what}, which is not supported. Use the file in bfloat16 or float16."
    return ""


def explain_names(names: Iterable[str]) -> str:
    """Says what a file is whose tensor names are not those of the model.

    Args:
        names: names of the tensors in the file.

    Returns:
        A sentence; empty if the names say nothing.
    """
    names = list(names)
    if any(part in name for name in names for part in _LORA):
        return (
            "It is a LoRA (a change of a model, not a model). Merge it into the model that it was trained on "
            "(diffusers: load_lora_weights, fuse_lora, save_pretrained) and give the result."
        )
    if any(name.endswith(end) for name in names for end in _WAN_NAMES):
        return (
            "Its names are those of Wan's own repository. Use the repository of the same name with -Diffusers at the "
            "end, or convert it with diffusers' convert_wan_to_diffusers.py."
        )
    return ""


def explain_missing_weights(folder: Path, stem: str) -> str:
    """Says what is in a folder that has no `<stem>.safetensors`.

    Args:
        folder: the folder.
        stem: name of the expected file without suffix.

    Returns:
        One or two sentences; empty if the folder has nothing that looks like weights.
    """
    names = sorted(p.name for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
    expected = f"{stem}.safetensors"
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    others = [name for name in names if name.endswith(".safetensors")]
    adapters = [name for name in names if "lora" in name.lower() or name.startswith("adapter_")]
    ggufs = [name for name in names if name.endswith(".gguf")]
    if adapters:
        return f"It has {adapters[0]}. {explain_names(['lora_A.weight'])}"
    if any("-of-0" in name for name in others):
        return f"It has {others[0]}, a shard, but not {expected}.index.json, which names them all; download that."
    if others:
        return f"It has {others[0]}; rename it to {expected} if it is this model."
    if ggufs:
        return f"It has {ggufs[0]}, quantised for other programs. Use the safetensors files of the original model."
    if pickles:
        return f"The weights are in {pickles[0]}, a pickle, {_CONVERT_PICKLE}"
    return ""


def explain_folder(folder: Path) -> str:
    """Names the first file of a folder that is not what its name says, such as a Git LFS pointer.

    Args:
        folder: folder of a tokenizer or another part that a library reads.

    Returns:
        A sentence or two; empty if all files look like what they should be.
    """
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            if file.is_file() and identify_file(file).name in _WRONG_KINDS:
                return f"{file.name}: {explain_unreadable(file)}"
        except OSError:
            continue
    return ""


def _explain_truncation(file: Path) -> str:
    """Compares the size of a safetensors file with what its header says; empty if the header says nothing."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= MAX_HEADER_BYTES:
            return ""
        header = opened.read(length)
    needed = 8 + length
    if len(header) == length:
        try:
            entries = [entry for key, entry in json.loads(header).items() if key != "__metadata__"]
            needed += max(int(entry["data_offsets"][1]) for entry in entries)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return ""
    if size >= needed:
        return ""
    return f"It is truncated: {size} of {needed} bytes are there. Download it again."
