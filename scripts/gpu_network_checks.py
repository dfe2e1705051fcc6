"""Checks of a GPU: training steps at full batch, the published size, kernels, exported parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from gpu_place import CheckFailed, Place, Skipped, near

FULL_SIZE_GIB = 45  # of free GPU memory, for the size of the published models


def check_full_step(place: Place) -> dict[str, Any]:
    """Steps of the stage finetune at the size of the configuration gpu: operations, seconds, memory; then compiled."""
    from gpu_training import step_figures

    return step_figures(place, compiled=False)


def check_compiled_step(place: Place) -> dict[str, Any]:
    """The same with torch.compile."""
    place.need_gpu("torch.compile of the training step")
    from gpu_training import step_figures

    return step_figures(place, compiled=True)


def check_bfloat16(place: Place) -> dict[str, Any]:
    """A transformer in bfloat16, compared with float32."""
    from full_size import TOY, build, make_inputs

    exact, _ = build(TOY, torch.device("cpu"), torch.float32)
    rounded, _ = build(TOY, torch.device("cpu"), torch.bfloat16)
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            parameter.copy_(exact.get_parameter(name))
    torch.manual_seed(0)
    inputs = make_inputs(exact, TOY.frames, TOY.height, TOY.width, 2, torch.device("cpu"), torch.float32)
    outputs = []
    for model, dtype in ((exact, torch.float32), (rounded, torch.bfloat16)):
        model.to(place.device)
        on_device = {n: t if n == "ref_index" else t.to(place.device, dtype) for n, t in inputs.items()}
        with torch.no_grad():
            outputs.append(model(**on_device).sample)
    # Random weights amplify rounding; the bundled model is compared by the check "small model".
    return {"error": near(outputs[1], outputs[0], 0.25, "bfloat16")}


def check_flex_attention(place: Place) -> dict[str, Any]:
    """Block-sparse FlexAttention over references, compared with a dense mask."""
    from full_size import TOY, build, make_inputs

    toy = replace(TOY, backbone={**TOY.backbone, "attention_head_dim": 32, "added_kv_proj_dim": 64}, control={})
    model, _ = build(toy, place.device, torch.float32)
    inputs = make_inputs(model, toy.frames, toy.height, toy.width, 2, place.device, torch.float32)
    for name in ("render_latent", "render_mask", "camera_embedding", "camera_qt", "camera_qt_ref"):
        inputs.pop(name)
    rows, columns = toy.height // 16, toy.width // 16
    points = torch.rand(1, toy.frames, rows, columns, 2, 2, device=place.device)
    inputs["reference_points"] = points * torch.tensor([rows, columns], device=place.device)
    errors = {}
    for mode in ("paired", "correspondence"):
        outputs = []
        for way in ("dense", "flex"):
            model.set_reference_attention(mode, way)
            with torch.no_grad():
                outputs.append(model(**inputs).sample)
        errors[f"{mode}_error"] = near(outputs[1], outputs[0], 1e-2, mode)
    return errors


def check_float8(place: Place) -> dict[str, Any]:
    """A float8 product, compared with bfloat16."""
    from full_size import Float8Linear

    side = 4096 if place.device.type == "cuda" else 64
    torch.manual_seed(0)
    linear = torch.nn.Linear(side, side, device=place.device, dtype=place.dtype)
    tokens = torch.randn(side, side, device=place.device, dtype=place.dtype)
    with torch.no_grad():
        quantised = Float8Linear(linear)
        try:
            found = quantised(tokens)
        except (RuntimeError, NotImplementedError) as error:
            if place.device.type == "cuda":
                raise
            raise Skipped(f"no float8 product on this CPU: {str(error).splitlines()[0]}") from None
        error = near(found, linear(tokens), 0.08, "float8")
        plain, fast = (place.seconds(lambda layer=layer: layer(tokens)) for layer in (linear, quantised))
    return {"error": error, "times_faster": plain / fast}


def check_full_size(place: Place) -> dict[str, Any]:
    """A forward of the published architecture, 14 B parameters, random weights, made on the meta device."""
    from full_size import FULL, TOY, build, count_flops, make_inputs, matmul_rate

    on_gpu = place.device.type == "cuda"
    if on_gpu and not place.toy and torch.cuda.mem_get_info()[0] < FULL_SIZE_GIB * 2**30:
        raise Skipped(f"needs {FULL_SIZE_GIB} GiB of free GPU memory")
    size = FULL if on_gpu and not place.toy else TOY
    model, autoencoder = build(size, place.device, place.dtype)
    inputs = make_inputs(model, size.frames, size.height, size.width, 4, place.device, place.dtype)
    with torch.no_grad():
        out = model(**inputs).sample
        seconds = place.seconds(lambda: model(**inputs), repeats=1)
        images = torch.rand(2, 3, size.height, size.width, device=place.device, dtype=place.dtype) * 2 - 1
        decoded = autoencoder.decode(autoencoder.encode(images))
    if not bool(torch.isfinite(out).all()) or not bool(torch.isfinite(decoded).all()):
        raise CheckFailed("the result is not finite")
    flops = sum(count_flops(model.config, size.frames, size.height, size.width, 4).values())
    rate = matmul_rate(place.device, place.dtype, 8192 if on_gpu else 256, 0.2)
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds_a_step": seconds,
        "share_of_matrix_rate": flops / seconds / rate,
    }
    if on_gpu:
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def check_loading(place: Place) -> dict[str, Any]:
    """A checkpoint streamed to the device: host memory beyond the weights, and the tensors."""
    import bench_loading

    folder = place.folder / "checkpoint"
    bench_loading.write_checkpoint(folder, bench_loading.size_of(0.02 if place.toy else 0.2), 1 << 28)
    found = bench_loading.load(folder, place.device.type)
    if found["total"] > 2**30:
        raise CheckFailed(f"loading took {found['total'] / 2**30:.2f} GiB of host memory")
    return {"host_mib": found["total"] / 2**20, "gb_per_s": found["weights"] / 1e9 / found["seconds"]}


def check_onnxruntime(place: Place) -> dict[str, Any]:
    """The control branch in onnxruntime, compared with torch."""
    return _backend_check(place, "onnxruntime", ("onnx", "onnxscript", "onnxruntime"))


def check_tensorrt(place: Place) -> dict[str, Any]:
    """The control branch as a TensorRT engine, compared with torch."""
    place.need_gpu("TensorRT")
    return _backend_check(place, "tensorrt", ("onnx", "onnxscript", "tensorrt"))


def _backend_check(place: Place, backend: str, modules: tuple[str, ...]) -> dict[str, Any]:
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise Skipped(f"{' and '.join(missing)} not installed")
    if backend == "onnxruntime" and place.device.type == "cuda":
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise Skipped("this onnxruntime has no CUDA provider")
    from full_size import TOY, build, make_inputs

    from worldstereo_ros.export.runtime import use_control_backend

    model, _ = build(TOY, place.device, torch.float32)
    inputs = make_inputs(model, TOY.frames, TOY.height, TOY.width, 0, place.device, torch.float32)
    with torch.no_grad():
        expected = model(**inputs).sample
        use_control_backend(model, backend, cache_dir=place.folder / "exports")
        return {"error": near(model(**inputs).sample, expected, 0.02, backend)}
