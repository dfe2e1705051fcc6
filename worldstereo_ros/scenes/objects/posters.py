"""Image textures drawn with numpy: posters, signs, numbers, labels, screens, book spines, clocks, facades."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.scenes.raytracing.primitives import Colour, Random, hsv

IMAGE_SIZE_PX = 128
"""Images are square and stretched over the face that shows them."""

# Five columns by seven rows, one number per row, most significant bit on the left.
_FONT = {
    "A": (14, 17, 17, 31, 17, 17, 17), "B": (30, 17, 17, 30, 17, 17, 30), "C": (14, 17, 16, 16, 16, 17, 14),
    "D": (30, 17, 17, 17, 17, 17, 30), "E": (31, 16, 16, 30, 16, 16, 31), "F": (31, 16, 16, 30, 16, 16, 16),
    "G": (14, 17, 16, 23, 17, 17, 15), "H": (17, 17, 17, 31, 17, 17, 17), "I": (14, 4, 4, 4, 4, 4, 14),
    "J": (7, 2, 2, 2, 2, 18, 12), "K": (17, 18, 20, 24, 20, 18, 17), "L": (16, 16, 16, 16, 16, 16, 31),
    "M": (17, 27, 21, 21, 17, 17, 17), "N": (17, 25, 21, 19, 17, 17, 17), "O": (14, 17, 17, 17, 17, 17, 14),
    "P": (30, 17, 17, 30, 16, 16, 16), "Q": (14, 17, 17, 17, 21, 18, 13), "R": (30, 17, 17, 30, 20, 18, 17),
    "S": (15, 16, 16, 14, 1, 1, 30), "T": (31, 4, 4, 4, 4, 4, 4), "U": (17, 17, 17, 17, 17, 17, 14),
    "V": (17, 17, 17, 17, 17, 10, 4), "W": (17, 17, 17, 21, 21, 27, 17), "X": (17, 17, 10, 4, 10, 17, 17),
    "Y": (17, 17, 10, 4, 4, 4, 4), "Z": (31, 1, 2, 4, 8, 16, 31), "0": (14, 17, 19, 21, 25, 17, 14),
    "1": (4, 12, 4, 4, 4, 4, 14), "2": (14, 17, 1, 6, 8, 16, 31), "3": (30, 1, 1, 14, 1, 1, 30),
    "4": (2, 6, 10, 18, 31, 2, 2), "5": (31, 16, 30, 1, 1, 17, 14), "6": (14, 16, 30, 17, 17, 17, 14),
    "7": (31, 1, 2, 4, 8, 8, 8), "8": (14, 17, 17, 14, 17, 17, 14), "9": (14, 17, 17, 15, 1, 1, 14),
    "-": (0, 0, 0, 14, 0, 0, 0), " ": (0, 0, 0, 0, 0, 0, 0), "!": (4, 4, 4, 4, 4, 0, 4),
}  # fmt: skip

WORDS = (
    "ROS 2", "EXIT", "HELLO", "LAB", "ROBOT", "MAP", "GO", "NORTH", "ZONE", "ORBIT", "LOVE", "JAZZ", "MOON", "PARIS",
    "TOKYO", "CAFE", "OPEN", "NOVA", "DEPTH", "WORLD", "SLAM", "QUIET", "FRAGILE", "WAVE", "LUNA", "FIELD",
)  # fmt: skip


def blank(colour: Colour) -> np.ndarray:
    """(IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3) float32 of one colour, linear RGB."""
    return np.broadcast_to(np.asarray(colour, dtype=np.float32), (IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3)).copy()


def texel_grid() -> tuple[np.ndarray, np.ndarray]:
    """X and y of the texels, each (IMAGE_SIZE_PX, IMAGE_SIZE_PX), in 0..1 from the left and from the top."""
    line = (np.arange(IMAGE_SIZE_PX, dtype=np.float32) + 0.5) / IMAGE_SIZE_PX
    return np.broadcast_to(line[None], (IMAGE_SIZE_PX, IMAGE_SIZE_PX)), np.broadcast_to(
        line[:, None], (IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    )


def blend(image: np.ndarray, mask: np.ndarray, colour: Colour) -> None:
    """Blend a colour into the image, in place; the mask (bool or 0..1) is the weight."""
    weight = mask.astype(np.float32)[..., None]
    image += weight * (np.asarray(colour, dtype=np.float32) - image)


def draw_text(image: np.ndarray, text: str, colour: Colour, box: tuple[float, float, float, float],
          aspect: float = 1.0) -> None:  # fmt: skip
    """Draw a line of text into a box (x0, y0, x1, y1 in 0..1), as large as fits.

    `aspect` is the width of the face over its height: letters keep their shape on the stretched image.
    """
    text = "".join(letter for letter in text.upper() if letter in _FONT)
    if not text:
        return
    bits = np.zeros((7, 6 * len(text) - 1), dtype=bool)
    for i, letter in enumerate(text):
        for j, line in enumerate(_FONT[letter]):
            for k in range(5):
                bits[j, 6 * i + k] = (line >> (4 - k)) & 1
    x0, y0, x1, y1 = box
    dot = min((x1 - x0) / bits.shape[1], (y1 - y0) / 7 / aspect)
    width, height = dot * bits.shape[1], dot * 7 * aspect
    left, top = (x0 + x1 - width) / 2, (y0 + y1 - height) / 2
    x, y = texel_grid()
    column = np.floor((x - left) / width * bits.shape[1]).astype(int)
    row = np.floor((y - top) / height * 7).astype(int)
    inside = (column >= 0) & (column < bits.shape[1]) & (row >= 0) & (row < 7)
    ink = np.zeros((IMAGE_SIZE_PX, IMAGE_SIZE_PX), dtype=bool)
    ink[inside] = bits[row[inside], column[inside]]
    blend(image, ink, colour)


def sign(text: str, background: Colour, ink: Colour, aspect: float,
         border: bool = True) -> np.ndarray:  # fmt: skip
    """A sign with one line of text; `aspect` is the width of its face over its height."""
    image = blank(background)
    if border:
        x, y = texel_grid()
        edge = np.minimum(np.minimum(x, 1 - x) * aspect, np.minimum(y, 1 - y))
        blend(image, (edge > 0.05) & (edge < 0.08), ink)
    draw_text(image, text, ink, (0.1, 0.14, 0.9, 0.86), aspect)
    return image


def poster(random: Random, aspect: float) -> np.ndarray:
    """A poster: shapes on a coloured background, and a word."""
    hue = random.uniform()
    background = hsv(hue, random.uniform(0.05, 0.75), random.uniform(0.35, 0.95))
    image = blank(background)
    x, y = texel_grid()
    style = random.integer(0, 4)
    if style == 0:
        # Concentric rings.
        cx, cy = random.uniform(0.3, 0.7), random.uniform(0.3, 0.55)
        radius = np.hypot((x - cx) * aspect, y - cy)
        for i in range(random.integer(2, 5), 0, -1):
            blend(image, radius < 0.07 * i * aspect**0.5, hsv(hue + 0.09 * i, 0.75, 0.9 if i % 2 else 0.4))
    elif style == 1:
        angle = random.uniform(0, 3.14)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * random.uniform(15, 45))
        blend(image, (wave > 0) & (y < 0.7), hsv(hue + 0.45, 0.7, 0.75))
    elif style == 2:
        for _ in range(random.integer(5, 11)):
            cx, cy, size = random.uniform(), random.uniform(0, 0.75), random.uniform(0.05, 0.2)
            colour = hsv(hue + random.uniform(0, 0.6), 0.75, random.uniform(0.5, 1.0))
            shape = random.integer(0, 2)
            if shape == 0:
                blend(image, np.hypot((x - cx) * aspect, y - cy) < size, colour)
            elif shape == 1:
                blend(image, (np.abs(x - cx) * aspect < size) & (np.abs(y - cy) < size * 0.7), colour)
            else:
                blend(
                    image,
                    (y > cy - size) & (y < cy + size) & (np.abs(x - cx) * aspect < (y - cy + size) / 2),
                    colour,
                )
    elif style == 3:
        # Layers of hills.
        blend(image, np.ones_like(x), hsv(0.55 + random.uniform(-0.1, 0.1), 0.35, 0.95))
        blend(image, np.hypot((x - random.uniform(0.2, 0.8)) * aspect, y - 0.25) < 0.1, (1.0, 0.85, 0.5))
        for i in range(4):
            ridge = np.full_like(x, 0.35 + 0.14 * i)
            for octave in (2, 5, 11):
                ridge = ridge + 0.11 / octave * np.sin(octave * x * 3 + random.uniform(0, 6.28))
            blend(image, y > ridge, hsv(hue + 0.06 * i, 0.3 + 0.12 * i, 0.75 - 0.15 * i))
    else:
        rows, columns = random.integer(3, 6), random.integer(3, 6)
        for i in range(rows):
            for j in range(columns):
                inside = (np.floor(x * columns) == j) & (np.floor(y * rows) == i)
                blend(
                    image,
                    inside,
                    hsv(hue + random.uniform(-0.2, 0.3), random.uniform(0.2, 0.8), random.uniform(0.3, 1.0)),
                )
    if style != 3 or random.chance(0.5):
        ink = (0.95, 0.94, 0.9) if sum(background) < 1.2 else (0.04, 0.04, 0.06)
        if style in (2, 4):
            blend(image, (y > 0.74) & (y < 0.96), background)
        draw_text(image, random.choice(WORDS), ink, (0.08, 0.76, 0.92, 0.94), aspect)
    edge = np.minimum(np.minimum(x, 1 - x) * aspect, np.minimum(y, 1 - y))
    blend(image, edge < 0.02, (0.9, 0.9, 0.88))
    return image


def screen(random: Random, aspect: float) -> np.ndarray:
    """The image of a monitor: windows with lines of text."""
    image = blank(hsv(random.uniform(0.5, 0.75), 0.5, 0.16))
    x, y = texel_grid()
    for _ in range(random.integer(2, 3)):
        x0, y0 = random.uniform(0.03, 0.5), random.uniform(0.05, 0.45)
        x1, y1 = x0 + random.uniform(0.3, 0.47), y0 + random.uniform(0.3, 0.5)
        inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
        blend(image, inside, (0.02, 0.025, 0.03) if random.chance(0.5) else (0.8, 0.8, 0.8))
        blend(image, inside & (y < y0 + 0.045), hsv(random.uniform(), 0.5, 0.6))
        for line in np.arange(y0 + 0.08, y1 - 0.04, 0.045):
            start, end = x0 + 0.03 + 0.05 * random.integer(0, 2), random.uniform(x0 + 0.15, x1 - 0.03)
            blend(image, (np.abs(y - line) < 0.012) & (x > start) & (x < end), hsv(random.uniform(), 0.6, 0.7))
    return image


def label(random: Random) -> np.ndarray:
    """The printed side of a cardboard box."""
    image = blank((0.42, 0.27, 0.15))
    x, y = texel_grid()
    image *= (1 + 0.05 * np.sin(x * 190))[..., None]
    blend(image, np.abs(y - 0.5) < 0.045, (0.55, 0.42, 0.26))
    x0, y0 = random.uniform(0.08, 0.45), random.uniform(0.58, 0.66)
    inside = (x > x0) & (x < x0 + 0.42) & (y > y0) & (y < y0 + 0.28)
    blend(image, inside, (0.86, 0.86, 0.82))
    bars = np.sin(x * 300 + 8 * np.sin(x * 91)) > 0.1
    blend(
        image, inside & bars & (y > y0 + 0.14) & (y < y0 + 0.24) & (x > x0 + 0.03) & (x < x0 + 0.39), (0.03, 0.03, 0.03)
    )
    draw_text(image, random.choice(WORDS), (0.05, 0.05, 0.05), (x0 + 0.03, y0 + 0.02, x0 + 0.39, y0 + 0.12))
    if random.chance(0.6):
        draw_text(
            image, random.choice(WORDS), random.choice([(0.06, 0.05, 0.04), (0.5, 0.05, 0.03)]), (0.1, 0.12, 0.9, 0.36)
        )
    return image.clip(0, 1)


def books(random: Random, aspect: float) -> np.ndarray:
    """A row of upright book spines of different heights; gaps are dark."""
    image = blank((0.03, 0.025, 0.02))
    x, y = texel_grid()
    left = 0.0
    hue = random.uniform()
    while left < 1.0:
        width = random.uniform(0.05, 0.1) / max(aspect, 0.4) ** 0.5
        if random.chance(0.08):
            left += width
            continue
        top = random.uniform(0.03, 0.3)
        colour = hsv(hue + random.normal(0.2), random.uniform(0.15, 0.8), random.uniform(0.25, 0.9))
        inside = (x > left + 0.003) & (x < left + width - 0.003) & (y > top)
        across = np.clip((x - left) / width, 0, 1)
        blend(image, inside, colour)
        image *= np.where(inside, 0.75 + 0.5 * np.sqrt(across * (1 - across)), 1.0)[..., None]
        ink = hsv(random.uniform(), 0.3, 0.95 if sum(colour) < 1 else 0.15)
        middle = top + random.uniform(0.12, 0.25)
        blend(image, inside & (np.abs(y - middle) < 0.05) & (np.abs(across - 0.5) < 0.28), ink)
        blend(image, inside & (np.abs(y - 0.88) < 0.02), ink)
        left += width
    return image


def clock(random: Random) -> np.ndarray:
    """The face of a clock."""
    image = blank((0.92, 0.92, 0.9))
    x, y = texel_grid()
    px, py = x - 0.5, y - 0.5
    for hour in range(12):
        angle = hour * np.pi / 6
        along = px * np.sin(angle) - py * np.cos(angle)
        across = px * np.cos(angle) + py * np.sin(angle)
        blend(image, (along > 0.36) & (along < 0.43) & (np.abs(across) < 0.014), (0.05, 0.05, 0.05))
    for angle, length, width in ((random.uniform(0, 6.28), 0.24, 0.018), (random.uniform(0, 6.28), 0.36, 0.012)):
        along = px * np.sin(angle) - py * np.cos(angle)
        across = px * np.cos(angle) + py * np.sin(angle)
        blend(image, (along > -0.04) & (along < length) & (np.abs(across) < width), (0.04, 0.04, 0.05))
    blend(image, np.hypot(px, py) > 0.46, (0.08, 0.08, 0.1))
    return image


def facade(random: Random, wall: Colour, columns: int, rows: int) -> np.ndarray:
    """The facade of a distant house: rows of framed windows."""
    image = blank(wall)
    x, y = texel_grid()
    image *= (1 + 0.04 * np.sin(y * 180))[..., None]
    for i in range(columns):
        for j in range(rows):
            px, py = np.abs(x * columns - i - 0.5), np.abs(y * rows - j - 0.5)
            blend(image, (px < 0.28) & (py < 0.31), (0.75, 0.75, 0.73))
            glass = hsv(0.58, 0.4, random.uniform(0.2, 0.55))
            blend(image, (px < 0.24) & (py < 0.27) & ((px > 0.02) | (py > 0.3)), glass)
    return image.clip(0, 1)
