"""Runs exported files by onnxruntime, on torch tensors and without copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from worldstereo_ros.export.engine_cache import Shape
from worldstereo_ros.export.errors import ModelExportError, require_package
from worldstereo_ros.utils.errors import first_line


class Runner(Protocol):
    """Runs an exported file on contiguous torch tensors of one device."""

    def __call__(
        self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, Shape], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """Runs the file.

        Args:
            inputs: inputs by name.
            outputs: shapes of the outputs by name.
            dtype: dtype of the outputs.

        Returns:
            The outputs in the order of `outputs`.
        """


def choose_providers(device: torch.device, available: Sequence[str], provider: str = "auto") -> list[str]:
    """Chooses onnxruntime's execution providers.

    Args:
        device: device of the tensors.
        available: providers of the installed onnxruntime.
        provider: `auto` (CUDA on CUDA devices, else CPU), `cpu`, `cuda` or `tensorrt`.

    Returns:
        Names of the providers, in order of preference.

    Raises:
        ModelExportError: a provider that is needed is not available.
    """
    if provider not in ("auto", "cpu", "cuda", "tensorrt"):
        raise ModelExportError(f"The provider is '{provider}'; choose auto, cpu, cuda or tensorrt.")
    if provider == "auto":
        provider = "cuda" if device.type == "cuda" else "cpu"
    if (provider == "cpu") != (device.type == "cpu"):
        raise ModelExportError(f"The model is on {device}, but the provider of onnxruntime is {provider}; choose auto.")
    names = {"cpu": [], "cuda": ["CUDA"], "tensorrt": ["Tensorrt", "CUDA"]}[provider]
    needed = [f"{name}ExecutionProvider" for name in names]
    missing = [name for name in needed if name not in available]
    if missing:
        raise ModelExportError(
            f"The installed onnxruntime has no {missing[0]} (it has {', '.join(available)}); run `pip uninstall "
            "onnxruntime` and `pip install 'worldstereo_ros[export-gpu]'`, or choose control_backend torch."
        )
    return [*needed, "CPUExecutionProvider"]


class OnnxRuntimeRunner:
    """Runs an ONNX file by onnxruntime; inputs and outputs are torch tensors, bound without copies.

    Args:
        path: ONNX file.
        device: device of the tensors.
        provider: see `choose_providers`.
        threads: CPU threads; 0 = as many as torch uses.
        engine_folder: folder for the engines of the TensorRT provider.

    Raises:
        ModelExportError: onnxruntime or the provider is missing, or the file cannot be loaded.
    """

    def __init__(
        self,
        path: str | Path,
        device: torch.device | str = "cpu",
        *,
        provider: str = "auto",
        threads: int = 0,
        engine_folder: Path | None = None,
    ) -> None:
        ort = require_package("onnxruntime")
        self.path, self.device = Path(path), torch.device(device)
        providers = choose_providers(self.device, ort.get_available_providers(), provider)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        provider_options = [self._provider_options(name, engine_folder) for name in providers]
        try:
            self.session = ort.InferenceSession(
                str(path), options, providers=providers, provider_options=provider_options
            )
        except Exception as error:  # onnxruntime's errors have no public base
            raise ModelExportError(f"onnxruntime cannot load {path}: {first_line(error)}.") from error
        if providers[0] not in self.session.get_providers():
            # onnxruntime falls back silently to the next provider, which is much slower.
            raise ModelExportError(
                f"onnxruntime could not start its {providers[0]}; install the CUDA, cuDNN or TensorRT libraries that "
                "its log names."
            )

    def _provider_options(self, name: str, engine_folder: Path | None) -> dict[str, str]:
        if name == "CPUExecutionProvider":
            return {}
        options = {"device_id": str(self.device.index or 0)}
        if name == "TensorrtExecutionProvider" and engine_folder is not None:
            options |= {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": str(engine_folder),
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": str(engine_folder),
            }
        return options

    def __call__(
        self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, Shape], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """Runs the file, see `Runner`."""
        binding = self.session.io_binding()
        results = [torch.empty(shape, dtype=dtype, device=self.device) for shape in outputs.values()]
        device = (self.device.type, self.device.index or 0)
        for name, tensor in inputs.items():
            binding.bind_input(name, *device, _element_type(tensor.dtype), list(tensor.shape), tensor.data_ptr())
        for name, tensor in zip(outputs, results, strict=True):
            binding.bind_output(name, *device, _element_type(dtype), list(tensor.shape), tensor.data_ptr())
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # onnxruntime uses another stream
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:
            shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
            raise ModelExportError(
                f"onnxruntime could not run {self.path} on {shapes}: {first_line(error)}."
            ) from error
        binding.synchronize_outputs()
        return results


def _element_type(dtype: torch.dtype) -> Any:
    import numpy as np

    if dtype == torch.bfloat16:
        return require_package("onnx").TensorProto.BFLOAT16  # numpy has no bfloat16
    return {torch.float32: np.float32, torch.float16: np.float16}[dtype]
