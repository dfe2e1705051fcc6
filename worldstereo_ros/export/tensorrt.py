"""TensorRT engines of exported ONNX files: built once for a GPU and a shape, then run on torch tensors.

Precision is what the file was exported in (`worldstereo export --dtype float16`), which every TensorRT from 10 on
takes; up to TensorRT 10 a float32 file may also be built with the builder's fp16 or bf16 flag.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from worldstereo_ros.export.engine_cache import EngineCache, EngineKey, InputProfile, Shape, write_atomically
from worldstereo_ros.export.onnx import ModelExportError, read_description

PRECISIONS = ("as exported", "fp16", "bf16")


def load_tensorrt() -> Any:
    """The module `tensorrt`.

    Raises:
        ModelExportError: it is not installed, or too old.
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
    level: int = 3,
) -> EngineKey:
    """What the engine of an ONNX file depends on.

    Raises:
        ModelExportError: the file is not one of ours, or the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ModelExportError(f"The precision '{precision}' is not known; choose one of {', '.join(PRECISIONS)}.")
    description = json.dumps(read_description(model), sort_keys=True)
    return EngineKey(
        hashlib.sha256(description.encode()).hexdigest(),
        gpu,
        capability,
        tensorrt_version,
        tuple(inputs),
        precision,
        level,
    )


def build_engine(
    model: Path,
    inputs: Sequence[InputProfile],
    *,
    precision: str = "as exported",
    level: int = 3,
    timing: Path | None = None,
    workspace: int | None = None,
) -> bytes:
    """Builds an engine; takes minutes at full size.

    Args:
        model: ONNX file with plain operators (`attention="standard"`).
        inputs: the shapes of every input.
        precision: `as exported`, or `fp16` or `bf16` for a float32 file up to TensorRT 10.
        level: 0 (fast to build) to 5 (fast to run).
        timing: file of the builder's timings, read where it is there and written again.
        workspace: most bytes of scratch memory; None: what TensorRT takes.

    Raises:
        ModelExportError: TensorRT is missing, or cannot parse or build the file; TensorRT's own words are in it.
    """
    trt = load_tensorrt()
    description = read_description(model)
    if description.get("attention") == "fused":
        raise ModelExportError(f"{model} has onnxruntime's own attention; export it with --attention standard.")
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    flags = 0
    if precision == "as exported" and hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ModelExportError(f"TensorRT {trt.__version__} cannot read {model}: {reasons or 'no reason given'}.")

    config = builder.create_builder_config()
    config.builder_optimization_level = level
    if workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if precision != "as exported":
        _set_precision(trt, config, precision, model)
    _add_profile(builder, network, config, inputs, model)
    cache = None
    if timing is not None:
        known = timing.read_bytes() if timing.is_file() else b""
        cache = config.create_timing_cache(known)
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            cache = config.create_timing_cache(b"")  # of another driver, or damaged: begin a new one
            config.set_timing_cache(cache, ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ModelExportError(f"TensorRT {trt.__version__} could not build an engine of {model}; its log says why.")
    if timing is not None and cache is not None:
        write_atomically(timing, bytes(cache.serialize()))
    return bytes(engine)


def _set_precision(trt: Any, config: Any, precision: str, model: Path) -> None:
    flag = getattr(trt.BuilderFlag, precision.upper(), None)
    if flag is None:
        exported = {"fp16": "float16", "bf16": "bfloat16"}[precision]
        raise ModelExportError(
            f"TensorRT {trt.__version__} takes the precision from the file; export {model.name} again with "
            f"--dtype {exported} and build it as exported."
        )
    config.set_flag(flag)


def _add_profile(builder: Any, network: Any, config: Any, inputs: Sequence[InputProfile], model: Path) -> None:
    wanted = {network.get_input(i).name for i in range(network.num_inputs)}
    given = {one.name for one in inputs}
    if wanted != given:
        raise ModelExportError(f"{model} has the inputs {sorted(wanted)}; shapes were given for {sorted(given)}.")
    profile = builder.create_optimization_profile()
    for one in inputs:
        profile.set_shape(one.name, one.least, one.best, one.most)
    if config.add_optimization_profile(profile) < 0:
        raise ModelExportError(f"TensorRT refuses the shapes {[(i.name, i.least, i.most) for i in inputs]}.")


class TensorRTRunner:
    """Runs an ONNX file by TensorRT on CUDA tensors; engines are built for the shapes that come, and kept.

    Args:
        model: ONNX file.
        cache: where engines are kept.
        device: a CUDA device.
        precision: see `build_engine`.
        level: see `build_engine`.

    Raises:
        ModelExportError: TensorRT is missing, or the device is no GPU.
    """

    def __init__(
        self,
        model: Path,
        cache: EngineCache,
        device: torch.device,
        *,
        precision: str = "as exported",
        level: int = 3,
    ) -> None:
        self.trt = load_tensorrt()
        if device.type != "cuda":
            raise ModelExportError(f"TensorRT runs on CUDA and the model is on {device}; choose device cuda.")
        self.model, self.cache, self.device = model, cache, device
        self.precision, self.level = precision, level
        self.runtime = self.trt.Runtime(self.trt.Logger(self.trt.Logger.WARNING))
        self._contexts: dict[tuple[InputProfile, ...], Any] = {}
        self._engines: list[Any] = []  # a context does not keep its engine alive

    def prepare(self, inputs: Sequence[InputProfile]) -> Any:
        """The execution context for these shapes: from the folder, or built now.

        Raises:
            ModelExportError: the engine cannot be built.
        """
        ranges = tuple(inputs)
        if ranges in self._contexts:
            return self._contexts[ranges]
        key = engine_key(
            self.model,
            ranges,
            tensorrt_version=str(self.trt.__version__),
            gpu=torch.cuda.get_device_name(self.device),
            capability=torch.cuda.get_device_capability(self.device),
            precision=self.precision,
            level=self.level,
        )

        def build() -> bytes:
            return build_engine(
                self.model, ranges, precision=self.precision, level=self.level, timing=self.cache.timing(key)
            )

        with torch.cuda.device(self.device):
            engine = self.runtime.deserialize_cuda_engine(self.cache.get(key, build))
            if engine is None:  # whole, and still not accepted: another driver, say
                self.cache.forget(key)
                engine = self.runtime.deserialize_cuda_engine(self.cache.get(key, build))
            if engine is None:
                raise ModelExportError(f"TensorRT does not accept the engine that it built of {self.model}.")
            context = engine.create_execution_context()
        if context is None:
            raise ModelExportError(f"The GPU has too little free memory to run the engine of {self.model}.")
        self._engines.append(engine)
        self._contexts[ranges] = context
        return context

    def __call__(
        self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, Shape], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """Runs on the current stream of the device.

        Args:
            inputs: contiguous CUDA tensors of the file's type.
            outputs: shape of each output, in the order wanted.
            dtype: of the outputs.

        Raises:
            ModelExportError: the engine cannot be built or run.
        """
        context = self._find(inputs)
        made = [torch.empty(shape, dtype=dtype, device=self.device) for shape in outputs.values()]
        stream = torch.cuda.current_stream(self.device)
        for name, tensor in inputs.items():
            context.set_input_shape(name, tuple(tensor.shape))
            context.set_tensor_address(name, tensor.data_ptr())
        for name, tensor in zip(outputs, made, strict=True):
            context.set_tensor_address(name, tensor.data_ptr())
        if not context.execute_async_v3(stream.cuda_stream):
            raise ModelExportError(
                f"TensorRT could not run {self.model} on {[tuple(t.shape) for t in inputs.values()]}."
            )
        return made

    def _find(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        for ranges, context in self._contexts.items():
            if all(one.holds(tuple(inputs[one.name].shape)) for one in ranges):
                return context
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        return self.prepare([InputProfile(name, shape, shape, shape) for name, shape in shapes.items()])
