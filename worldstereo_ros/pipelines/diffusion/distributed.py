"""Several processes that imagine as one: `torchrun --nproc-per-node 4 -m worldstereo_ros.ros.node ...`.

The first process is the program as always: it alone has ROS, memory and encoders. The others only have the
transformer; they wait for the first one to call it, take its inputs, and do their share. So a goal is cancelled
between two steps without telling them. Messages are JSON and raw tensors, never pickles.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from worldstereo_ros.models.checkpoints.hub import Checkpoint

PATIENCE = timedelta(days=30)  # a robot may have nothing to imagine for long
SHARD_WEIGHTS_ENV = "WORLDSTEREO_SHARE_WEIGHTS"  # set to 1 where the weights are too large for one device
POSITIONAL = ("hidden_states", "timestep", "encoder_hidden_states")


def process_count() -> int:
    """How many processes `torchrun` started; 1 without it."""
    launched = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return int(os.environ["WORLD_SIZE"]) if launched else 1


def is_worker() -> bool:
    """True in all processes but the first: they have nothing to do but `run_worker`."""
    return process_count() > 1 and int(os.environ["RANK"]) > 0


def load_distributed_transformer(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, reference_attention: str
) -> torch.nn.Module:
    """In the first process: the transformer, which the others have as well and help with from now on.

    Raises:
        CheckpointError: it cannot be loaded here or in another process.
    """
    import torch
    import torch.distributed as dist

    from worldstereo_ros.models.checkpoints.weights import CheckpointError

    if device.type == "cuda" and (device.index or 0) != 0:
        raise CheckpointError(f"The first of several processes works on cuda:0, and {device} was asked for.")
    _join(device.type)
    _tell(
        {
            "do": "load",
            "model": str(checkpoint.folder),
            "variant": checkpoint.variant,
            "root": str(checkpoint.root),
            "device": device.type,
            "dtype": str(dtype).removeprefix("torch."),
            "reference_attention": reference_attention,
        }
    )
    problem: Exception | None = None
    transformer = None
    try:
        transformer = _load(checkpoint, device, dtype, reference_attention)
    except (ValueError, RuntimeError) as error:
        problem = error
    good = torch.tensor([problem is None], dtype=torch.int32)
    dist.all_reduce(good, op=dist.ReduceOp.MIN, group=_control())
    if problem is not None:
        raise problem
    assert transformer is not None
    if not good.item():
        raise CheckpointError(f"{checkpoint.folder} could not be loaded in another process; its output says why.")
    _share(transformer, device)
    transformer.register_forward_pre_hook(_announce, with_kwargs=True)
    return transformer


def run_worker() -> None:
    """In all processes but the first: does what the first one says, until it ends."""
    import torch
    import torch.distributed as dist

    from worldstereo_ros.models.checkpoints.config import read_config
    from worldstereo_ros.models.checkpoints.hub import Checkpoint

    transformer: torch.nn.Module | None = None
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    _join(kind)
    device = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device("cpu")
    while True:
        try:
            message = _hear()
        except RuntimeError:  # the first process is gone
            return
        if message["do"] == "end":
            return
        if message["do"] == "load":
            from pathlib import Path

            transformer = None
            device = device if message["device"] == "cuda" else torch.device("cpu")
            good = torch.ones(1, dtype=torch.int32)
            try:
                folder = Path(message["model"])
                settings = read_config(folder / "config.json", message["variant"])
                checkpoint = Checkpoint(Path(message["root"]), folder, settings)
                dtype = getattr(torch, message["dtype"])
                transformer = _load(checkpoint, device, dtype, message["reference_attention"])
            except (ValueError, RuntimeError, OSError) as error:
                print(f"process {os.environ['RANK']}: {error}", file=sys.stderr, flush=True)
                good.zero_()
            dist.all_reduce(good, op=dist.ReduceOp.MIN, group=_control())
            if good.item() and transformer is not None:
                _share(transformer, device)
        elif transformer is not None:
            inputs = _receive(message["tensors"], device)
            with torch.no_grad():
                transformer(**inputs, return_dict=False)


def stop_workers() -> None:
    """In the first process: ends the others."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        _tell({"do": "end"})
        dist.destroy_process_group()
        _groups.clear()


# --- parts ---

_groups: dict[str, Any] = {}


def _join(kind: str) -> None:
    import torch
    import torch.distributed as dist

    if dist.is_initialized() and "control" in _groups:
        return
    if kind == "cuda" or torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    else:
        backend = "gloo"
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=PATIENCE)
    # Waiting is done on the CPU, so that no GPU spins while there is nothing to imagine.
    _groups["control"] = dist.new_group(backend="gloo", timeout=PATIENCE)


def _control() -> Any:
    return _groups["control"]


def _load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, mode: str) -> torch.nn.Module:
    from worldstereo_ros.models import load_transformer

    parted = os.environ.get(SHARD_WEIGHTS_ENV) == "1"
    return load_transformer(checkpoint, device="cpu" if parted else device, dtype=dtype, reference_attention=mode)


def _share(transformer: Any, device: torch.device) -> None:
    from worldstereo_ros.pipelines.diffusion.sequence_parallel import enable_sequence_parallel, shard_weights

    if os.environ.get(SHARD_WEIGHTS_ENV) == "1":
        from torch.distributed.device_mesh import init_device_mesh

        shard_weights(transformer, init_device_mesh(device.type, (process_count(),)))
    enable_sequence_parallel(transformer)


def _announce(_module: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
    """Sends the inputs of a forward to the other processes."""
    import torch
    import torch.distributed as dist

    inputs = {**dict(zip(POSITIONAL, arguments, strict=False)), **keywords}
    tensors = {name: tensor.contiguous() for name, tensor in inputs.items() if isinstance(tensor, torch.Tensor)}
    about = [[n, list(t.shape), str(t.dtype).removeprefix("torch.")] for n, t in tensors.items()]
    _tell({"do": "forward", "tensors": about})
    for tensor in tensors.values():
        dist.broadcast(tensor, src=0)


def _receive(about: list[list[Any]], device: torch.device) -> dict[str, torch.Tensor]:
    import torch
    import torch.distributed as dist

    inputs = {}
    for name, shape, dtype in about:
        inputs[name] = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        dist.broadcast(inputs[name], src=0)
    return inputs


def _tell(message: Mapping[str, Any]) -> None:
    import torch
    import torch.distributed as dist

    data = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
    dist.broadcast(torch.tensor([len(data)]), src=0, group=_control())
    dist.broadcast(data, src=0, group=_control())


def _hear() -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    size = torch.zeros(1, dtype=torch.int64)
    dist.broadcast(size, src=0, group=_control())
    data = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(data, src=0, group=_control())
    return json.loads(bytes(data.tolist()))
