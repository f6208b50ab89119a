"""Grids: where a solver's fine nodes lie, as descending noise levels without the end node.

On a process of whole times, `uniform` and `quad` truncate to whole times as DDIM's code does and
may hold a time twice; the other grids take the nearest trained times, each once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepsearch.core.errors import SpaceError
from stepsearch.core.process import Process
from stepsearch.solvers.registry import GRIDS, check_choice, check_number, read_args

Floats = NDArray[np.float64]
SLACK = 1e-9  # relative; a level that was computed may miss the end of the range by rounding
LEAST_GAP = 1e-3  # of `free`; levels must stay apart in float arithmetic


@GRIDS.register("uniform")
def uniform(process: Process, n: int, /, **args: Any) -> tuple[float, ...]:
    """Even in the network's time, from the last trained time to the first."""
    read_args("uniform", args, {})
    if n == 1:
        return (process.level_at(process.last_time),)
    return _truncated(process, np.linspace(process.first_time, process.last_time, n))


@GRIDS.register("quad")
def quad(process: Process, n: int, /, **args: Any) -> tuple[float, ...]:
    """Even in the square root of time, from 0.8 of the range down (Song et al. 2021, app. D.2)."""
    read_args("quad", args, {})
    top = 0.8 * (process.last_time + process.discrete)  # 800 of the steps 0..999
    if n == 1:
        return (process.level_at(top),)
    return _truncated(process, np.linspace(np.sqrt(process.first_time), np.sqrt(top), n) ** 2)


@GRIDS.register("karras")
def karras(process: Process, n: int, /, **args: Any) -> tuple[float, ...]:
    """Even in level ** (1 / rho), rho = 7 (Karras et al. 2022, eq. 5); `start`, `end` as levels."""
    given = read_args("karras", args, {"rho": 7.0, "start": None, "end": None})
    rho = check_number("karras", "rho", given["rho"], 0, 1000, open_ends=True)
    start, end = _ends("karras", process, given)
    ramp = _ramp(1.0, (end / start) ** (1 / rho), n)  # a ratio: start ** (1 / rho) may overflow
    return _snapped(process, start * ramp**rho, start, end)


@GRIDS.register("logsnr")
def logsnr(process: Process, n: int, /, **args: Any) -> tuple[float, ...]:
    """Even in log level (Lu et al. 2022, arXiv:2206.00927, sec. 3.4); `start`, `end` as levels."""
    start, end = _ends("logsnr", process, read_args("logsnr", args, {"start": None, "end": None}))
    return _snapped(process, np.exp(_ramp(math.log(start), math.log(end), n)), start, end)


@GRIDS.register("cosine")
def cosine(process: Process, n: int, /, **args: Any) -> tuple[float, ...]:
    """Even in the angle arctan(level), the uniform time of a cosine schedule (Nichol & Dhariwal
    2021, eq. 17 with s = 0); `start`, `end` as levels."""
    start, end = _ends("cosine", process, read_args("cosine", args, {"start": None, "end": None}))
    return _snapped(process, np.tan(_ramp(math.atan(start), math.atan(end), n)), start, end)


@GRIDS.register("explicit")
def explicit(process: Process, n: int, /, **args: Any) -> tuple[float, ...]:
    """Listed `levels`, or `times` of the network, descending; a last level of 0 is the end node."""
    given = read_args("explicit", args, {"levels": None, "times": None})
    named = [name for name in ("levels", "times") if given[name] is not None]
    if len(named) != 1:
        raise SpaceError("explicit: give either levels or times")
    values = _numbers("explicit", named[0], given[named[0]])
    if named == ["times"]:
        levels = [_level_of_time(process, time) for time in values]
    else:
        levels = values[:-1] if len(values) > 1 and values[-1] == 0 else values
    if any(a <= b for a, b in itertools.pairwise(levels)):
        raise SpaceError(f"explicit: {named[0]} must descend, got {values}")
    if len(levels) != n:
        raise SpaceError(f"explicit: {len(levels)} {named[0]} are listed, {n} are needed")
    return tuple(levels)


@GRIDS.register("free")
def free(process: Process, n: int, /, **args: Any) -> tuple[float, ...]:
    """Spacings that a search moves, e.g. to choose a subset of the steps (Li et al. 2023,
    AutoDiffusion, arXiv:2309.10438).

    Args:
        spacing: weights from 0 up, most noise first; each is an equal part of the n - 1 intervals,
            and what matters is their proportion. All zero means even.
        gap: least spacing as a part of the mean one, in [0.001, 1].
        along: time (of the network) or logsnr, the coordinate that spacings are measured in.
        start, end: fixed ends as levels, by default the whole trained range.
    """
    defaults = {"spacing": (0,), "gap": 0.1, "along": "time", "start": None, "end": None}
    given = read_args("free", args, defaults)
    gap = check_number("free", "gap", given["gap"], LEAST_GAP, 1)
    along = check_choice("free", "along", given["along"], ("time", "logsnr"))
    start, end = _ends("free", process, given)
    weights = np.array(_numbers("free", "spacing", given["spacing"]))
    weights = weights / weights.max() if weights.any() else np.ones(len(weights))
    shares = gap / len(weights) + (1 - gap) * weights / weights.sum()
    knots = np.concatenate([[0.0], np.cumsum(shares) / shares.sum()])
    place = np.interp(np.linspace(0, len(weights), n), np.arange(len(knots)), knots)
    if along == "logsnr":
        return _snapped(process, start * np.exp(place * math.log(end / start)), start, end)
    first, last = process.continuous_time(start), process.continuous_time(end)
    times = first + place * (last - first)
    if process.discrete:
        return _at_whole_times(process, np.floor(times + 0.5))
    return _snapped(process, np.array([process.level_at(float(t)) for t in times]), start, end)


def _ramp(start: float, end: float, n: int) -> Floats:
    return np.linspace(start, end, n) if n > 1 else np.array([start])


def _truncated(process: Process, ascending: Floats) -> tuple[float, ...]:
    """Noise levels of times, truncated to whole ones on a discrete process."""
    times = np.trunc(ascending) if process.discrete else ascending
    return tuple(process.level_at(float(t)) for t in times[::-1])


def _snapped(process: Process, levels: Floats, start: float, end: float) -> tuple[float, ...]:
    """The trained levels nearest to these on a discrete process, else these with exact ends."""
    if not process.discrete:
        levels[-1], levels[0] = end, start
        return tuple(float(level) for level in levels)
    return _at_whole_times(process, np.array([process.time_at(float(r)) for r in levels]))


def _at_whole_times(process: Process, times: Floats) -> tuple[float, ...]:
    """Levels of whole times; between the two ends they are pushed apart where there is room."""
    end = times[-1]
    if len(times) <= times[0] - end + 1:
        for i in range(1, len(times)):
            times[i] = min(times[i], times[i - 1] - 1)
        times[-1] = end
        for i in range(len(times) - 2, -1, -1):
            times[i] = max(times[i], times[i + 1] + 1)
    return tuple(process.level_at(float(t)) for t in times)


def _ends(owner: str, process: Process, given: dict[str, Any]) -> tuple[float, float]:
    """`start` and `end` as levels inside the trained range, by default the range itself."""
    low, high = (process.level_at(t) for t in (process.first_time, process.last_time))
    start, end = (
        edge if given[name] is None else check_number(owner, name, given[name], 0)
        for name, edge in (("start", high), ("end", low))
    )
    for name, level in (("start", start), ("end", end)):
        if not low * (1 - SLACK) <= level <= high * (1 + SLACK):
            raise SpaceError(
                f"{owner}: {name} {level:g} lies outside the network's range of noise levels, "
                f"{low:g} .. {high:g}"
            )
    if start <= end:
        raise SpaceError(f"{owner}: start {start:g} must exceed end {end:g}")
    return start, end


def _level_of_time(process: Process, time: float) -> float:
    if not process.first_time <= time <= process.last_time or (
        process.discrete and not float(time).is_integer()
    ):
        kind = "a whole time" if process.discrete else "a time"
        raise SpaceError(
            f"explicit: times: {time:g} is not {kind} of the network's range, "
            f"{process.first_time:g} .. {process.last_time:g}"
        )
    return process.level_at(time)


def _numbers(owner: str, name: str, values: Any) -> list[float]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not len(values):
        raise SpaceError(f"{owner}: {name} must be a list of numbers, got {values!r}")
    return [check_number(owner, name, value, 0) for value in values]
