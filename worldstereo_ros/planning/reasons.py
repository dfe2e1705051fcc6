"""Why one path is better than the others, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from worldstereo_ros.planning.score_types import PathScore

MIN_COLLISION, MIN_CLEARANCE_M, MIN_SHARE, MIN_RATIO = 0.02, 0.05, 0.05, 1.1  # differences that are worth telling
RISKY = 0.5  # collision probability of a winner that a robot should not drive


def why_first(scores: Sequence[PathScore], best: int) -> str:
    """A sentence that compares the winner with the path of the next highest score."""
    winner = scores[best]
    risk = f"{100 * winner.collision_probability:.0f} % collision probability"
    if len(scores) == 1:
        return f"'{winner.name}' is the only path: {risk}, {_share(winner)}."
    second = max((score for index, score in enumerate(scores) if index != best), key=lambda score: score.score)
    better: list[str] = []
    worse: list[str] = []
    for text, is_better in _differences(winner, second):
        (better if is_better else worse).append(text)
    if not better and not worse:
        sentence = f"'{winner.name}' and '{second.name}' are alike ({risk}); the first of them was taken"
    else:
        sentence = f"'{winner.name}' before '{second.name}'"
        sentence += f": {', '.join(better)}" if better else ""
    if worse:
        sentence += f"{', although' if better else ', although the difference is small:'} {', '.join(worse)}"
    if winner.collision_probability >= RISKY:
        sentence += f". It is the best of the paths, but not safe: {risk}"
    return sentence + "."


def _differences(winner: PathScore, second: PathScore) -> list[tuple[str, bool]]:
    """What differs, as text, and whether it speaks for the winner."""
    out = []
    a, b = winner.collision_probability, second.collision_probability
    if abs(a - b) >= MIN_COLLISION:
        out.append((f"collision probability {100 * a:.0f} % instead of {100 * b:.0f} %", a < b))
    a, b = winner.clearance, second.clearance
    if a != b and abs(a - b) >= MIN_CLEARANCE_M:
        out.append((f"clearance {a:.2f} m instead of {b:.2f} m", a > b))
    a, b = winner.imagined_share + winner.unknown_share, second.imagined_share + second.unknown_share
    if abs(a - b) >= MIN_SHARE:
        out.append((f"{100 * a:.0f} % of the way not observed instead of {100 * b:.0f} %", a < b))
    a, b = winner.new_area, second.new_area
    if max(a, b) > MIN_RATIO * min(a, b) + 0.1:
        out.append((f"{a:.1f} square metres of new area instead of {b:.1f}", a > b))
    a, b = winner.length, second.length
    if max(a, b) > MIN_RATIO * min(a, b) + 0.05:
        out.append((f"{a:.1f} m long instead of {b:.1f} m", a < b))
    return out


def _share(score: PathScore) -> str:
    return f"{100 * (score.imagined_share + score.unknown_share):.0f} % of the way not observed"
