"""What a conversion to stereo counts."""

from __future__ import annotations

from dataclasses import dataclass

from worldstereo_ros.pipelines.stereo.frame_sources import StereoInput
from worldstereo_ros.pipelines.stereo.pipeline import PAINTED, REMEMBERED, SEEN, StereoFrame


@dataclass
class Figures:
    """What a conversion counted; sums over frames.

    Attributes:
        read, written: frames of the source, frames of the video.
        estimated: frames whose depth a model estimated.
        black: frames that show nothing.
        seen, remembered, painted: pixels of the made eye by their source.
        clamped: sum of the fractions of pixels with limited disparity.
        damaged, leading: damaged frames, in place of which others are shown; those of them before the first whole one.
        damage: why the first of them is damaged.
    """

    read: int = 0
    written: int = 0
    estimated: int = 0
    black: int = 0
    seen: int = 0
    remembered: int = 0
    painted: int = 0
    clamped: float = 0.0
    damaged: int = 0
    leading: int = 0
    damage: str = ""

    def add(self, frame: StereoFrame, given: StereoInput, *, estimated: bool, black: bool) -> None:
        """Counts a frame."""
        if given.damage:
            self.leading += self.damaged == self.read
            self.damaged += 1
            self.damage = self.damage or given.damage
        self.read += 1
        self.written += given.repeats
        self.estimated += estimated
        self.black += black
        self.seen += int((frame.source == SEEN).sum())
        self.remembered += int((frame.source == REMEMBERED).sum())
        self.painted += int((frame.source == PAINTED).sum())
        self.clamped += frame.clamped

    def damage_notes(self) -> list[str]:
        """Sentences for the user about damaged frames."""
        if not self.damaged:
            return []
        what = "1 frame is damaged" if self.damaged == 1 else f"{self.damaged} frames are damaged"
        instead = "the one before is shown instead"
        if self.leading:
            elsewhere = ", and elsewhere the one before" if self.damaged > self.leading else ""
            instead = f"frame {self.leading}, the first whole one, is shown from the start{elsewhere}"
        return [f"{what}: {instead}. The first: {self.damage}"]
