"""Pipelines with options: `NAME?OPTION=VALUE&OPTION=VALUE`.

`runs/small:memory?steps=40&compose=false` is the variant memory in runs/small with 40 denoising steps and without
composing observed pixels. Options change how a checkpoint is used and not its weights, so all names of a checkpoint
share one model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from worldstereo_ros.evaluation.baseline import BASELINES
from worldstereo_ros.models.worldstereo.masks import MODES
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.base import Conditioning, OnStep, Pipeline, PipelineFrame
from worldstereo_ros.pipelines.diffusion.distributed import process_count
from worldstereo_ros.pipelines.geometric.pipeline import FILLS, GeometricPipeline
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    import torch

    from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline

UNALIGNED = "geometric-unaligned"  # without exposure alignment, an ablation


def _boolean(value: str) -> bool:
    if value not in ("true", "false"):
        raise InputError("true or false")
    return value == "true"


def _steps(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= 1000:
        raise InputError("a whole number in 1..1000")
    return int(value)


def _guidance(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 1 <= number <= 100:
        raise InputError("a number in 1..100 (1 = no guidance)")
    return number


def _attention(value: str) -> str:
    if value not in MODES:
        raise InputError(f"one of {', '.join(MODES)}")
    return value


def _fill(value: str) -> str:
    if value not in FILLS:
        raise InputError(f"one of {', '.join(FILLS)}")
    return value


OPTIONS: dict[str, Callable[[str], Any]] = {
    "steps": _steps,
    "guidance": _guidance,
    "compose": _boolean,
    "control": _boolean,
    "memory": _boolean,
    "reference_attention": _attention,
    "refine": _boolean,
    "fill": _fill,
}
GEOMETRIC_OPTIONS: dict[str, Callable[[str], Any]] = {"fill": _fill}


@dataclass(frozen=True)
class PipelineName:
    """A parsed pipeline name.

    Attributes:
        text: the name as given, and in tables.
        model: what is loaded: `geometric`, or a folder or hub id with an optional `:variant`.
        options: values by name, of `OPTIONS`:
            steps: number of denoising steps; default: the variant's.
            guidance: scale of classifier-free guidance.
            compose: take observed pixels from memory; false: the model generates every pixel.
            control: false disables the control branch (renders, holes, Plücker rays).
            memory: false gives the model no reference views.
            reference_attention: full, paired or correspondence.
            refine: false leaves imagined pixels as the transformer made them.
            fill: what holes show: smooth or planes.
    """

    text: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> PipelineName:
        """Parses a name.

        Raises:
            InputError: an option is unknown, repeated, or has an invalid value.
        """
        model, mark, query = text.partition("?")
        options: dict[str, Any] = {}
        known = GEOMETRIC_OPTIONS if model == "geometric" else OPTIONS
        if mark and model in (UNALIGNED, *BASELINES):
            raise InputError(f"'{model}' is not a checkpoint and takes no options; '{text}' has {query}.")
        for part in query.split("&") if mark else ():
            name, equals, value = part.partition("=")
            if not equals or name not in known:
                raise InputError(
                    f"The pipeline '{text}' has the option '{part}'; OPTION=VALUE was expected, with an option of "
                    f"{', '.join(known)}."
                )
            if name in options:
                raise InputError(f"The pipeline '{text}' has {name} twice; give it once.")
            try:
                options[name] = known[name](value)
            except ValueError as expected:
                raise InputError(f"The pipeline '{text}' has {name}={value}; {expected} was expected.") from None
        return cls(text, model, options)


class Pipelines:
    """Pipelines by name; names of the same model share one instance."""

    def __init__(self, names: Iterable[str], device: str = "cpu") -> None:
        """Loads the models of all names; names of baselines are ignored.

        Raises:
            InputError: a name or option is unknown, or the model does not support an option.
        """
        parsed = [PipelineName.parse(name) for name in names if name not in BASELINES]
        self._names = {name.text: name for name in parsed}
        self._loaded: dict[str, Pipeline] = {}
        for name in parsed:
            if name.model not in self._loaded:
                self._loaded[name.model] = (
                    GeometricPipeline(align=False) if name.model == UNALIGNED else load_pipeline(name.model, device)
                )
            _check(name, self._loaded[name.model])

    @contextmanager
    def use(self, text: str) -> Iterator[Pipeline]:
        """Context manager: the pipeline of a name, with its options applied inside the block."""
        name = self._names[text]
        with with_options(self._loaded[name.model], name.options) as pipeline:
            yield pipeline


@contextmanager
def with_options(pipeline: Any, options: Mapping[str, Any]) -> Iterator[Pipeline]:
    """Context manager: applies options to a pipeline and restores it afterwards."""
    if not options:
        yield pipeline
        return
    if isinstance(pipeline, GeometricPipeline):
        fill = pipeline.fill
        try:
            pipeline.fill = options["fill"]
            yield pipeline
        finally:
            pipeline.fill = fill
        return
    transformer = pipeline.transformer
    before = {name: getattr(pipeline, name) for name in ("steps", "guidance", "compose_observed", "refiner", "fill")}
    control, control_settings = transformer.controlnet, transformer.config.controlnet_cfg
    attention, implementation = transformer.config.reference_attention, transformer.attention_implementation
    try:
        renamed = {"compose": "compose_observed"}
        for option, attribute in ((name, renamed.get(name, name)) for name in ("steps", "guidance", "compose", "fill")):
            if option in options:
                setattr(pipeline, attribute, options[option])
        if not options.get("refine", True):
            pipeline.refiner = None
        if "reference_attention" in options:
            transformer.set_reference_attention(options["reference_attention"], implementation)
        if not options.get("control", True):
            transformer.controlnet = None
            # The transformer derives its required inputs from its configuration.
            transformer.register_to_config(controlnet_cfg=None)
        yield pipeline if options.get("memory", True) else _WithoutReferences(pipeline)
    finally:
        for name, value in before.items():
            setattr(pipeline, name, value)
        transformer.controlnet = control
        transformer.register_to_config(controlnet_cfg=control_settings)
        transformer.set_reference_attention(attention, implementation)


class _WithoutReferences:
    """A pipeline without retrieved reference views. Composing observed pixels is unchanged."""

    def __init__(self, pipeline: WorldStereoPipeline) -> None:
        self._pipeline = pipeline
        self.name, self.clip_length = pipeline.name, pipeline.clip_length
        self.selects_references = pipeline.selects_references

    def __call__(
        self, conditioning: Conditioning, *, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        """Yields the frames of the clip in order."""
        none = np.full_like(conditioning.reference_index, -1)
        conditioning = replace(conditioning, reference_index=none)
        yield from self._pipeline(conditioning, prompt=prompt, generator=generator, on_step=on_step)


def _check(name: PipelineName, pipeline: Any) -> None:
    if not name.options or isinstance(pipeline, GeometricPipeline):
        return
    config = getattr(pipeline, "config", None)
    if config is None:
        raise InputError(f"'{name.model}' is not a checkpoint and takes no options; remove those of '{name.text}'.")
    memory_options = [option for option in ("memory", "reference_attention") if option in name.options]
    if memory_options and not config.has_memory_branch:
        raise InputError(
            f"The pipeline '{name.text}' has {' and '.join(memory_options)}, and {config.variant} takes no "
            "references; use a memory variant."
        )
    if process_count() > 1 and {"control", "reference_attention"} & set(name.options):
        raise InputError(
            f"The pipeline '{name.text}' changes the transformer, which several processes share; run it in one process."
        )
