"""Pipelines as the evaluation names them: `NAME?OPTION=VALUE&OPTION=VALUE`.

`runs/small:memory?steps=40&compose=false` is the memory variant in runs/small, in forty steps, every pixel its own.
Options change how a checkpoint is used, never what was loaded, so that one model in memory serves all names of it.
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
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    import torch

    from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline

UNALIGNED = "geometric-unaligned"  # without exposure alignment, to see what that step gives


def _truth(value: str) -> bool:
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
        raise InputError("a number in 1..100 (1 = none)")
    return number


def _attention(value: str) -> str:
    if value not in MODES:
        raise InputError(f"one of {', '.join(MODES)}")
    return value


OPTIONS: dict[str, Callable[[str], Any]] = {
    "steps": _steps,
    "guidance": _guidance,
    "compose": _truth,
    "control": _truth,
    "memory": _truth,
    "reference_attention": _attention,
}


@dataclass(frozen=True)
class PipelineName:
    """A name, taken apart.

    Attributes:
        text: as it was written, and as it stands in tables.
        model: what is loaded: `geometric`, a folder, a hub id, with `:variant` behind it.
        options: by name, of `OPTIONS`:
            steps: denoising steps instead of the variant's own.
            guidance: scale of classifier-free guidance.
            compose: show remembered pictures where a sensor saw what the view shows; false: every pixel is the model's.
            control: false sets the control branch aside: renders, holes and rays are not looked at.
            memory: false gives the model no references.
            reference_attention: full, paired or correspondence.
    """

    text: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> PipelineName:
        """Reads a name.

        Raises:
            ValueError: an option is not known, is there twice, or has a value that it cannot have.
        """
        model, mark, query = text.partition("?")
        options: dict[str, Any] = {}
        for part in query.split("&") if mark else ():
            name, equals, value = part.partition("=")
            if not equals or name not in OPTIONS:
                raise InputError(
                    f"The pipeline '{text}' has the option '{part}'; OPTION=VALUE was expected, with an option of "
                    f"{', '.join(OPTIONS)}."
                )
            if name in options:
                raise InputError(f"The pipeline '{text}' says {name} twice; say it once.")
            try:
                options[name] = OPTIONS[name](value)
            except ValueError as expected:
                raise InputError(f"The pipeline '{text}' says {name}={value}; {expected} was expected.") from None
        if options and model in ("geometric", UNALIGNED, *BASELINES):
            raise InputError(f"'{model}' is no checkpoint and takes no options; '{text}' has {', '.join(options)}.")
        return cls(text, model, options)


class Pipelines:
    """The pipelines of a table; each model is loaded once, however many names mean it."""

    def __init__(self, names: Iterable[str], device: str = "cpu") -> None:
        """Loads what the names need; baselines are none of its business.

        Raises:
            ValueError: a name or its options are not known, or the model cannot do what an option says.
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
        """The pipeline of a name, as its options say for as long as the block lasts."""
        name = self._names[text]
        with changed(self._loaded[name.model], name.options) as pipeline:
            yield pipeline


@contextmanager
def changed(pipeline: Any, options: Mapping[str, Any]) -> Iterator[Pipeline]:
    """A checkpoint's pipeline under the options of a name; afterwards it is as it was."""
    if not options:
        yield pipeline
        return
    transformer = pipeline.transformer
    before = {name: getattr(pipeline, name) for name in ("steps", "guidance", "compose_observed")}
    control, control_settings = transformer.controlnet, transformer.config.controlnet_cfg
    attention, implementation = transformer.config.reference_attention, transformer.attention_implementation
    try:
        for option, attribute in (("steps", "steps"), ("guidance", "guidance"), ("compose", "compose_observed")):
            if option in options:
                setattr(pipeline, attribute, options[option])
        if "reference_attention" in options:
            transformer.set_reference_attention(options["reference_attention"], implementation)
        if not options.get("control", True):
            transformer.controlnet = None
            # What the transformer asks for follows from its configuration.
            transformer.register_to_config(controlnet_cfg=None)
        yield pipeline if options.get("memory", True) else _WithoutReferences(pipeline)
    finally:
        for name, value in before.items():
            setattr(pipeline, name, value)
        transformer.controlnet = control
        transformer.register_to_config(controlnet_cfg=control_settings)
        transformer.set_reference_attention(attention, implementation)


class _WithoutReferences:
    """A pipeline that is told of no retrieved view. What it composes from memory is not touched."""

    def __init__(self, pipeline: WorldStereoPipeline) -> None:
        self._pipeline = pipeline
        self.name, self.clip_length = pipeline.name, pipeline.clip_length
        self.selects_references = pipeline.selects_references

    def __call__(
        self, conditioning: Conditioning, *, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        """Yields the frames of the clip in order."""
        none = np.full_like(conditioning.reference_index, -1)
        alone = replace(conditioning, reference_index=none)
        yield from self._pipeline(alone, prompt=prompt, generator=generator, on_step=on_step)


def _check(name: PipelineName, pipeline: Any) -> None:
    if not name.options:
        return
    settings = getattr(pipeline, "settings", None)
    if settings is None:
        raise InputError(f"'{name.model}' is no checkpoint and takes no options; '{name.text}' has some.")
    of_memory = [option for option in ("memory", "reference_attention") if option in name.options]
    if of_memory and not settings.has_memory_branch:
        raise InputError(
            f"The pipeline '{name.text}' says {' and '.join(of_memory)}, and {settings.variant} takes no references; "
            "name a memory variant."
        )
    if process_count() > 1 and {"control", "reference_attention"} & set(name.options):
        raise InputError(
            f"The pipeline '{name.text}' changes the transformer, which several processes share; use one process."
        )
