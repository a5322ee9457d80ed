"""Where things lie in a drawn land-cover scene: parcels, water, woods, roads, buildings (see ``landcover``).

Everything is drawn on a canvas of ``OVERSAMPLE`` times the scene's resolution; lengths here are in canvas pixels.

Legend: n side of the canvas, P parcels.
"""
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

BACKGROUND, BUILDING, ROAD, WATER, FIELD, FOREST = range(6)
_TAKEN = np.isin(np.arange(6), (BUILDING, ROAD, WATER))  # no building here
OVERSAMPLE = 2  # canvas pixels per image pixel, in both directions

Site = tuple[float, float, float, float, float]  # x, y, angle in radians, length along it, depth


@dataclass
class Layout:
    """What lies where, on the canvas (n, n); lengths are in canvas pixels."""
    classes: NDArray[np.uint8]  # (n, n) class index
    parcel: NDArray[np.int32]  # (n, n) parcel number, 0..P-1
    angle: NDArray[np.float64]  # (P,) direction of the parcel's longest side, radians
    roof: NDArray[np.int32]  # (n, n) building number + 1, 0 where there is none
    slope: NDArray[np.int8]  # (n, n) which side of its ridge a roof pixel is on, -1 or 1
    marks: NDArray[np.bool_]  # (n, n) lane marks


@dataclass
class Road:
    points: NDArray[np.float64]  # (k, 2) x, y
    width: float


def lay_out(rng: Generator, n: int) -> Layout:
    """Lay out a scene on a canvas of side n."""
    polygons, borders = _parcels(rng, n)
    parcel = _draw(n, [(polygon, index) for index, polygon in enumerate(polygons)], 'I').astype(np.int32)
    # a scene's character: how much of it is farmed, wooded, built upon
    farmed, open_land, wooded, built = rng.dirichlet([1.6, 0.9, 0.8, 1.1])
    uses = rng.choice([FIELD, BACKGROUND, FOREST, BUILDING], len(polygons), p=[farmed, open_land, wooded, built])
    land = np.where(uses == BUILDING, BACKGROUND, uses).astype(np.uint8)
    classes = land[parcel]
    woods = noise(rng, n, 40) + 0.5 * noise(rng, n, 9) + 0.2 * noise(rng, n, 5)
    classes[(woods > 2.2 - 1.6 * wooded) & (classes != FIELD)] = FOREST
    classes[(woods > 2.4) & (classes == FIELD)] = FOREST
    classes[_draw(n, [(outline, 1) for outline in _rivers(rng, n)]) > 0] = WATER
    roads = [_road(rng, border) for border in borders]
    classes[_draw_roads(n, roads) > 0] = ROAD  # over the river, but not over a lake
    classes[_draw(n, [(outline, 1) for outline in _lakes(rng, n)]) > 0] = WATER
    roof, slope = _buildings(rng, classes, _building_sites(rng, roads, polygons, uses, 0.25 + 0.75 * built))
    return Layout(classes, parcel, np.array([_longest_side(polygon) for polygon in polygons]), roof, slope,
                   _draw_marks(n, roads) & (classes == ROAD))


def _parcels(rng: Generator, n: int) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Cut the land into convex parcels along roughly perpendicular lines.

    Returns:
        The parcels' outlines and the cuts that become roads, each (k, 2).
    """
    turn, centre = rng.uniform(0, np.pi), n * rng.uniform(0.35, 0.65, 2)
    corners = turn + np.pi / 4 + np.arange(4) * np.pi / 2
    queue = [(centre + 1.25 * n * np.stack([np.cos(corners), np.sin(corners)], axis=1), 0)]
    done, borders = [], []
    target = rng.uniform(44, 84)**2
    first_level = max(0, round(2 * np.log2(n / 192)))  # larger scenes: roads go one level of cuts deeper
    while queue:
        polygon, level = queue.pop()
        visible = polygon.clip(0, n)
        extent = visible.max(axis=0) - visible.min(axis=0)
        if extent.min() < 2 or _area(polygon) < target * rng.uniform(0.7, 1.6):
            done.append(polygon)
            continue
        along = _longest_side(polygon) + rng.normal(0, 0.1)
        point = visible.mean(axis=0) + rng.normal(0, 0.1) * extent
        first, second, cut = _cut(polygon, point, np.array([np.cos(along), np.sin(along)]))
        if len(first) < 3 or len(second) < 3:
            done.append(polygon)
            continue
        if rng.random() < (0.85 if level <= first_level else 0.45 if level <= first_level + 2 else 0.08):
            borders.append(cut)
        queue += [(first, level + 1), (second, level + 1)]
    return done, borders


def _cut(polygon: NDArray, point: NDArray, normal: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Both parts of a convex polygon (k, 2) on either side of a line, and the line's piece inside it (2, 2)."""
    side = (polygon - point) @ normal
    parts: tuple[list, list] = ([], [])
    ends = []
    for here, there, s, t in zip(polygon, _rotated(polygon), side.tolist(), _rotated(side).tolist()):
        parts[int(s < 0)].append(here)
        if (s < 0) != (t < 0):
            ends.append(here + (there - here) * s / (s - t))
            parts[0].append(ends[-1])
            parts[1].append(ends[-1])
    return np.array(parts[0]), np.array(parts[1]), np.array(ends)


def _area(polygon: NDArray) -> float:
    (x, y), (next_x, next_y) = polygon.T, _rotated(polygon).T
    return abs(x @ next_y - y @ next_x) / 2


def _rotated(items: NDArray) -> NDArray:
    """The same ring, starting one later; a lot quicker on few items than ``np.roll``."""
    return np.concatenate([items[1:], items[:1]])


def _longest_side(polygon: NDArray) -> float:
    """Direction of the longest side, radians."""
    sides = _rotated(polygon) - polygon
    x, y = sides[np.argmax((sides**2).sum(axis=1))]
    return float(np.arctan2(y, x))


def _rivers(rng: Generator, n: int) -> list[NDArray[np.float64]]:
    """The outline (k, 2) of a river across the scene, in some scenes."""
    if rng.random() > 0.38:
        return []
    t = np.linspace(-0.2, 1.2, 48)
    turn = rng.uniform(0, 2 * np.pi)
    along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    bend = sum(rng.normal(0, 16 / k) * np.sin(k * np.pi * t * n / 192 + rng.uniform(0, 7)) for k in (1, 2, 3))
    half = (rng.uniform(6, 20) * (1 + 0.25 * np.sin(5 * t + rng.uniform(0, 7))))[:, None]
    middle = n * (0.5 + rng.uniform(-0.3, 0.3, 2)) + 1.5 * n * (t - 0.5)[:, None] * along + bend[:, None] * across
    return [np.concatenate([middle + half * across, (middle - half * across)[::-1]])]


def _lakes(rng: Generator, n: int) -> list[NDArray[np.float64]]:
    """Outlines (k, 2) of lakes and ponds, in proportion to the scene's area."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    outlines = []
    for _ in range(rng.poisson(0.5 * (n / 192)**2)):
        lobes = sum(rng.normal(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 7)) for k in (1, 2, 3, 5))
        outlines.append(rng.uniform(0, n, 2) + rng.uniform(10, 38) * (1 + lobes)[:, None] * circle)
    return outlines


def _road(rng: Generator, border: NDArray) -> Road:
    """A gently bent road along a border between parcels (2, 2)."""
    start, step = border[0], border[1] - border[0]
    length = max(float(np.hypot(*step)), 1e-6)
    t = np.linspace(0, 1, max(2, int(length / 8)))[:, None]
    across = np.array([-step[1], step[0]]) / length
    bend = rng.normal(0, 3) * np.sin(np.pi * t) + rng.normal(0, 2) * np.sin(2 * np.pi * t)
    return Road(start + t * step + bend * across, width=float(rng.choice([5, 7, 9, 12])))


def _building_sites(rng: Generator, roads: list[Road], polygons: list[NDArray], uses: NDArray,
                    density: float) -> list[Site]:
    """Where buildings would stand: rows along both sides of the roads, and rows filling the built parcels.

    Returns:
        (x, y, angle, length, depth) each; a site may collide with water, a road or another.
    """
    rows = []  # start, end, distance of the row's axis from the line
    for road in roads:
        if rng.random() < density:
            sides = [side * (road.width / 2 + rng.uniform(9, 14)) for side in (-1, 1)]
            rows += [(a, b, side) for a, b in zip(road.points[:-3:3], road.points[3::3]) for side in sides]
    for polygon in (polygon for polygon, use in zip(polygons, uses) if use == BUILDING):
        turn, centre, gap = _longest_side(polygon), polygon.mean(axis=0), rng.uniform(24, 34)
        along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
        u, v = (polygon - centre) @ along, (polygon - centre) @ across
        rows += [(centre + u.min() * along + w * across, centre + u.max() * along + w * across, 0.0)
                 for w in np.arange(v.min() + gap / 2, v.max() - gap / 3, gap)]
    return [site for row in rows for site in _sites_in_row(rng, *row)]


def _sites_in_row(rng: Generator, start: NDArray, end: NDArray,
                  offset: float) -> list[Site]:
    step = end - start
    total = max(float(np.hypot(*step)), 1e-6)
    along = step / total
    turn, across = float(np.arctan2(step[1], step[0])), np.array([-along[1], along[0]])
    sites, at = [], rng.uniform(0, 4)
    while at < total:
        length, depth = rng.uniform(12, 26), rng.uniform(10, 18)
        x, y = start + (at + length / 2) * along + (offset + rng.normal(0, 1)) * across
        sites.append((x, y, turn + rng.normal(0, 0.04), length, depth))
        at += length + rng.uniform(4, 12)
    return sites


def _buildings(rng: Generator, classes: NDArray,
               sites: list[Site]) -> tuple[NDArray, NDArray]:
    """Put up a building on each site that is free; marks them in ``classes``, which is the caller's own."""
    n = len(classes)
    roof, slope = np.zeros((n, n), np.int32), np.zeros((n, n), np.int8)
    for number, (x, y, turn, length, depth) in enumerate(sites, start=1):
        reach = int(np.hypot(length, depth) / 2) + 3
        if not (-reach < x < n + reach and -reach < y < n + reach):
            continue
        rows = slice(max(0, int(y) - reach), max(0, int(y) + reach))
        cols = slice(max(0, int(x) - reach), max(0, int(x) + reach))
        dy, dx = np.mgrid[rows, cols][:, :n - rows.start, :n - cols.start] + 0.5 - np.array([y, x])[:, None, None]
        u, v = np.abs(dx * np.cos(turn) + dy * np.sin(turn)), dy * np.cos(turn) - dx * np.sin(turn)
        near = (u < length / 2 + 2) & (np.abs(v) < depth / 2 + 2)
        if _TAKEN[classes[rows, cols][near]].any():
            continue
        inside = (u < length / 2) & (np.abs(v) < depth / 2)
        classes[rows, cols][inside] = BUILDING
        roof[rows, cols][inside] = number
        slope[rows, cols][inside] = np.where(v < 0, -1, 1)[inside]
    return roof, slope


def _draw(n: int, shapes: list[tuple[NDArray, int]], mode: str = 'L') -> NDArray:
    canvas = Image.new(mode, (n, n))
    pen = ImageDraw.Draw(canvas)
    for polygon, value in shapes:
        pen.polygon([tuple(point) for point in polygon.tolist()], fill=value)
    return np.array(canvas)


def _draw_roads(n: int, roads: list[Road]) -> NDArray[np.uint8]:
    canvas = Image.new('L', (n, n))
    pen = ImageDraw.Draw(canvas)
    for road in roads:
        pen.line([tuple(point) for point in road.points.tolist()], fill=1, width=int(road.width), joint='curve')
    return np.array(canvas)


def _draw_marks(n: int, roads: list[Road]) -> NDArray[np.bool_]:
    """A dashed middle line on the wider roads."""
    canvas = Image.new('L', (n, n))
    pen = ImageDraw.Draw(canvas)
    for road in (road for road in roads if road.width >= 9):
        for start, end in zip(road.points[:-1:2].tolist(), road.points[1::2].tolist()):
            pen.line([tuple(start), tuple(end)], fill=1, width=2)
    return np.array(canvas) > 0


def noise(rng: Generator, n: int, cell: float) -> NDArray[np.float32]:
    """Smooth noise (n, n), about standard normal, whose blobs are about ``cell`` pixels wide."""
    coarse = int(np.ceil(n / cell)) + 3
    grid = Image.fromarray(rng.standard_normal((coarse, coarse), dtype=np.float32))
    left, top = rng.uniform(0.5, 1.5, 2)
    field = grid.resize((n, n), Image.Resampling.BICUBIC, box=(left, top, left + n / cell, top + n / cell))
    return np.asarray(field) * np.float32(1.25)  # interpolation takes about a fifth off the spread
