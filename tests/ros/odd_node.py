"""The node with pipelines that are slow, hang or fail, for the tests of what it survives.

Models: slow (a tenth of a second a step, ten steps a view), hangs (never looks up), fails, oom, nan (depth), short (a
view too few), endless (hangs until a file named in ODD_RELEASE exists). An image whose frame is `poison` makes a
callback raise.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from worldstereo_ros.pipelines.base import ModelError, PipelineFrame
from worldstereo_ros.ros import intake, loading
from worldstereo_ros.ros.node import main


class OddPipeline:
    clip_length = 1

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0

    def __call__(self, conditioning, *, prompt, generator, on_step):
        self.calls += 1
        first = self.calls == 1
        if self.name == "slow":
            for step in range(10):
                on_step("imagining", step, 10)
                time.sleep(0.02)
        if self.name == "hangs" and first:
            while not Path(os.environ["ODD_RELEASE"]).exists():
                time.sleep(0.02)
        if self.name == "fails" and first:
            raise ModelError("its weights are damaged")
        if self.name == "oom" and first:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if self.name == "short" and first:
            return
        if self.name == "surprise" and first:
            raise KeyError("a slip of the pen")
        camera = conditioning.camera
        depth = conditioning.renders.depth[0].cpu().numpy().copy()
        if self.name == "nan":
            depth[::2] = np.nan
            depth[1::4] = np.inf
        yield PipelineFrame(
            image=conditioning.renders.colour[0].cpu().numpy(),
            depth=depth,
            observed=np.zeros((camera.height, camera.width), bool),
        )


ODD = ("slow", "hangs", "fails", "oom", "nan", "short", "surprise")
_load, _check = loading.load_pipeline, intake.messages.check_image


def load_pipeline(model, device="cpu"):
    return OddPipeline(model) if model in ODD else _load(model, device)


def check_image(message, *arguments):
    if message.header.frame_id == "poison":
        raise ZeroDivisionError("poison")
    _check(message, *arguments)


loading.load_pipeline = load_pipeline
intake.messages.check_image = check_image

if __name__ == "__main__":
    main()
