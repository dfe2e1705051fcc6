"""ExportedFile models in the place of the torch ones: the same calls, run by onnxruntime or TensorRT.

    transformer = load_transformer(checkpoint)
    use_control_backend(transformer, "onnxruntime")

Onnxruntime runs on CUDA where the transformer is on CUDA and onnxruntime has that provider, else on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn

from worldstereo_ros import __version__
from worldstereo_ros.export.engine_cache import EngineCache, Shape
from worldstereo_ros.export.onnx import (
    DTYPES,
    OPSET,
    ModelExportError,
    OnStep,
    control_shapes,
    export_control,
    read_description,
    require_package,
    weights_hash,
)
from worldstereo_ros.export.tensorrt import TensorRTRunner, load_tensorrt
from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder
from worldstereo_ros.models.worldstereo.control import ControlBranch
from worldstereo_ros.utils.errors import InputError

BACKENDS = ("torch", "onnxruntime", "tensorrt")


class Runner(Protocol):
    """Runs a file: inputs by name, shapes of the outputs by name, their type; contiguous tensors on one device."""

    def __call__(
        self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, Shape], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """The outputs in the order of their names."""


def choose_providers(device: torch.device, available: Sequence[str], provider: str = "auto") -> list[str]:
    """Onnxruntime's execution providers, best first.

    Args:
        device: where the tensors are.
        available: what this onnxruntime was built with.
        provider: `auto` (CUDA on CUDA devices, else CPU), `cpu`, `cuda` or `tensorrt`.

    Raises:
        ModelExportError: the one that is needed is not there.
    """
    if provider not in ("auto", "cpu", "cuda", "tensorrt"):
        raise ModelExportError(f"The provider '{provider}' is not known; choose auto, cpu, cuda or tensorrt.")
    if provider == "auto":
        provider = "cuda" if device.type == "cuda" else "cpu"
    if (provider == "cpu") != (device.type == "cpu"):
        raise ModelExportError(f"The model is on {device} and onnxruntime was asked to run on {provider}.")
    names = {"cpu": [], "cuda": ["CUDA"], "tensorrt": ["Tensorrt", "CUDA"]}[provider]
    wanted = [f"{name}ExecutionProvider" for name in names]
    lost = [name for name in wanted if name not in available]
    if lost:
        raise ModelExportError(
            f"This onnxruntime has no {lost[0]} (it has {', '.join(available)}); run `pip install onnxruntime-gpu` in "
            "place of onnxruntime, or choose control_backend torch."
        )
    return [*wanted, "CPUExecutionProvider"]


class OnnxRuntimeRunner:
    """A session of onnxruntime that reads and writes torch tensors where they are.

    Args:
        path: ONNX file.
        device: where the tensors will be.
        provider: see `choose_providers`.
        threads: of the CPU; 0: as many as torch uses.
        engines: folder where the TensorRT provider keeps its engines.

    Raises:
        ModelExportError: onnxruntime or the provider is missing, or the file cannot be run.
    """

    def __init__(
        self,
        path: str | Path,
        device: torch.device | str = "cpu",
        *,
        provider: str = "auto",
        threads: int = 0,
        engines: Path | None = None,
    ) -> None:
        ort = require_package("onnxruntime")
        self.path, self.device = Path(path), torch.device(device)
        providers = choose_providers(self.device, ort.get_available_providers(), provider)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        settings = [self._settings(name, engines) for name in providers]
        try:
            self.session = ort.InferenceSession(str(path), options, providers=providers, provider_options=settings)
        except Exception as error:  # onnxruntime's errors have no public base
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelExportError(f"onnxruntime cannot run {path}: {reason}") from error
        if providers[0] not in self.session.get_providers():
            # It falls back in silence, to something ten times slower.
            raise ModelExportError(f"onnxruntime could not start its {providers[0]}; its libraries are missing.")

    def _settings(self, name: str, engines: Path | None) -> dict[str, str]:
        if name == "CPUExecutionProvider":
            return {}
        settings = {"device_id": str(self.device.index or 0)}
        if name == "TensorrtExecutionProvider" and engines is not None:
            settings |= {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": str(engines),
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": str(engines),
            }
        return settings

    def __call__(
        self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, Shape], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """See `Runner`."""
        binding = self.session.io_binding()
        made = [torch.empty(shape, dtype=dtype, device=self.device) for shape in outputs.values()]
        place = (self.device.type, self.device.index or 0)
        for name, tensor in inputs.items():
            binding.bind_input(name, *place, _element(tensor.dtype), list(tensor.shape), tensor.data_ptr())
        for name, tensor in zip(outputs, made, strict=True):
            binding.bind_output(name, *place, _element(dtype), list(tensor.shape), tensor.data_ptr())
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # onnxruntime has a stream of its own
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:
            shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
            raise ModelExportError(
                f"onnxruntime could not run {self.path} on {shapes}: {str(error).strip().splitlines()[0]}"
            ) from error
        binding.synchronize_outputs()
        return made


def _element(dtype: torch.dtype) -> Any:
    import numpy as np

    if dtype == torch.bfloat16:
        return require_package("onnx").TensorProto.BFLOAT16  # numpy has no such type
    return {torch.float32: np.float32, torch.float16: np.float16}[dtype]


class ExportedControlBranch(nn.Module):
    """The control branch of an ONNX file; put in the place of `transformer.controlnet`.

    Args:
        runner: what runs the file.
        description: of the file, see `read_description`.
        projections: `proj_out` of the torch branch, for files that give states; None for files that give offsets.
        dtype: of what comes out; None: that of the projections, else of the file.
        head, layout: `render_head` and `layout_embedding` of the torch branch, for small models that have them.

    Raises:
        ModelExportError: the file is of another part, or projections are missing or too many.
    """

    def __init__(
        self,
        runner: Runner,
        description: Mapping[str, Any],
        projections: nn.ModuleList | None = None,
        dtype: torch.dtype | None = None,
        head: nn.Module | None = None,
        layout: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if description["part"] != "control":
            raise ModelExportError(f"A file of the {description['part']} was given; one of the control was expected.")
        if (description["output"] == "states") != (projections is not None):
            have = "no projections" if projections is None else "projections"
            raise ModelExportError(f"The file gives {description['output']} and {have} came with it.")
        self.runner, self.description = runner, dict(description)
        self.proj_out, self.render_head, self.layout_embedding = projections, head, layout
        self.file_dtype = DTYPES[description["dtype"]]
        if dtype is None:
            dtype = self.file_dtype if projections is None else cast(nn.Linear, projections[0]).weight.dtype
        self.out_dtype = dtype

    def forward(self, latent: torch.Tensor, volume: torch.Tensor, temb: torch.Tensor) -> list[torch.Tensor]:
        """As `ControlBranch.forward`; what `residual` turns into offsets.

        Raises:
            ValueError: the inputs do not fit each other or the file.
            ModelExportError: the runtime failed.
        """
        about = self.description
        _, p_h, p_w = about["patch"]
        batch, _, frames, height, width = latent.shape
        rows, columns = height // p_h, width // p_w
        wanted = control_shapes(about, batch, frames, rows, columns)
        for name, tensor, shape in zip(("latent", "volume", "temb"), (latent, volume, temb), wanted, strict=True):
            if tuple(tensor.shape) != shape:
                raise InputError(f"{name} of the control branch has shape {tuple(tensor.shape)}; {shape} was expected.")
        given = {"latent": latent, "volume": volume, "temb": temb}
        ready = {name: tensor.detach().to(self.file_dtype).contiguous() for name, tensor in given.items()}
        stem = "state" if about["output"] == "states" else "offset"
        shape = (batch, frames * rows * columns, about["dim"])
        made = self.runner(ready, {f"{stem}_{i}": shape for i in range(about["layers"])}, self.file_dtype)
        return [tensor.to(self.out_dtype) for tensor in made]

    def residual(self, index: int, state: torch.Tensor) -> torch.Tensor:
        """What is added after backbone block `index`: (b, L, dim) to (b, L, width of the backbone)."""
        return state if self.proj_out is None else self.proj_out[index](state)


class ExportedAutoencoder(KeyframeAutoencoder):
    """The keyframe autoencoder with encoder, decoder or both run from ONNX files.

    A half without a file stays the torch one; a half with a file gives up its weights.
    """

    @classmethod
    def of(
        cls, model: KeyframeAutoencoder, *, encoder: Runner | None = None, decoder: Runner | None = None
    ) -> ExportedAutoencoder:
        """The same autoencoder, with these runners in it; it shares the other weights with `model`.

        Runners need float32 files.
        """
        with torch.device("meta"):
            session = cls(**{k: v for k, v in model.config.items() if not k.startswith("_")})
        session.load_state_dict(model.state_dict(), assign=True)
        session.runners = {"encoder": encoder, "decoder": decoder}
        session._device, session._dtype = model.device, model.dtype
        if encoder is not None:
            del session.encoder, session.quant_conv
        if decoder is not None:
            del session.decoder, session.post_quant_conv
        return session.eval()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the torch half."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._device

    def _encode(self, pictures: torch.Tensor) -> torch.Tensor:
        runner = self.runners["encoder"]
        if runner is None:
            return super()._encode(pictures)
        count, _, height, width = pictures.shape
        shape = (count, self.config.z_dim, height // self.factor, width // self.factor)
        return runner({"pictures": pictures.float().contiguous()}, {"latents": shape}, torch.float32)[0]

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        runner = self.runners["decoder"]
        if runner is None:
            return super()._decode(latents)
        count, _, rows, columns = latents.shape
        shape = (count, self.config.out_channels, self.factor * rows, self.factor * columns)
        return runner({"latents": latents.float().contiguous()}, {"pictures": shape}, torch.float32)[0]


def cache_folder() -> Path:
    """Where exported files and engines are kept: `worldstereo_ros` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "worldstereo_ros"


def use_control_backend(
    transformer: Any,
    backend: str,
    *,
    cache_dir: str | Path | None = None,
    dtype: torch.dtype | None = None,
    provider: str = "auto",
    on_step: OnStep | None = None,
) -> None:
    """Runs the control branch of a transformer by another backend from now on.

    The branch is exported once and kept, by the hash of its weights; its torch weights are then let go, except the
    projections to the backbone's width and a small model's last layer. TensorRT engines are built at the first call of
    each shape, and kept.

    Args:
        transformer: a `WorldStereoTransformer` with a control branch, on its device.
        backend: torch (leaves it as it is), onnxruntime or tensorrt.
        cache_dir: where files are kept; None: `cache_folder()`.
        dtype: what the branch runs in; None: float32 on the CPU, float16 on CUDA.
        provider: of onnxruntime, see `choose_providers`.
        on_step: called as the export goes on.

    Raises:
        ModelExportError: the backend is not known or not installed, or there is no control branch.
    """
    if backend not in BACKENDS:
        raise ModelExportError(f"control_backend is '{backend}'; choose one of {', '.join(BACKENDS)}.")
    branch = transformer.controlnet
    if backend == "torch":
        if isinstance(branch, ExportedControlBranch):
            raise ModelExportError("The torch weights of the control branch were let go; load the model again.")
        return
    if not isinstance(branch, ControlBranch):
        what = "none" if branch is None else f"a {type(branch).__name__}"
        raise ModelExportError(f"control_backend is '{backend}'; the model's control branch is {what}.")
    device = cast(nn.Linear, branch.proj_out[0]).weight.device
    if backend == "tensorrt":
        load_tensorrt()  # what is missing is said before a minute of exporting
        if device.type != "cuda":
            raise ModelExportError(f"control_backend tensorrt runs on CUDA and the model is on {device}.")
    else:
        choose_providers(device, require_package("onnxruntime").get_available_providers(), provider)
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    folder = Path(cache_dir) if cache_dir is not None else cache_folder()
    attention = "fused" if backend == "onnxruntime" and provider != "tensorrt" else "standard"
    kind = f"{str(dtype).removeprefix('torch.')}-{attention}-opset{OPSET}-{__version__}"
    path = folder / "onnx" / f"control-{weights_hash(branch)[:24]}-{kind}.onnx"

    def write() -> None:
        export_control(branch, path, dtype=dtype, attention=attention, on_step=on_step)

    def start() -> Runner:
        if backend == "tensorrt":
            return TensorRTRunner(path, EngineCache(folder / "engines"), device)
        return OnnxRuntimeRunner(path, device, provider=provider, engines=folder / "engines")

    kept = path.is_file()
    if not kept:
        write()
    try:
        description, runner = read_description(path), start()
    except ModelExportError:
        if not kept:
            raise
        write()  # the file that was kept is damaged
        description, runner = read_description(path), start()
    transformer.controlnet = ExportedControlBranch(
        runner, description, branch.proj_out, head=branch.render_head, layout=branch.layout_embedding
    )
