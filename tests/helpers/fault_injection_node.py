"""The node with a pipeline that is slow, hangs or fails as the prompt says, for the tests of what it survives.

Model `odd`; prompts: slow (a fifth of a second a view, in ten steps), hangs (never looks up, until the file named in
ODD_RELEASE exists), fails, oom, short (two views too few), surprise, nan (depth). Anything else: what memory gives.
An image whose frame is `poison` makes a callback raise.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from worldstereo_ros.pipelines.base import ModelError, PipelineFrame
from worldstereo_ros.ros.node import subscriptions, world_factory
from worldstereo_ros.ros.node.node import main


class OddPipeline:
    name = "odd"
    clip_length = 4

    def __call__(self, conditioning, *, prompt, generator, on_step):
        for index in range(len(conditioning.world_from_camera)):
            self.behave(prompt, index, on_step)
            if prompt == "short" and index == 2:
                return
            yield self.frame(conditioning, index, prompt)

    def behave(self, prompt, index, on_step):
        if prompt == "slow":
            for step in range(10):
                on_step("imagining", step, 10)
                time.sleep(0.02)
        if prompt == "hangs":
            while not Path(os.environ["ODD_RELEASE"]).exists():
                time.sleep(0.02)
        if prompt == "fails":
            raise ModelError("its weights are damaged")
        if prompt == "oom":
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if prompt == "surprise":
            raise KeyError("a slip of the pen")

    def frame(self, conditioning, index, prompt):
        camera = conditioning.camera
        depth = conditioning.renders.depth[index].cpu().numpy().copy()
        if prompt == "nan":
            depth[::2] = np.nan
            depth[1::4] = np.inf
        return PipelineFrame(
            image=conditioning.renders.colour[index].cpu().numpy(),
            depth=depth,
            observed=np.zeros((camera.height, camera.width), bool),
        )


_load, _check = world_factory.load_pipeline, subscriptions.messages.check_image


def load_pipeline(model, device="cpu", **options):
    return OddPipeline() if model == "odd" else _load(model, device, **options)


def check_image(message, *arguments):
    if message.header.frame_id == "poison":
        raise ZeroDivisionError("poison")
    _check(message, *arguments)


world_factory.load_pipeline = load_pipeline
subscriptions.messages.check_image = check_image

if __name__ == "__main__":
    main()
