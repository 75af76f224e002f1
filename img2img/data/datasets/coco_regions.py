"""The pixels of one COCO annotation: polygons or run lengths, checked before pycocotools draws them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from img2img.data.datasets.coco_file import whole_number

EXPECTED = "polygons [[x, y, x, y, ...], ...] in pixels or run lengths {size, counts}"


def draw_region(segmentation: Any, height: int, width: int, *, crowd: bool = False) -> NDArray[np.bool_]:
    """The pixels of a region, (H, W) bool.

    What has an outline gets at least one pixel, with two exceptions that are no mistakes: a polygon that is thinner than a pixel,
    since an object may be so small (COCO's own training file has some), and a crowd whose run lengths say that it is nowhere.
    Pieces of fewer than three points beside others draw nothing: they have no area, and tools leave such clicks behind.

    Raises:
        ValueError: it cannot be drawn; the text says what is wrong with it.
    """
    if isinstance(segmentation, list):
        return _polygons(segmentation, height, width)
    region = _runs(segmentation, height, width)
    if not region.any() and not crowd:
        raise ValueError("its run lengths hold no pixel")
    return region


def _polygons(polygons: list[Any], height: int, width: int) -> NDArray[np.bool_]:
    """pycocotools would read four numbers as a box, and allocate by the coordinates."""
    parts = [_points(polygon) for polygon in polygons]
    drawable = [points for points in parts if len(points) >= 3]
    if not drawable:
        if len(parts) > 2 and all(len(points) == 1 for points in parts):
            raise ValueError("its points are pairs [[x, y], ...], where each list must hold a whole polygon: [[x, y, x, y, ...]]")
        if len(parts) == 1 and len(parts[0]) == 2:
            raise ValueError("it has four numbers, a box or a line, where a polygon has six or more")
        raise ValueError("none of its polygons has three points")
    everything = np.concatenate(drawable)
    size = max(height, width)
    if not np.all((everything >= -size) & (everything <= 2 * size)):  # False for NaN and infinity too
        raise ValueError(f"a polygon reaches far outside the {width} x {height} picture, or its coordinates are no numbers")
    region = mask.decode(mask.merge(mask.frPyObjects([points.ravel().tolist() for points in drawable], height, width)))
    if not region.any():
        low, high = everything.min(axis=0), everything.max(axis=0)
        if np.any(high <= 0) or np.any(low >= (width, height)):
            raise ValueError(f"it lies outside the {width} x {height} picture, which may have been cropped or resized since")
        if size > 1 and low.min() >= 0 and high.max() <= 1:
            raise ValueError("its coordinates are between 0 and 1, as fractions of the picture's size are")
        if not any(map(_area, drawable)) and np.all(high - low >= 1):
            raise ValueError("its points lie on a line")
    return region.astype(bool)


def _points(polygon: Any) -> NDArray[np.float64]:
    """(N, 2) the points of a polygon."""
    if not isinstance(polygon, list) or any(isinstance(v, bool) or not isinstance(v, int | float) for v in polygon):
        raise ValueError(f"a polygon is {polygon!r:.60}, no list of numbers x, y, x, y, ...")
    if len(polygon) % 2:
        raise ValueError(f"a polygon has {len(polygon)} numbers, an odd number of them")
    return np.asarray(polygon, dtype=np.float64).reshape(-1, 2)


def _area(points: NDArray[np.float64]) -> bool:
    """Whether a polygon encloses an area."""
    x, y = points.T - points.mean(axis=0)[:, None]
    return bool(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) > 1e-6)


def _runs(rle: dict[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    """pycocotools would leave uninitialised memory behind run lengths that do not fill the picture."""
    if lack := [key for key in ("size", "counts") if key not in rle]:
        raise ValueError(f"its run lengths lack {' and '.join(lack)}")
    size, counts = rle["size"], rle["counts"]
    if not isinstance(size, list) or [whole_number(n) for n in size] != [height, width]:
        raise ValueError(f"its size {size!r:.60} is not the picture's, [{height}, {width}] (height first)")
    if not isinstance(counts, str | list):
        raise ValueError(f"its counts are {counts!r:.60}, neither a list of run lengths nor COCO's text")
    runs = run_lengths(counts) if isinstance(counts, str) else [whole_number(n) for n in counts]
    if any(n < 0 for n in runs) or sum(runs) != height * width:
        raise ValueError(f"its run lengths do not add up to {height} * {width} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T  # column by column, zeros first


def run_lengths(counts: str) -> list[int]:
    """The run lengths in COCO's compressed string (`rleFrString` of pycocotools' maskApi.c).

    Five bits a character, low ones first, from character 48 on; bit 5 says that more follow, bit 4 of the last is the sign;
    from the fourth run on, the difference to the run two before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode("ascii"):
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("its run lengths break off")
    return runs
