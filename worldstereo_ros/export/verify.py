"""Verification of exported files: onnxruntime against torch, at sizes other than the traced one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worldstereo_ros.export.errors import ModelExportError
from worldstereo_ros.export.metadata import DTYPES, autoencoder_example_inputs, control_example_inputs
from worldstereo_ros.export.onnx import ExportedFile, OnStep
from worldstereo_ros.export.runners import OnnxRuntimeRunner
from worldstereo_ros.export.runtime import ExportedAutoencoder, ExportedControlBranch
from worldstereo_ros.models.autoencoders.image import ImageAutoencoder
from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder
from worldstereo_ros.models.worldstereo.control import ControlBranch

# (batch, keyframes, token rows, token columns); none is the traced size
CONTROL_SIZES = ((1, 1, 1, 1), (2, 2, 3, 5), (1, 7, 6, 4), (1, 5, 8, 12))
# (frames, latent rows, latent columns); none is the traced size
AUTOENCODER_SIZES = ((1, 1, 1), (3, 5, 2), (2, 8, 12))
# Maximum error: absolute for float32, else relative to the largest value (rounding accumulates over all layers).
TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 2e-1}


@dataclass(frozen=True)
class VerificationResult:
    """Difference between onnxruntime and torch at one size.

    Attributes:
        size: as in `CONTROL_SIZES` or `AUTOENCODER_SIZES`.
        max_abs_error: largest absolute difference of the outputs.
        max_abs_value: largest absolute value of torch's output.
        torch_seconds: time of the torch model.
        onnxruntime_seconds: time of onnxruntime.
    """

    size: tuple[int, ...]
    max_abs_error: float
    max_abs_value: float
    torch_seconds: float
    onnxruntime_seconds: float

    def passes(self, dtype: str) -> bool:
        """Whether the error is within `TOLERANCE`: absolute for float32, relative for half precision.

        Args:
            dtype: dtype of the file.
        """
        return self.max_abs_error <= TOLERANCE[dtype] * (1.0 if dtype == "float32" else max(self.max_abs_value, 1.0))


@torch.inference_mode()
def verify(
    exported: ExportedFile,
    model: ControlBranch | KeyframeAutoencoder | ImageAutoencoder,
    *,
    sizes: Sequence[tuple[int, ...]] | None = None,
    on_step: OnStep | None = None,
) -> list[VerificationResult]:
    """Compares an exported file, run by onnxruntime on the CPU, with its torch model in float32.

    Args:
        exported: the file.
        model: the model that was exported.
        sizes: sizes to compare at; None = `CONTROL_SIZES` or `AUTOENCODER_SIZES`.
        on_step: called after each size.

    Returns:
        One result for each size.

    Raises:
        ModelExportError: onnxruntime is missing or cannot run the file, or an output is not finite.
    """
    metadata = exported.metadata
    runner = OnnxRuntimeRunner(exported.path)
    report = on_step or (lambda stage, done, total: None)
    sizes = sizes or (CONTROL_SIZES if metadata["part"] == "control" else AUTOENCODER_SIZES)
    results = []
    for done, size in enumerate(sizes):
        report("verifying", done, len(sizes))
        if isinstance(model, ControlBranch):
            results.append(_verify_control(model, runner, metadata, size))
        else:
            results.append(_verify_autoencoder(model, runner, metadata, size))
    report("verifying", len(sizes), len(sizes))
    return results


def _verify_control(
    branch: ControlBranch, runner: OnnxRuntimeRunner, metadata: Mapping[str, Any], size: tuple[int, ...]
) -> VerificationResult:
    # Rounded to the dtype of the file first, so that both get the same values.
    inputs = [t.float() for t in control_example_inputs(metadata, size, DTYPES[metadata["dtype"]], seed=1)]
    projections = branch.proj_out if metadata["output"] == "states" else None
    exported = ExportedControlBranch(runner, metadata, projections, torch.float32)
    start = time.perf_counter()
    expected = branch(*inputs)
    middle = time.perf_counter()
    actual = exported(*inputs)
    end = time.perf_counter()
    if metadata["output"] == "offsets":
        expected = [branch.residual(i, state) for i, state in enumerate(expected)]
    return _compare(size, expected, actual, middle - start, end - middle)


def _verify_autoencoder(
    model: KeyframeAutoencoder | ImageAutoencoder,
    runner: OnnxRuntimeRunner,
    metadata: Mapping[str, Any],
    size: tuple[int, ...],
) -> VerificationResult:
    is_encoder = metadata["part"] == "autoencoder-encoder"
    (rounded,) = autoencoder_example_inputs(metadata, size, DTYPES[metadata["dtype"]], seed=1)
    inputs = rounded.float()
    runners: dict[str, Any] = {"encoder" if is_encoder else "decoder": runner}
    exported = ExportedAutoencoder.of(model, **runners, file_dtype=rounded.dtype)
    start = time.perf_counter()
    expected = model.encode(inputs) if is_encoder else model.decode(inputs)
    middle = time.perf_counter()
    actual = exported.encode(inputs) if is_encoder else exported.decode(inputs)
    return _compare(size, [expected], [actual], middle - start, time.perf_counter() - middle)


def _compare(
    size: tuple[int, ...],
    expected: list[torch.Tensor],
    actual: list[torch.Tensor],
    torch_seconds: float,
    onnxruntime_seconds: float,
) -> VerificationResult:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in actual):
        raise ModelExportError(f"The exported model outputs non-finite numbers at size {size}; use float32.")
    error = max(float((a.float() - b.float()).abs().max()) for a, b in zip(expected, actual, strict=True))
    largest = max(float(a.abs().max()) for a in expected)
    return VerificationResult(size, error, largest, torch_seconds, onnxruntime_seconds)
