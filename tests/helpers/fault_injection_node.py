"""Runs the node with a pipeline that is slow, hangs or fails as the prompt says, to test fault handling.

Model `faulty`; prompts: slow (0.2 s per view in ten steps), hangs (until the file named in FAULTY_RELEASE exists),
fails, oom, short (two views only), unexpected, nan (in the depth). Any other prompt returns the renders of the memory.
An image with the frame_id `poison` makes a callback raise.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from worldstereo_ros.pipelines.base import ModelError, PipelineFrame
from worldstereo_ros.ros.node import subscriptions, world_factory
from worldstereo_ros.ros.node.main import main


class FaultyPipeline:
    name = "faulty"
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
            while not Path(os.environ["FAULTY_RELEASE"]).exists():
                time.sleep(0.02)
        if prompt == "fails":
            raise ModelError("damaged weights")
        if prompt == "oom":
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if prompt == "unexpected":
            raise KeyError("missing key")

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


_load_pipeline, _check_image = world_factory.load_pipeline, subscriptions.messages.check_image


def load_pipeline(model, device="cpu", **options):
    return FaultyPipeline() if model == "faulty" else _load_pipeline(model, device, **options)


def check_image(message, *arguments, **options):
    if message.header.frame_id == "poison":
        raise ZeroDivisionError("poison")
    _check_image(message, *arguments, **options)


world_factory.load_pipeline = load_pipeline
subscriptions.messages.check_image = check_image

if __name__ == "__main__":
    main()
