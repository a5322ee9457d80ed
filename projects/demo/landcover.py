"""A procedurally drawn land-cover set: aerial scenes from above, for trying the whole loop without any download.

A scene is laid out first (parcels, water, woods, roads, buildings; the class map) and rendered second, from two
independent random streams: :func:`draw_mask` gives exactly the mask of :func:`draw_scene` without paying for pixels.
Every class has a range of colours of its own, so that a generator can learn in minutes to follow a mask; where light,
shadow and tint blur these ranges, a segmentor has to read texture and context. About one metre per pixel.
A second domain shows the same kinds of land with another :class:`Look`: a dry season, seen by another camera.

Legend: S side of the scene in pixels, n = 2 S side of the drawing canvas (averaged 2 x 2 at the end), P parcels.
"""
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from projects.demo.landcover_layout import BACKGROUND, BUILDING, FIELD, FOREST, OVERSAMPLE, Layout, lay_out, noise

CLASSES = ('background', 'building', 'road', 'water', 'field', 'forest')
PALETTE = ((190, 160, 120), (220, 60, 50), (250, 230, 120), (50, 110, 220), (150, 220, 90), (20, 100, 40))

_MIN_SIZE = 16
_CROPS = np.array([[122, 150, 74], [142, 164, 82], [104, 138, 64], [164, 172, 92], [132, 146, 78]])
_GROUND = np.array([[168, 148, 116], [184, 166, 136], [156, 134, 102], [176, 150, 120]])
_ROOFS = np.array([[176, 82, 62], [160, 92, 74], [190, 108, 84], [148, 70, 60], [206, 198, 192]])
_ASPHALT = np.array([[112, 112, 116], [126, 126, 128], [142, 140, 140]])
_WATERS = np.array([[40, 66, 94], [48, 76, 102], [58, 84, 96]])


@dataclass(frozen=True)
class Look:
    """How a domain looks beside the one of the colours above; layouts are of the same kind in both.

    Attributes:
        dry: Added to the share of straw in plants and grass, in [0, 1].
        gain: The camera's response in red, green and blue, as factors.
        haze: Added to the share of haze, in [0, 1].
    """

    dry: float = 0.0
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    haze: float = 0.0


SOURCE = Look()
TARGET = Look(dry=0.6, gain=(1.15, 0.95, 0.65), haze=0.12)


def draw_scene(seed: int, size: int, look: Look = SOURCE) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one aerial scene.

    Args:
        seed: Names the scene, >= 0; the same seed and size give the same bytes.
        size: Side S in pixels, >= 16. Things keep their size in pixels: a larger scene holds more of them.
        look: The domain's.

    Returns:
        image (S, S, 3), uint8, [0, 255], RGB; mask (S, S), uint8, indices into ``CLASSES``, nothing ignored.

    Raises:
        ValueError: ``seed`` or ``size`` out of range.
    """
    layout = _checked_layout(seed, size)
    return _render(np.random.default_rng([seed, 1]), layout, look), _to_mask(layout)


def draw_mask(seed: int, size: int) -> NDArray[np.uint8]:
    """The mask of ``draw_scene(seed, size)`` (S, S), uint8, without rendering the image.

    Raises:
        ValueError: ``seed`` or ``size`` out of range.
    """
    return _to_mask(_checked_layout(seed, size))


def _checked_layout(seed: int, size: int) -> Layout:
    if seed < 0:
        raise ValueError(f'`seed` must be >= 0, got {seed}')
    if size < _MIN_SIZE:
        raise ValueError(f'`size` must be at least {_MIN_SIZE} pixels, got {size}; draw larger and crop')
    return lay_out(np.random.default_rng([seed, 0]), size * OVERSAMPLE)


def _to_mask(layout: Layout) -> NDArray[np.uint8]:
    return np.ascontiguousarray(layout.classes[::OVERSAMPLE, ::OVERSAMPLE])


def _render(rng: Generator, layout: Layout, look: Look) -> NDArray[np.uint8]:
    """The scene as a camera sees it: surfaces, season, shadows, then optics, light and sensor."""
    n = len(layout.classes)
    texture = np.stack([noise(rng, n, cell) for cell in (1.6, 5, 16, 60)])  # fine to coarse, shared by all surfaces
    sun = rng.uniform(0, 2 * np.pi)
    dry = max(0.0, rng.normal(0.05, 0.1)) + look.dry
    image = np.zeros((n, n, 3), np.float32)
    for index, colour in enumerate((_ground, _roofs, _roads, _water, _fields, _canopy)):
        here = layout.classes == index
        colours = colour(rng, layout, texture[:, here], here, sun)
        image[here] = _dried(colours, dry) if index in (BACKGROUND, FIELD, FOREST) else colours
    image[_shadows(rng, layout.classes, sun)] *= rng.uniform(0.45, 0.7)
    return _photograph(rng, image, look)


# Each surface below takes the layout, the textures (4, M) at its M canvas pixels, where these are (n, n; bool) and the
# direction of the sun in radians, and gives their colours (M, 3), RGB, about [0, 255].


def _ground(rng: Generator, layout: Layout, texture: NDArray, here: NDArray, sun: float) -> NDArray[np.float32]:
    """Grass and bare soil, mottled at several scales, without direction."""
    fine, small, medium, large = texture
    colours = _tint(rng, _GROUND[rng.integers(len(_GROUND), size=len(layout.angle))])
    patches = 0.7 / (1 + np.exp(-3 * (medium + 0.5 * small - np.float32(rng.normal(0.6, 0.6)))))[:, None]
    other = _tint(rng, _GROUND[rng.integers(len(_GROUND))])
    return colours[layout.parcel[here]] * (1 - patches) + other * patches + (5 * fine + 6 * small + 5 * large)[:, None]


def _fields(rng: Generator, layout: Layout, texture: NDArray, here: NDArray, sun: float) -> NDArray[np.float32]:
    """One crop per parcel, with plough lines along it and the wider tracks of machines."""
    fine, _, medium, _ = texture
    parcels, parcel = len(layout.angle), layout.parcel[here]
    colours = _tint(rng, _CROPS[rng.integers(len(_CROPS), size=parcels)], 12)
    turn = layout.angle + rng.choice([0, np.pi / 2], parcels, p=[0.8, 0.2]) + rng.normal(0, 0.05, parcels)
    period, strength, tracks = (rng.uniform(*span, parcels)[parcel] for span in ((5, 12), (3, 15), (24, 44)))
    y, x = np.nonzero(here)
    across = y * np.cos(turn)[parcel] - x * np.sin(turn)[parcel] + 0.6 * medium
    lines = strength * np.sin(2 * np.pi * across / period) * (1 + 0.3 * medium)
    wheels = 14 * (np.abs(across % tracks - 8) < 1.5)
    return colours[parcel] + (lines - wheels + 3 * fine + 5 * medium)[:, None]


def _canopy(rng: Generator, layout: Layout, texture: NDArray, here: NDArray, sun: float) -> NDArray[np.float32]:
    """Clumps of crowns, lit from the side of the sun."""
    fine, small, medium, _ = texture
    crowns = noise(rng, len(here), rng.uniform(5, 9))
    dy, dx = np.gradient(crowns)
    lit = -(dx[here] * np.cos(sun) + dy[here] * np.sin(sun))
    shade = 36 * lit + 9 * crowns[here] + 4 * small + 4 * fine + 5 * medium
    return _tint(rng, np.array([50, 76, 44]), 7) + shade[:, None] * np.array([0.85, 1.0, 0.7], np.float32)


def _water(rng: Generator, layout: Layout, texture: NDArray, here: NDArray, sun: float) -> NDArray[np.float32]:
    """Dark and smooth, now and then with waves and the sun's glint on them."""
    _, small, medium, large = texture
    waves = noise(rng, len(here), rng.uniform(1.5, 3))[here]
    glint = rng.choice([0, 0, 26]) * np.maximum(waves + 0.5 * medium - 1.2, 0)
    shade = 3 * medium + 6 * large + rng.uniform(0, 3) * small + rng.uniform(0.5, 2.5) * waves
    return _tint(rng, _WATERS[rng.integers(len(_WATERS))]) + (shade + glint)[:, None]


def _roads(rng: Generator, layout: Layout, texture: NDArray, here: NDArray, sun: float) -> NDArray[np.float32]:
    """Asphalt, concrete or gravel, with what lane marks the layout has."""
    fine, small, medium, _ = texture
    marks = rng.uniform(30, 70) * layout.marks[here]
    return _tint(rng, _ASPHALT[rng.integers(len(_ASPHALT))]) + (marks + 3 * fine + 2 * small + 4 * medium)[:, None]


def _roofs(rng: Generator, layout: Layout, texture: NDArray, here: NDArray, sun: float) -> NDArray[np.float32]:
    """Gabled and flat roofs; a settlement has its usual colours."""
    roof = layout.roof[here]
    count = int(layout.roof.max()) + 1
    usual = rng.dirichlet(np.full(len(_ROOFS), 0.7))
    colours = _tint(rng, _ROOFS[rng.choice(len(_ROOFS), count, p=usual)], 9)
    gable = (rng.random(count) < 0.7) * rng.uniform(6, 26, count) * (1 if np.sin(sun) < 0 else -1)
    return colours[roof] + (gable[roof] * layout.slope[here] + 3 * texture[0])[:, None]


def _tint(rng: Generator, colour: NDArray, spread: float = 10.0) -> NDArray[np.float32]:
    """Colours (..., 3) a little off: mostly lighter or darker, a little of another hue."""
    lightness = rng.normal(0, spread, (*colour.shape[:-1], 1))
    return (colour + lightness + rng.normal(0, 0.3 * spread, colour.shape)).astype(np.float32)


def _dried(colours: NDArray, dry: float) -> NDArray[np.float32]:
    """Plants (M, 3) on their way to straw."""
    straw = colours.mean(axis=1, keepdims=True) * np.array([1.18, 1.04, 0.76], np.float32)
    return (1 - dry) * colours + dry * straw


def _shadows(rng: Generator, classes: NDArray, sun: float) -> NDArray[np.bool_]:
    """What buildings and woods keep the sun from, on lower ground (n, n)."""
    shadow = np.zeros(classes.shape, bool)
    length = rng.uniform(4, 10)
    for thing, reach in ((BUILDING, length), (FOREST, 0.6 * length)):
        tall = classes == thing
        for step in np.arange(1, reach):
            shadow |= _shifted(tall, round(step * np.sin(sun)), round(step * np.cos(sun)))
    return shadow & (classes != BUILDING) & (classes != FOREST)


def _shifted(here: NDArray[np.bool_], down: int, right: int) -> NDArray[np.bool_]:
    """Moved by whole pixels; nothing comes in from outside."""
    n = len(here)
    moved = np.zeros_like(here)
    moved[max(0, down):n + min(0, down), max(0, right):n + min(0, right)] = \
        here[max(0, -down):n + min(0, -down), max(0, -right):n + min(0, -right)]
    return moved


def _photograph(rng: Generator, image: NDArray, look: Look) -> NDArray[np.uint8]:
    """Blur and sample a canvas (n, n, 3) to the image's pixels; light, colour cast and haze; sensor noise."""
    canvas = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    seen = np.asarray(canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.3))).reduce(OVERSAMPLE), np.float32)
    gain = np.exp(rng.normal(0.05, 0.08) + rng.normal(0, 0.025, 3)) * np.array(look.gain)
    haze = max(0.0, rng.normal(0.02, 0.04)) + look.haze
    clouds = 1 + 0.03 * noise(rng, len(seen), 40)[..., None]
    lit = (1 - haze) * seen * gain * clouds + haze * np.array([196, 204, 214])
    noisy = lit + rng.uniform(0.8, 4.0) * rng.standard_normal(lit.shape, dtype=np.float32)
    return np.rint(noisy).clip(0, 255).astype(np.uint8)
