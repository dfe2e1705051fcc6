"""TensorRT engines of exported ONNX files, built once for each GPU and shape, and run on torch tensors.

The precision is that of the exported file (`worldstereo export --dtype float16`), which works with all versions from
10 on. TensorRT 10 can also build a float32 file with the builder's fp16 or bf16 flag.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from worldstereo_ros.export.engine_cache import EngineCache, EngineKey, InputProfile, Shape, write_atomically
from worldstereo_ros.export.errors import ModelExportError
from worldstereo_ros.export.metadata import read_metadata

PRECISIONS = ("as exported", "fp16", "bf16")


def load_tensorrt() -> Any:
    """Imports the package `tensorrt`.

    Raises:
        ModelExportError: it is not installed, or older than version 10.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        raise ModelExportError(
            f"TensorRT is needed and cannot be imported ({error}); on a machine with an NVIDIA GPU run "
            "`pip install tensorrt`, or choose control_backend torch or onnxruntime."
        ) from None
    version = str(getattr(tensorrt, "__version__", "0"))
    if int(version.split(".")[0]) < 10:
        raise ModelExportError(f"TensorRT {version} is installed; version 10 or later is needed.")
    return tensorrt


def engine_key(
    model: Path,
    inputs: Sequence[InputProfile],
    *,
    tensorrt_version: str,
    gpu: str,
    capability: tuple[int, int],
    precision: str = "as exported",
    optimization_level: int = 3,
) -> EngineKey:
    """Makes the cache key of an ONNX file's engine.

    Args:
        model: the ONNX file.
        inputs: shapes of all inputs.
        tensorrt_version: version of TensorRT.
        gpu: name of the GPU.
        capability: compute capability of the GPU.
        precision: see `build_engine`.
        optimization_level: see `build_engine`.

    Raises:
        ModelExportError: the file was not written by this package, or the precision does not exist.
    """
    if precision not in PRECISIONS:
        raise ModelExportError(f"The precision is '{precision}'; choose one of {', '.join(PRECISIONS)}.")
    metadata = json.dumps(read_metadata(model), sort_keys=True)
    return EngineKey(
        hashlib.sha256(metadata.encode()).hexdigest(),
        gpu,
        capability,
        tensorrt_version,
        tuple(inputs),
        precision,
        optimization_level,
    )


def build_engine(
    model: Path,
    inputs: Sequence[InputProfile],
    *,
    precision: str = "as exported",
    optimization_level: int = 3,
    timing_cache: Path | None = None,
    workspace_bytes: int | None = None,
) -> bytes:
    """Builds a serialized engine; takes minutes at full size.

    Args:
        model: ONNX file with standard operators (`attention="standard"`).
        inputs: shapes of all inputs.
        precision: `as exported`; with TensorRT 10 also `fp16` or `bf16` for a float32 file.
        optimization_level: 0 (fast to build) to 5 (fast to run).
        timing_cache: file of the builder's timing cache; read if it exists, and written again.
        workspace_bytes: maximum scratch memory; None = TensorRT's default.

    Raises:
        ModelExportError: TensorRT is missing, or cannot parse or build the file; the message has TensorRT's errors.
    """
    trt = load_tensorrt()
    if read_metadata(model).get("attention") == "fused":
        raise ModelExportError(
            f"{model} has an attention operator of onnxruntime; export it again with --attention standard."
        )
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    flags = 0
    if precision == "as exported" and hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ModelExportError(f"TensorRT {trt.__version__} cannot read {model}: {reasons or 'no error was reported'}.")

    config = builder.create_builder_config()
    config.builder_optimization_level = optimization_level
    if workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    if precision != "as exported":
        _set_precision(trt, config, precision, model)
    _add_profile(builder, network, config, inputs, model)
    cache = None
    if timing_cache is not None:
        cache = config.create_timing_cache(timing_cache.read_bytes() if timing_cache.is_file() else b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            cache = config.create_timing_cache(b"")  # of another driver, or damaged
            config.set_timing_cache(cache, ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ModelExportError(
            f"TensorRT {trt.__version__} could not build an engine of {model}; see its log on stderr."
        )
    if timing_cache is not None and cache is not None:
        write_atomically(timing_cache, bytes(cache.serialize()))
    return bytes(engine)


def _set_precision(trt: Any, config: Any, precision: str, model: Path) -> None:
    flag = getattr(trt.BuilderFlag, precision.upper(), None)
    if flag is None:
        exported = {"fp16": "float16", "bf16": "bfloat16"}[precision]
        raise ModelExportError(
            f"TensorRT {trt.__version__} has no {precision} flag, the precision is that of the file; export "
            f"{model.name} again with --dtype {exported} and build it as exported."
        )
    config.set_flag(flag)


def _add_profile(builder: Any, network: Any, config: Any, inputs: Sequence[InputProfile], model: Path) -> None:
    expected = {network.get_input(i).name for i in range(network.num_inputs)}
    actual = {one.name for one in inputs}
    if expected != actual:
        raise ModelExportError(f"{model} has the inputs {sorted(expected)}; shapes were given for {sorted(actual)}.")
    profile = builder.create_optimization_profile()
    for one in inputs:
        profile.set_shape(one.name, one.min, one.opt, one.max)
    if config.add_optimization_profile(profile) < 0:
        raise ModelExportError(f"TensorRT rejected the shapes {[(i.name, i.min, i.max) for i in inputs]}.")


class TensorRTRunner:
    """Runs an ONNX file by TensorRT on CUDA tensors; engines are built for each new shape and cached.

    Args:
        model: ONNX file.
        cache: cache of the engines.
        device: CUDA device.
        precision: see `build_engine`.
        optimization_level: see `build_engine`.

    Raises:
        ModelExportError: TensorRT is missing, or the device is not a CUDA device.
    """

    def __init__(
        self,
        model: Path,
        cache: EngineCache,
        device: torch.device,
        *,
        precision: str = "as exported",
        optimization_level: int = 3,
    ) -> None:
        self.trt = load_tensorrt()
        if device.type != "cuda":
            raise ModelExportError(f"TensorRT runs on CUDA and the model is on {device}; choose device cuda.")
        self.model, self.cache, self.device = model, cache, device
        self.precision, self.optimization_level = precision, optimization_level
        self.runtime = self.trt.Runtime(self.trt.Logger(self.trt.Logger.WARNING))
        self._contexts: dict[tuple[InputProfile, ...], Any] = {}
        self._engines: list[Any] = []  # a context does not keep its engine alive

    def get_context(self, inputs: Sequence[InputProfile]) -> Any:
        """Returns the execution context for a profile; its engine is loaded from the cache or built.

        Args:
            inputs: shapes of all inputs.

        Raises:
            ModelExportError: the engine cannot be built.
        """
        profile = tuple(inputs)
        if profile in self._contexts:
            return self._contexts[profile]
        key = engine_key(
            self.model,
            profile,
            tensorrt_version=str(self.trt.__version__),
            gpu=torch.cuda.get_device_name(self.device),
            capability=torch.cuda.get_device_capability(self.device),
            precision=self.precision,
            optimization_level=self.optimization_level,
        )

        def build() -> bytes:
            return build_engine(
                self.model,
                profile,
                precision=self.precision,
                optimization_level=self.optimization_level,
                timing_cache=self.cache.timing_cache_path(key),
            )

        with torch.cuda.device(self.device):
            engine = self.runtime.deserialize_cuda_engine(self.cache.get_or_build(key, build))
            if engine is None:  # intact, but rejected: for example another driver
                self.cache.remove(key)
                engine = self.runtime.deserialize_cuda_engine(self.cache.get_or_build(key, build))
            if engine is None:
                raise ModelExportError(
                    f"TensorRT rejected the engine that it built of {self.model}; see its log on stderr."
                )
            context = engine.create_execution_context()
        if context is None:
            raise ModelExportError(f"The GPU has too little free memory to run the engine of {self.model}.")
        self._engines.append(engine)
        self._contexts[profile] = context
        return context

    def __call__(
        self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, Shape], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """Runs the engine on the current CUDA stream.

        Args:
            inputs: contiguous CUDA tensors of the file's dtype, by name.
            outputs: shapes of the outputs by name.
            dtype: dtype of the outputs.

        Returns:
            The outputs in the order of `outputs`.

        Raises:
            ModelExportError: the engine cannot be built or run.
        """
        context = self._find_context(inputs)
        results = [torch.empty(shape, dtype=dtype, device=self.device) for shape in outputs.values()]
        stream = torch.cuda.current_stream(self.device)
        for name, tensor in inputs.items():
            context.set_input_shape(name, tuple(tensor.shape))
            context.set_tensor_address(name, tensor.data_ptr())
        for name, tensor in zip(outputs, results, strict=True):
            context.set_tensor_address(name, tensor.data_ptr())
        if not context.execute_async_v3(stream.cuda_stream):
            raise ModelExportError(
                f"TensorRT could not run {self.model} on {[tuple(t.shape) for t in inputs.values()]}."
            )
        return results

    def _find_context(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        for profile, context in self._contexts.items():
            if all(one.contains(tuple(inputs[one.name].shape)) for one in profile):
                return context
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        return self.get_context([InputProfile(name, shape, shape, shape) for name, shape in shapes.items()])
