"""The floor of `bench_small_model.py`: the least time that the networks' own operations take on this machine.

Every matrix product, convolution and attention of the networks is recorded with its shapes while they run, and run
again alone: same shapes, dtype, device, threads and process. A rate of one large matrix product would be no bound:
small products that stay in the cache are faster, and a 3x3 convolution takes fewer multiplications than its definition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

# On the CPU, torch counts no attention but the plain implementation.
_ATTENTION = "_scaled_dot_product"


@dataclass(frozen=True)
class TensorShape:
    """What is needed to make a tensor like one that was recorded."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def make(self) -> torch.Tensor:
        """Random numbers of this shape and layout."""
        tensor = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        return tensor.normal_() if self.dtype.is_floating_point else tensor.zero_()


class Operations(TorchDispatchMode):
    """Records the operations that run inside it and that have a formula for their number of operations.

    Attributes:
        counts: how often each operation ran, by (operator, arguments with shapes in place of tensors).
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Runs the operator and records it."""
        if func.overloadpacket in flop_registry or _ATTENTION in str(func):
            leaves, layout = tree_flatten((args, kwargs or {}))
            shapes = tuple(
                TensorShape(tuple(x.shape), x.stride(), x.dtype, x.device) if isinstance(x, torch.Tensor) else x
                for x in leaves
            )
            self.counts[(func, shapes, layout)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def flops(self) -> float:
        """Operations of all that was recorded: two for each multiplication and addition."""
        return float(sum(count * _flops(*key) for key, count in self.counts.items()))

    def seconds(self, clock: Callable[[Callable[[], Any]], float]) -> float:
        """The time that the recorded operations take when each runs alone.

        Args:
            clock: gives the least seconds of one call of a function.
        """
        total = 0.0
        for (func, shapes, layout), count in self.counts.items():
            leaves = [x.make() if isinstance(x, TensorShape) else x for x in shapes]
            args, named = tree_unflatten(leaves, layout)
            with torch.no_grad():
                total += count * clock(lambda func=func, args=args, named=named: func(*args, **named))
        return total


@contextmanager
def recording(pipeline: Any) -> Iterator[Operations]:
    """Records the operations of encoding, transformer and decoding, the parts that `Breakdown` calls the networks."""
    operations = Operations()

    def recorded(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            with operations:
                return work(*arguments, **named)

        return run

    autoencoder, transformer = pipeline.autoencoder, pipeline.transformer
    with (
        patch.object(autoencoder, "encode", recorded(autoencoder.encode)),
        patch.object(autoencoder, "decode_latents", recorded(autoencoder.decode_latents)),
        patch.object(transformer, "forward", recorded(transformer.forward)),
    ):
        yield operations


def _flops(func: Any, shapes: tuple[Any, ...], layout: Any) -> float:
    meta = [torch.empty(x.shape, dtype=x.dtype, device="meta") if isinstance(x, TensorShape) else x for x in shapes]
    args, named = tree_unflatten(meta, layout)
    if func.overloadpacket not in flop_registry:
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    with torch.no_grad():
        out = func(*args, **named)
    return flop_registry[func.overloadpacket](*args, **named, out_val=out)
