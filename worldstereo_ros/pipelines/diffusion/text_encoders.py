"""Text and image conditioning: UMT5 and CLIP of the base model, with a cache of text embeddings."""

from __future__ import annotations

import html
import logging
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from worldstereo_ros.models.checkpoints.bounds import check_numbers
from worldstereo_ros.models.checkpoints.config import read_backbone
from worldstereo_ros.models.checkpoints.diagnosis import explain_folder, explain_names
from worldstereo_ros.models.checkpoints.hub import offline
from worldstereo_ros.models.checkpoints.parameters import check_memory
from worldstereo_ros.models.checkpoints.weights import (
    MAX_JSON_BYTES,
    CheckpointError,
    WeightSet,
    count_tensors,
    format_names,
    open_weights,
    read_json,
)
from worldstereo_ros.utils.errors import first_line

if TYPE_CHECKING:
    from worldstereo_ros.models.checkpoints.hub import Checkpoint

NUM_TEXT_TOKENS = 512
MAX_IMAGE_SIDE = 4096  # of what an image processor makes
MAX_CACHED_PROMPTS = 32

logger = logging.getLogger(__name__)


class TextEncoder:
    """Encodes prompts by UMT5; the embeddings of the last prompts are cached.

    Args:
        tokenizer: tokenizer of transformers.
        encoder: encoder of transformers.
        device: device of the embeddings.
        offload: keep the encoder, with its billions of weights, on the CPU, and move it to the device only while a new
            prompt is encoded.

    Attributes:
        num_encoded: number of prompts that were encoded, not taken from the cache.
    """

    def __init__(self, tokenizer: Any, encoder: torch.nn.Module, device: torch.device, *, offload: bool = True) -> None:
        self.offload = offload and device.type != "cpu"
        self.num_encoded = 0
        self._tokenizer, self._encoder, self._device = tokenizer, encoder, device
        self._cache: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._encoder.to("cpu" if self.offload else device)

    def __call__(self, prompt: str) -> torch.Tensor:
        """Encodes a prompt.

        Returns:
            (1, 512, text_dim) on the device; zero after the last token of the prompt.
        """
        prompt = " ".join(html.unescape(html.unescape(prompt)).split())
        if prompt not in self._cache:
            self._cache[prompt] = self._encode(prompt)
            while len(self._cache) > MAX_CACHED_PROMPTS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(prompt)
        return self._cache[prompt].to(self._device)

    @torch.no_grad()
    def _encode(self, prompt: str) -> torch.Tensor:
        self.num_encoded += 1
        tokens = self._tokenizer(
            [prompt],
            padding="max_length",
            max_length=NUM_TEXT_TOKENS,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        try:
            self._encoder.to(self._device)
            ids, mask = tokens.input_ids.to(self._device), tokens.attention_mask.to(self._device)
            states = self._encoder(ids, mask).last_hidden_state
        finally:
            if self.offload:
                self._encoder.to("cpu")
        # Cached on the CPU: 32 prompts of the published model take 128 MiB.
        return (states * mask[..., None].to(states.dtype)).cpu()


class NullTextEncoder:
    """Replaces the text encoder of models without text conditioning: all prompts give one token of zeros.

    Args:
        text_dim: width of the token.
        device: device of the token.
    """

    def __init__(self, text_dim: int, device: torch.device) -> None:
        self._token = torch.zeros(1, 1, text_dim, device=device)
        self._warned = False

    def __call__(self, prompt: str) -> torch.Tensor:
        """Returns (1, 1, text_dim) zeros on the device; warns at the first prompt that is not empty."""
        if prompt.strip() and not self._warned:
            self._warned = True
            logger.warning("The prompt is ignored: this model has no text conditioning.")
        return self._token


class ImageEncoder:
    """Encodes images to the hidden states before CLIP's last layer.

    Args:
        processor: image processor of transformers.
        encoder: vision encoder of transformers.
        device: device of the encoder.
    """

    def __init__(self, processor: Any, encoder: torch.nn.Module, device: torch.device) -> None:
        self._processor, self._encoder, self._device = processor, encoder.to(device), device

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """Maps an image (H, W, 3) uint8 to (1, image tokens, image_dim)."""
        pixels = self._processor(images=[image], return_tensors="pt", input_data_format="channels_last").pixel_values
        dtype = next(self._encoder.parameters()).dtype
        return self._encoder(pixels.to(self._device, dtype), output_hidden_states=True).hidden_states[-2]


def load_text_encoder(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, *, offload: bool = True
) -> TextEncoder:
    """Loads tokenizer and UMT5 of the base model.

    Args:
        checkpoint: result of `find_checkpoint`.
        device: device of the embeddings.
        dtype: dtype of the encoder; float16, in which it overflows, is replaced by bfloat16.
        offload: see `TextEncoder`.

    Raises:
        CheckpointError: a part is missing, damaged or out of proportion, or does not fit the transformer.
    """
    from transformers import AutoTokenizer, UMT5EncoderModel

    base = checkpoint.base("tokenizer", "text_encoder")
    folder = base / "tokenizer"
    _require_folder(folder, "a tokenizer")
    for file in folder.iterdir():
        if file.is_file() and file.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{file} has {file.stat().st_size} bytes; at most {MAX_JSON_BYTES} were expected in a tokenizer."
            )
    try:
        with offline():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises exceptions of many libraries here
        raise CheckpointError(
            f"The tokenizer in {folder} cannot be read: {first_line(error)}. {explain_folder(folder)}".rstrip()
        ) from None
    if tokenizer.pad_token is None:
        raise CheckpointError(f"The tokenizer in {folder} has no pad_token; the tokenizer of UMT5 was expected.")
    encoder = _load_encoder(
        UMT5EncoderModel,
        base / "text_encoder",
        torch.bfloat16 if dtype == torch.float16 else dtype,
        ("d_model", read_backbone(checkpoint.base("transformer") / "transformer" / "config.json")["text_dim"]),
    )
    if len(tokenizer) > encoder.config.vocab_size:
        raise CheckpointError(
            f"The tokenizer in {folder} has {len(tokenizer)} tokens and the text encoder {encoder.config.vocab_size}; "
            "use the tokenizer and the text encoder of one base model."
        )
    return TextEncoder(tokenizer, encoder, device, offload=offload)


def load_image_encoder(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> ImageEncoder:
    """Loads CLIP and its image processor of the base model.

    Args:
        checkpoint: result of `find_checkpoint`.
        device: device of the encoder.
        dtype: dtype of the encoder.

    Raises:
        CheckpointError: a part is missing, damaged or out of proportion, or does not fit the transformer.
    """
    import transformers

    # The variant without torchvision, for the same numbers on every machine.
    processor_class = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    base = checkpoint.base("image_encoder", "image_processor")
    folder = base / "image_processor"
    _require_folder(folder, "an image processor")
    for file in sorted(folder.glob("*.json")):
        _check_image_sides(file, read_json(file))
    try:
        with offline():
            processor = processor_class.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f"The image processor in {folder} cannot be read: {first_line(error)}. {explain_folder(folder)}".rstrip()
        ) from None
    width = read_backbone(checkpoint.base("transformer") / "transformer" / "config.json")["image_dim"]
    encoder = _load_encoder(transformers.CLIPVisionModel, base / "image_encoder", dtype, ("hidden_size", width))
    return ImageEncoder(processor, encoder, device)


def _check_image_sides(file: Path, content: dict[str, Any]) -> None:
    """Checks the numbers of an image processor; the sizes of its images are numbers, or objects of numbers."""
    check_numbers(file, content)
    for key in ("size", "crop_size"):
        value = content.get(key)
        sides = list(value.values()) if isinstance(value, dict) else [] if value is None else [value]
        if not all(type(side) is int and 1 <= side <= MAX_IMAGE_SIDE for side in sides):
            raise CheckpointError(f"{file}: {key} is {value!r:.60}; sides of 1..{MAX_IMAGE_SIDE} pixels were expected.")


def _load_encoder(model_class: Any, folder: Path, dtype: torch.dtype, width: tuple[str, int]) -> Any:
    """Loads an encoder with all its weights from safetensors; sizes and headers are checked first.

    Args:
        model_class: class of transformers.
        folder: folder of the encoder.
        dtype: dtype of the weights.
        width: name of the width in its configuration, and the width that the transformer expects.
    """
    from transformers.utils import logging

    _require_folder(folder, "a model")
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"{folder} has an adapter_config.json. {explain_names(['lora_A.weight'])}")
    config = _read_encoder_config(model_class, folder)
    if getattr(config, width[0]) != width[1]:
        raise CheckpointError(
            f"{folder / 'config.json'}: {width[0]} is {getattr(config, width[0])} and the transformer expects "
            f"{width[1]}; use all parts of one base model."
        )
    weights = open_weights(folder, "model")
    _check_encoder_size(model_class, config, weights, dtype)
    progress_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with offline():
            model, loading_info = model_class.from_pretrained(
                folder, config=config, local_files_only=True, use_safetensors=True, dtype=dtype,
                output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # transformers raises many types for damaged files
        raise CheckpointError(f"{folder} cannot be loaded: {first_line(error)}.") from None
    finally:
        if progress_bar:
            logging.enable_progress_bar()
    missing = sorted(loading_info["missing_keys"])
    if missing:
        raise CheckpointError(f"{folder} lacks {count_tensors(missing)}: {format_names(missing)}.")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise CheckpointError(f"{folder}: {name} has numbers that are not finite; the file is damaged.")
    return model.requires_grad_(False).eval()


def _read_encoder_config(model_class: Any, folder: Path) -> Any:
    """Reads the configuration of an encoder after its numbers were checked."""
    file = folder / "config.json"
    check_numbers(file, read_json(file))
    try:
        with offline():
            return model_class.config_class.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise CheckpointError(f"{file} describes no valid {model_class.__name__}: {first_line(error)}.") from None


def _check_encoder_size(model_class: Any, config: Any, weights: WeightSet, dtype: torch.dtype) -> None:
    """Checks that the file has as many numbers as the model, before memory is taken: transformers makes up the rest."""
    file = weights.folder / "config.json"
    if weights.removed:
        removed = " and ".join(f"'{part}'" for part in weights.removed)
        raise CheckpointError(
            f"The names of the tensors in {weights.folder} contain {removed}: they were saved from a wrapped model. "
            "Rename them, and save the file again."
        )
    try:
        with torch.device("meta"):
            model = model_class(config)
        model.tie_weights()
        needed = sum(parameter.numel() for parameter in model.parameters())
    except Exception as error:
        raise CheckpointError(f"{file} describes no valid {model_class.__name__}: {first_line(error)}.") from None
    stored = sum(info.num_elements for info in weights.tensors.values())
    if needed > stored:
        missing = [name for name, _ in model.named_parameters() if name not in weights.tensors]
        if missing and 2 * len(missing) < len(list(model.parameters())):
            raise CheckpointError(f"{weights.folder} lacks {count_tensors(missing)}: {format_names(missing)}.")
        explained = explain_names(weights.tensors)
        raise CheckpointError(
            f"{file} describes a model of {needed} numbers, and its weights are {stored}; download both again. "
            f"{explained}".rstrip()
        )
    check_memory(needed * dtype.itemsize, torch.device("cpu"), weights.folder)


def _require_folder(folder: Path, what: str) -> None:
    if not folder.is_dir():
        raise CheckpointError(
            f"The base model has no {folder.name}: the folder {folder} with {what} is missing; download it again."
        )
