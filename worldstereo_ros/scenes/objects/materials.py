"""Families of materials; each function draws a random one."""

from __future__ import annotations

from worldstereo_ros.scenes.raytracing.primitives import Colour, Material, Random, hsv

WARM, COOL = (1.0, 0.78, 0.52), (0.92, 0.97, 1.0)
"""Colours of warm and cool lamps, linear RGB."""


def plaster(random: Random, colour: Colour | None = None) -> Material:
    """Painted plaster with slight variations."""
    a = colour or hsv(random.uniform(), random.uniform(0.02, 0.35), random.uniform(0.72, 0.95))
    return Material(a=a, b=tuple(0.85 * c for c in a), noise=0.05, blend=0.25, frequency=(1.6, 1.6))


def brick(random: Random) -> Material:
    """Bricks in running bond."""
    hue, white = random.uniform(0.01, 0.07), random.chance(0.3)
    a = hsv(hue, 0.1 if white else random.uniform(0.5, 0.7), random.uniform(0.6, 0.8) + 0.1 * white)
    b = hsv(hue + 0.02, 0.12 if white else random.uniform(0.4, 0.6), random.uniform(0.45, 0.6) + 0.2 * white)
    return Material(
        a=a, b=b, joint=(0.42, 0.4, 0.37), cell=(0.25, 0.085), shift=0.5, joint_width=0.012, variance=0.18, noise=0.16,
        frequency=(14, 14),
    )  # fmt: skip


def panels(random: Random) -> Material:
    """Striped wallpaper, or vertical wooden boards."""
    if random.chance(0.5):
        a = hsv(random.uniform(), random.uniform(0.1, 0.35), random.uniform(0.75, 0.92))
        return Material(
            a=a, b=tuple(c * 0.82 for c in a), pattern="stripes", cell=(random.uniform(0.06, 0.2), 1e3), noise=0.03
        )
    base = wood(random)
    return Material(
        **{**base.__dict__, "cell": (0.12, 1e3), "shift": 0.0, "frequency": (30.0, 1.2), "joint_width": 0.008}
    )


def wood(random: Random, plank: float | None = None) -> Material:
    """Wood; with a plank width, floor boards."""
    hue, value = random.uniform(0.055, 0.1), random.uniform(0.35, 0.85)
    saturation = random.uniform(0.35, 0.65)
    a, b = hsv(hue, saturation, value), hsv(hue - 0.012, saturation + 0.1, value * 0.72)
    cell = (random.uniform(0.9, 1.6), plank) if plank else (1e3, 1e3)
    return Material(
        a=a, b=b, joint=tuple(0.25 * c for c in b), cell=cell, shift=-3.0 if plank else 0.0,
        joint_width=0.005 if plank else 0.0, variance=0.12 if plank else 0.0, noise=0.09, blend=0.5,
        frequency=(1.6, 26.0), grain=1.0 if plank else 0.0, gloss=0.25 if plank else 0.06,
    )  # fmt: skip


def floor(random: Random) -> Material:
    """A floor: boards, tiles, checks or carpet."""
    style = random.integer(0, 4)
    if style <= 1:
        return wood(random, plank=random.uniform(0.09, 0.19))
    if style == 2:
        return tiles(random)
    if style == 3:
        size = random.uniform(0.25, 0.5)
        dark = hsv(random.uniform(), random.uniform(0.0, 0.4), random.uniform(0.2, 0.45))
        light = hsv(random.uniform(0.05, 0.15), 0.1, random.uniform(0.75, 0.92))
        return Material(a=light, b=dark, joint=(0.2, 0.2, 0.2), cell=(size, size), pattern="checks", joint_width=0.004,
                        noise=0.08, variance=0.05, frequency=(5, 5), gloss=0.35)  # fmt: skip
    a = hsv(random.uniform(), random.uniform(0.1, 0.4), random.uniform(0.4, 0.7))
    return Material(a=a, b=tuple(0.7 * c for c in a), noise=0.12, blend=0.45, frequency=(18, 18))


def tiles(random: Random, size: float | None = None) -> Material:
    """Square tiles with grout."""
    size = size or random.uniform(0.28, 0.6)
    a = hsv(random.uniform(), random.uniform(0.03, 0.3), random.uniform(0.55, 0.88))
    return Material(a=a, b=tuple(0.84 * c for c in a), joint=tuple(0.45 * c for c in a), cell=(size, size),
                    joint_width=0.008, variance=0.07, noise=0.08, blend=0.2, frequency=(4, 4), gloss=0.35)  # fmt: skip


def concrete(random: Random, slab: float = 0.0) -> Material:
    """Concrete; with a slab size, with joints."""
    value = random.uniform(0.5, 0.72)
    a = hsv(random.uniform(0.05, 0.6), 0.05, value)
    return Material(a=a, b=tuple(0.68 * c for c in a), joint=tuple(0.4 * c for c in a), cell=(slab or 1e3, slab or 1e3),
                    joint_width=0.012 if slab else 0.0, noise=0.14, blend=0.4, frequency=(1.3, 1.3),
                    gloss=0.15 if slab else 0.0)  # fmt: skip


def metal(random: Random, colour: Colour | None = None) -> Material:
    """Painted or bare metal."""
    return Material(a=colour or (0.5, 0.52, 0.55), b=(0.3, 0.31, 0.33) if colour is None else colour, noise=0.05,
                    blend=0.2, frequency=(3, 3), gloss=0.5)  # fmt: skip


def sheet(random: Random, colour: Colour | None = None) -> Material:
    """Corrugated sheet."""
    a = colour or hsv(random.uniform(0.5, 0.65), random.uniform(0.03, 0.3), random.uniform(0.6, 0.85))
    return Material(a=a, b=a, cell=(0.25, 1e3), ripple=0.14, noise=0.05, frequency=(0.8, 0.3))


def cloth(random: Random, colour: Colour | None = None) -> Material:
    """Woven cloth, sometimes striped or checked."""
    a = colour or random.colour((0.25, 0.75), (0.3, 0.8))
    style = random.integer(0, 3)
    if style == 0:
        light = tuple(min(1.0, 0.5 * c + 0.35) for c in a)
        return Material(a=a, b=light, pattern="stripes", cell=(0.07, 1e3), noise=0.08, frequency=(60, 60))
    if style == 1:
        return Material(
            a=a, b=tuple(0.6 * c for c in a), pattern="checks", cell=(0.06, 0.06), noise=0.08, frequency=(60, 60)
        )
    return Material(a=a, b=tuple(0.75 * c for c in a), noise=0.1, blend=0.4, frequency=(40, 40))


def rug(random: Random) -> Material:
    """The field of a rug."""
    a, b = random.colour((0.4, 0.8), (0.3, 0.65)), random.colour((0.1, 0.5), (0.6, 0.9))
    size = random.uniform(0.12, 0.3)
    pattern = random.choice(["checks", "stripes", "mix"])
    return Material(
        a=a, b=b, joint=tuple(0.5 * c for c in a), cell=(size, size), pattern=pattern,
        shift=0.5 * (pattern == "mix"), joint_width=0.02, noise=0.12, frequency=(40, 40),
    )  # fmt: skip


def leaves(random: Random) -> Material:
    """Foliage."""
    hue = random.uniform(0.22, 0.36)
    return Material(a=hsv(hue, 0.65, 0.6), b=hsv(hue + 0.04, 0.75, 0.28), noise=0.3, blend=1.0, frequency=(16, 16))


def grass(random: Random) -> Material:
    """A lawn."""
    hue = random.uniform(0.22, 0.3)
    return Material(a=hsv(hue, 0.6, 0.62), b=hsv(hue + 0.02, 0.65, 0.38), noise=0.2, blend=0.8, frequency=(2.5, 2.5))


def asphalt(random: Random) -> Material:
    """Asphalt, coarse and patchy."""
    value = random.uniform(0.32, 0.5)
    a = hsv(random.uniform(0.55, 0.7), random.uniform(0.0, 0.08), value)
    return Material(a=a, b=tuple(0.6 * c for c in a), noise=0.2, blend=0.35, frequency=(6, 6))


def gravel(random: Random) -> Material:
    """Gravel: small stones of several greys and browns."""
    hue, value = random.uniform(0.06, 0.12), random.uniform(0.55, 0.72)
    a = hsv(hue, random.uniform(0.08, 0.25), value)
    return Material(a=a, b=tuple(0.5 * c for c in a), cell=(0.03, 0.024), shift=-1.0, variance=0.3, noise=0.16,
                    blend=0.5, frequency=(5, 5))  # fmt: skip


def paving(random: Random) -> Material:
    """Paving stones: square slabs, or small ones in running bond."""
    value, hue = random.uniform(0.5, 0.7), random.uniform(0.02, 0.12)
    a = hsv(hue, random.uniform(0.03, 0.3), value)
    cell, shift = random.choice([((0.5, 0.5), 0.0), ((0.2, 0.1), 0.5), ((0.6, 0.4), 0.5), ((0.16, 0.16), 0.5)])
    return Material(a=a, b=tuple(0.72 * c for c in a), joint=tuple(0.35 * c for c in a), cell=cell, shift=shift,
                    joint_width=0.012, variance=0.13, noise=0.12, blend=0.2, frequency=(3, 3))  # fmt: skip


def glass(random: Random) -> Material:
    """Window glass seen from outside: dark, with blurred brighter areas that look like reflections."""
    return Material(a=hsv(0.58, 0.35, random.uniform(0.14, 0.24)), b=hsv(0.57, 0.25, random.uniform(0.4, 0.6)),
                    noise=0.0, blend=0.9, frequency=(0.9, 0.5), gloss=0.4)  # fmt: skip


def car_paint(random: Random) -> Material:
    """Car paint: mostly white, grey or black, else a colour."""
    grey = hsv(random.uniform(0.55, 0.65), 0.06, random.choice([0.9, 0.72, 0.5, 0.3, 0.16]))
    # Common car colours.
    hue, saturation, value = random.choice(
        [(0.99, 0.85, 0.6), (0.6, 0.75, 0.5), (0.58, 0.5, 0.65), (0.38, 0.5, 0.35), (0.1, 0.35, 0.7), (0.05, 0.8, 0.7)]
    )
    tint = hsv(hue + random.normal(0.012), saturation * random.uniform(0.8, 1.1), value * random.uniform(0.75, 1.15))
    colour = grey if random.chance(0.6) else tint
    return Material(a=colour, b=tuple(0.9 * c for c in colour), noise=0.02, blend=0.2, frequency=(1, 1), gloss=0.5)


def cardboard(random: Random) -> Material:
    """A cardboard box."""
    value = random.uniform(0.55, 0.78)
    a = hsv(0.08, random.uniform(0.35, 0.5), value)
    return Material(
        a=a, b=tuple(0.9 * c for c in a), noise=0.06, blend=0.3, frequency=(3, 40), joint=(0.55, 0.43, 0.28)
    )


def lamp(colour: Colour, strength: float = 1.0) -> Material:
    """An emissive material."""
    return Material(a=colour, b=colour, noise=0.0, emission=3.0 * strength)


def image(index: int, emission: float = 0.0) -> Material:
    """An image stretched over the face."""
    return Material(a=(0.9, 0.9, 0.9), b=(0.9, 0.9, 0.9), noise=0.03, frequency=(6, 6), image=index, emission=emission)
