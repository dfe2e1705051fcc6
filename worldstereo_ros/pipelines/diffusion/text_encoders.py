"""What words and a picture mean to the model: UMT5 and CLIP of the base, with their answers kept."""

from __future__ import annotations

import html
import logging
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from worldstereo_ros.models.checkpoints.weights import CheckpointError, count_tensors, format_names, open_weights

if TYPE_CHECKING:
    from worldstereo_ros.models.checkpoints.hub import Checkpoint

TEXT_TOKENS = 512
MAX_CACHED_PROMPTS = 32

logger = logging.getLogger(__name__)


class TextEncoder:
    """Prompts to embeddings.

    A prompt is encoded once and its embedding kept, so that the encoder, with its billions of weights, is on the
    device for the moment of a new prompt only.

    Attributes:
        offload: the encoder waits in main memory and visits the device.
        encoded: how many prompts went through the network.
    """

    def __init__(self, tokenizer: Any, encoder: torch.nn.Module, device: torch.device, *, offload: bool = True) -> None:
        self.offload = offload and device.type != "cpu"
        self.encoded = 0
        self._tokenizer, self._encoder, self._device = tokenizer, encoder, device
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._encoder.to("cpu" if self.offload else device)

    def __call__(self, prompt: str) -> torch.Tensor:
        """(1, 512, text_dim) on the device; rows after the last token of the prompt are zero."""
        prompt = " ".join(html.unescape(html.unescape(prompt)).split())
        if prompt not in self._kept:
            self._kept[prompt] = self._encode(prompt)
            while len(self._kept) > MAX_CACHED_PROMPTS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(prompt)
        return self._kept[prompt].to(self._device)

    @torch.no_grad()
    def _encode(self, prompt: str) -> torch.Tensor:
        self.encoded += 1
        tokens = self._tokenizer(
            [prompt],
            padding="max_length",
            max_length=TEXT_TOKENS,
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
        # Kept in main memory: 32 prompts of the published model are 128 MiB.
        return (states * mask[..., None].to(states.dtype)).cpu()


class NullTextEncoder:
    """Stands where a model takes no words: every prompt is the same single token of zeros."""

    def __init__(self, text_dim: int, device: torch.device) -> None:
        self._token = torch.zeros(1, 1, text_dim, device=device)
        self._said = False

    def __call__(self, prompt: str) -> torch.Tensor:
        """(1, 1, text_dim) zeros on the device. The first prompt that is not empty is told to the log as ignored."""
        if prompt.strip() and not self._said:
            self._said = True
            logger.warning("The prompt is ignored: this model takes no words.")
        return self._token


class ImageEncoder:
    """A picture to the states before CLIP's last layer."""

    def __init__(self, processor: Any, encoder: torch.nn.Module, device: torch.device) -> None:
        self._processor, self._encoder, self._device = processor, encoder.to(device), device

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """(H, W, 3) uint8 to (1, image tokens, image_dim)."""
        pixels = self._processor(images=[image], return_tensors="pt", input_data_format="channels_last").pixel_values
        dtype = next(self._encoder.parameters()).dtype
        return self._encoder(pixels.to(self._device, dtype), output_hidden_states=True).hidden_states[-2]


def load_text_encoder(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, *, offload: bool = True
) -> TextEncoder:
    """Tokenizer and UMT5 of the base.

    In float16 its numbers overflow, so that bfloat16 takes its place.

    Raises:
        CheckpointError: a part is missing or damaged.
    """
    from transformers import AutoTokenizer, UMT5EncoderModel

    base = checkpoint.base("tokenizer", "text_encoder")
    folder = base / "tokenizer"
    _expect(folder, "a tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # readers of tokenizer files raise types of many libraries
        raise CheckpointError(f"The tokenizer in {folder} cannot be read: {_first_line(error)}.") from None
    encoder = _load(UMT5EncoderModel, base / "text_encoder", torch.bfloat16 if dtype == torch.float16 else dtype)
    return TextEncoder(tokenizer, encoder, device, offload=offload)


def load_image_encoder(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> ImageEncoder:
    """CLIP and its image processor, of the base.

    Raises:
        CheckpointError: a part is missing or damaged.
    """
    import transformers

    # The one without torchvision: the same numbers on every machine.
    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    base = checkpoint.base("image_encoder", "image_processor")
    folder = base / "image_processor"
    _expect(folder, "an image processor")
    try:
        processor = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise CheckpointError(f"The image processor in {folder} cannot be read: {_first_line(error)}.") from None
    return ImageEncoder(processor, _load(transformers.CLIPVisionModel, base / "image_encoder", dtype), device)


def _load(kind: Any, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """An encoder with all its weights; headers are checked before a tensor is read, pickles are never opened."""
    from transformers.utils import logging

    _expect(folder, "a model")
    open_weights(folder, "model")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, said = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # the library raises many types for what is wrong with a file
        raise CheckpointError(f"{folder} cannot be loaded: {_first_line(error)}.") from None
    finally:
        if shown:
            logging.enable_progress_bar()
    missing = sorted(said["missing_keys"])
    if missing:
        raise CheckpointError(f"{folder} lacks {count_tensors(missing)}: {format_names(missing)}.")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise CheckpointError(f"{folder}: {name} has numbers that are not finite; the file is damaged.")
    return model.requires_grad_(False).eval()


def _expect(folder: Path, what: str) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"The base model has no {folder.name}: {folder} should hold {what}.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
