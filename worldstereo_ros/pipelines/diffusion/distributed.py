"""Runs one transformer on several processes: `torchrun --nproc-per-node 4 -m worldstereo_ros.ros.node ...`.

The process of rank 0 runs the program; it alone has ROS, memory and encoders. The other processes are workers that only
have the transformer. When rank 0 calls its transformer, it broadcasts the inputs, and all processes compute the forward
together (see `sequence_parallel`). Between two calls the workers wait, so that a goal can be cancelled between
denoising steps without notifying them. Messages are JSON and raw tensors, no pickles.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from worldstereo_ros.models.checkpoints.hub import Checkpoint

TIMEOUT = timedelta(days=30)  # of collectives; workers wait as long as rank 0 has nothing to compute
SHARD_WEIGHTS_ENV = "WORLDSTEREO_SHARE_WEIGHTS"  # set to 1 if the weights are too large for one device
POSITIONAL = ("hidden_states", "timestep", "encoder_hidden_states")  # positional arguments of the forward

_groups: dict[str, Any] = {}


def process_count() -> int:
    """Returns the number of processes that `torchrun` started; 1 without it."""
    launched = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return int(os.environ["WORLD_SIZE"]) if launched else 1


def is_worker() -> bool:
    """Whether this is a process of rank 1 or higher, which must call `run_worker`."""
    return process_count() > 1 and int(os.environ["RANK"]) > 0


def init_process_groups(device_type: str) -> None:
    """Initialises torch.distributed and a group for messages, if that was not done before.

    Args:
        device_type: `cuda` or `cpu`.
    """
    import torch
    import torch.distributed as dist

    from worldstereo_ros.pipelines.diffusion.peers import PeerWatch

    if dist.is_initialized() and "messages" in _groups:
        return
    if device_type == "cuda" or torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    else:
        backend = "gloo"
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=TIMEOUT)
    # Messages are sent on the CPU: workers that wait for one must not keep their GPU busy.
    _groups["messages"] = dist.new_group(backend="gloo", timeout=TIMEOUT)
    _groups["watch"] = PeerWatch(dist.new_group(backend="gloo", timeout=TIMEOUT))


def load_distributed_transformer(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, reference_attention: str
) -> torch.nn.Module:
    """Loads a transformer in all processes; to be called by rank 0.

    Args:
        checkpoint: the checkpoint, on a file system that all processes see.
        device: the CPU or cuda:0.
        dtype: dtype of the weights.
        reference_attention: see `load_transformer`.

    Returns:
        The transformer of rank 0. A call of it makes the workers compute the same forward.

    Raises:
        CheckpointError: it cannot be loaded in this or another process, or the device is not the first one.
    """
    import torch
    import torch.distributed as dist

    from worldstereo_ros.models.checkpoints.weights import CheckpointError

    if device.type == "cuda" and (device.index or 0) != 0:
        raise CheckpointError(f"With several processes the first one runs on cuda:0, but {device} was requested.")
    init_process_groups(device.type)
    _broadcast_message(
        {
            "command": "load",
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
    loaded = torch.tensor([problem is None], dtype=torch.int32)
    dist.all_reduce(loaded, op=dist.ReduceOp.MIN, group=_groups["messages"])
    if problem is not None:
        raise problem
    assert transformer is not None
    if not loaded.item():
        raise CheckpointError(f"{checkpoint.folder} could not be loaded in another process; see its output.")
    _parallelize(transformer, device)
    transformer.register_forward_pre_hook(_broadcast_inputs, with_kwargs=True)
    return transformer


def run_worker() -> None:
    """Executes the commands of rank 0 until it ends; to be called by all other processes."""
    import torch

    transformer: torch.nn.Module | None = None
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    init_process_groups(device_type)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if device_type == "cuda" else torch.device("cpu")
    while True:
        try:
            message = _receive_message()
        except RuntimeError:  # rank 0 was killed
            break
        if message["command"] == "stop":
            break
        if message["command"] == "load":
            transformer = None  # frees the memory of the previous one
            device = device if message["device"] == "cuda" else torch.device("cpu")
            transformer = _load_in_worker(message, device)
        elif transformer is not None:
            inputs = _receive_inputs(message["tensors"], device)
            with torch.no_grad():
                transformer(**inputs, return_dict=False)
    _destroy_process_groups()


def stop_workers() -> None:
    """Ends the workers; to be called by rank 0."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        _broadcast_message({"command": "stop"})
        _destroy_process_groups()


def _destroy_process_groups() -> None:
    """Ends the threads of all groups: a process that exits while they run is aborted now and then."""
    import torch.distributed as dist

    _groups["watch"].stop()
    dist.destroy_process_group()
    _groups.clear()


def _load_in_worker(message: Mapping[str, Any], device: torch.device) -> torch.nn.Module | None:
    """Loads the transformer of a load command, and reports to all processes whether that worked."""
    import torch
    import torch.distributed as dist

    from worldstereo_ros.models.checkpoints.config import read_config
    from worldstereo_ros.models.checkpoints.hub import Checkpoint

    transformer = None
    loaded = torch.ones(1, dtype=torch.int32)
    try:
        folder = Path(message["model"])
        config = read_config(folder / "config.json", message["variant"])
        checkpoint = Checkpoint(Path(message["root"]), folder, config)
        dtype = getattr(torch, message["dtype"])
        transformer = _load(checkpoint, device, dtype, message["reference_attention"])
    except (ValueError, RuntimeError, OSError) as error:
        print(f"process {os.environ['RANK']}: {error}", file=sys.stderr, flush=True)
        loaded.zero_()
    dist.all_reduce(loaded, op=dist.ReduceOp.MIN, group=_groups["messages"])
    if loaded.item() and transformer is not None:
        _parallelize(transformer, device)
    return transformer


def _load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, mode: str) -> torch.nn.Module:
    from worldstereo_ros.models import load_transformer

    sharded = os.environ.get(SHARD_WEIGHTS_ENV) == "1"
    return load_transformer(checkpoint, device="cpu" if sharded else device, dtype=dtype, reference_attention=mode)


def _parallelize(transformer: Any, device: torch.device) -> None:
    from worldstereo_ros.pipelines.diffusion.sequence_parallel import enable_sequence_parallel, shard_weights

    if os.environ.get(SHARD_WEIGHTS_ENV) == "1":
        from torch.distributed.device_mesh import init_device_mesh

        shard_weights(transformer, init_device_mesh(device.type, (process_count(),)))
    enable_sequence_parallel(transformer)


def _broadcast_inputs(_module: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
    """Forward pre-hook of rank 0: broadcasts the inputs to the workers."""
    import torch
    import torch.distributed as dist

    inputs = {**dict(zip(POSITIONAL, arguments, strict=False)), **keywords}
    tensors = {name: tensor.contiguous() for name, tensor in inputs.items() if isinstance(tensor, torch.Tensor)}
    headers = [[n, list(t.shape), str(t.dtype).removeprefix("torch.")] for n, t in tensors.items()]
    _broadcast_message({"command": "forward", "tensors": headers})
    for tensor in tensors.values():
        dist.broadcast(tensor, src=0)


def _receive_inputs(headers: list[list[Any]], device: torch.device) -> dict[str, torch.Tensor]:
    """Receives the tensors of `_broadcast_inputs`; a header is (name, shape, dtype)."""
    import torch
    import torch.distributed as dist

    inputs = {}
    for name, shape, dtype in headers:
        inputs[name] = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        dist.broadcast(inputs[name], src=0)
    return inputs


def _broadcast_message(message: Mapping[str, Any]) -> None:
    import torch
    import torch.distributed as dist

    data = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
    dist.broadcast(torch.tensor([len(data)]), src=0, group=_groups["messages"])
    dist.broadcast(data, src=0, group=_groups["messages"])


def _receive_message() -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    size = torch.zeros(1, dtype=torch.int64)
    dist.broadcast(size, src=0, group=_groups["messages"])
    data = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(data, src=0, group=_groups["messages"])
    return json.loads(bytes(data.tolist()))
