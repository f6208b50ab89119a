"""Tables of a search that never ran, for the tests of reports."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd

from stepsearch.core.noise import generator
from stepsearch.core.pareto import hypervolume, pareto_rank
from stepsearch.core.process import get_process
from stepsearch.core.schedule import Call, Stage, StepSchedule, parse_run_length
from stepsearch.core.space import Candidate
from stepsearch.core.trial import COLUMNS, Failure, Measurement, Trial

CHOICES = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
CALLS = (5, 8, 10, 15, 20)
STARTS = (0.2, 0.583, 1.7)
SOLVERS = [("ddim", {}), ("pfdiff", {"k": 1, "l": 1}), ("pfdiff", {"k": 2, "l": 1})]
PROCESS = get_process("vp-linear-1000")


def make_schedule(solver, args, calls, grid, widths):
    times = np.linspace(0, 1, calls) ** (2 if grid == "quad" else 1)
    levels = [PROCESS.level_at(int(t)) for t in 1 + times[::-1] * (799 if grid == "quad" else 998)]
    made = tuple(Call(level, width) for level, width in zip(levels, widths, strict=True))
    return StepSchedule((Stage("digits@0123abcd", solver, args, (*levels, 0.0), made),))


def make_run(seed=0, population=24, generations=7):
    """A search's tables as read from CSV: baselines first, then widths that improve slowly."""
    rng = generator(seed)
    trials, schedules = [], {}
    for i in range(population * generations):
        generation = i // population
        progress = generation / max(generations - 1, 1)
        (solver, args), grid, calls = SOLVERS[0], "uniform", (20, 10, 5)[i // 7 % 3]
        widths = [CHOICES[i % 7]] * calls
        if generation > 0 or i >= 21:
            odds = [0.4 - 0.3 * progress, 0.3, 0.3 + 0.3 * progress]
            solver, args = SOLVERS[rng.choice(3, p=odds)]
            grid, calls = str(rng.choice(["uniform", "quad"])), int(rng.choice(CALLS))
            late = np.sort(rng.integers(0, 7, 5))[:: 1 if rng.random() < progress else -1]
            widths = [CHOICES[late[j * 5 // calls]] for j in range(calls)]
        schedule = make_schedule(solver, args, calls, grid, widths)
        if schedule.key() in schedules:
            continue
        schedules[schedule.key()] = schedule
        candidate = Candidate("digits", solver, args, calls, grid, (1.0,))
        trials.append((generation, schedule, candidate))
    results = [score(s, c, rng, g > 0 and rng.random() < 0.03) for g, s, c in trials]
    return (*tables(trials, results), schedules)


def make_joint_run(seed=0, each=60):
    """As `make_run`, of one stage, relays and distilled networks in turns."""
    rng, made = generator(seed), (make_single, make_relay, make_distilled)
    trials, schedules = [], {}
    for i in range(3 * each):
        schedule, candidate = made[i % 3](rng)
        if schedule.key() not in schedules:
            schedules[schedule.key()] = schedule
            trials.append((i * 6 // (3 * each), schedule, candidate))
    return (*tables(trials, [score_joint(s, c, rng) for _, s, c in trials]), schedules)


def falling(rng, count):
    """Widths of `count` calls."""
    return np.sort(rng.choice(CHOICES, count))[:: rng.choice((-1, 1))]


def walk(net, solver, levels, widths, args=None):
    calls = tuple(Call(float(a), float(w)) for a, w in zip(levels, widths, strict=True))
    return Stage(net, solver, args or {}, (*(c.level for c in calls), 0.0), calls)


def make_single(rng):
    calls, solver = int(rng.choice(CALLS)), str(rng.choice(["ddim", "unipc"]))
    widths = falling(rng, calls) if rng.random() < 0.8 else [rng.choice(CHOICES)] * calls
    schedule = make_schedule(solver, {}, calls, "quad", widths)
    return schedule, Candidate("digits", solver, {}, calls, "quad", (1.0,))


def make_relay(rng):
    """A second stage of three or five calls from one of three noise levels."""
    calls, more, start = int(rng.choice([4, 6, 8])), int(rng.choice([3, 5])), rng.choice(STARTS)
    args, end = {"eta": 0.1, "step": "trapezoid"}, 0.0223607
    small = walk("small@01", "unipc", np.geomspace(80, 0.01, calls), falling(rng, calls))
    large = walk("large@23", "relay", np.geomspace(start, end, more), falling(rng, more), args)
    first = Candidate("small", "unipc", {"order": 2}, calls, "quad", (1.0,))
    grid = {"start": float(start), "end": end}
    second = Candidate("large", "relay", args, more, "karras", (1.0,), grid_args=grid)
    return StepSchedule((small, large)), replace(first, second=second)


def make_distilled(rng):
    calls, end = int(rng.integers(1, 9)), float(rng.choice([0.1, 0.316228, 1.0]))
    schedule = StepSchedule(
        (walk("few@45", "renoise", np.geomspace(20, end, calls), [1.0] * calls),)
    )
    candidate = Candidate("few", "renoise", {}, calls, "karras", (1.0,), grid_args={"end": end})
    return schedule, replace(candidate, distilled=True)


def score_joint(schedule, candidate, rng):
    """Few steps for distilled networks, the middle for relays, the best images for one stage."""
    size = [0.25, 1.0] if candidate.kind == "relay" else [1.0]
    costs = [
        part * (0.012 + 0.11 * call.width**2)
        for part, stage in zip(size, schedule.stages, strict=True)
        for call in stage.calls
    ]
    floor, slope = {"single": (3, 40), "relay": (4, 18), "distilled": (7, 4)}[candidate.kind]
    fid = floor + slope / schedule.nfe + 12 * (1 - np.mean(schedule.widths)) ** 1.5
    fid *= float(np.exp(0.05 * rng.standard_normal()))
    return measured(fid, sum(costs))


def score(schedule, candidate, rng, failed):
    if failed:
        return Failure("RuntimeError: worker died", 3)
    widths = np.array(schedule.widths)
    gflops = float((0.012 + 0.11 * widths**2).sum())
    skill = {"ddim": 1.0, "pfdiff": 2.0}[candidate.solver]
    skill *= {"uniform": 1.0, "quad": 1.2}[candidate.grid]
    tail = np.average(widths, weights=np.linspace(0.4, 1.6, len(widths)))
    fid = 3.0 + 60 / (len(widths) * skill) + 14 * (1 - tail) ** 1.5
    fid *= float(np.exp(0.04 * rng.standard_normal()))
    return measured(fid, gflops)


def measured(fid, gflops):
    values = {"fid": fid, "fid_se": 0.02 * fid, "gflops_per_image": gflops}
    return Measurement(values, 5000, 0, "classifier-0123456789ab", 1.0, "2026-01-01T00:00:00Z")


def tables(trials, results):
    values = [result.values for result in results if isinstance(result, Measurement)]
    ranks = iter(pareto_rank([(v["fid"], v["gflops_per_image"]) for v in values]))
    rows = []
    for (generation, schedule, candidate), result in zip(trials, results, strict=True):
        key, widths = schedule.key(), schedule.widths
        trial = Trial(len(rows), generation, key, "", candidate, widths, result)
        rows.append(trial.row(int(next(ranks)) if trial.complete else None))
    frame = csv(pd.DataFrame(rows, columns=COLUMNS))
    done = frame[frame["state"].eq("COMPLETE")]
    so_far = [done[done["generation"] <= g] for g in sorted(frame["generation"].unique())]
    pairs = [f[["fid", "gflops_per_image"]].to_numpy() for f in so_far]
    generations = pd.DataFrame(
        {
            "generation": range(len(so_far)),
            "trials": [len(f) for f in so_far],
            "failed": 0,
            "front_size": [int((pareto_rank(p) == 0).sum()) for p in pairs],
            "hypervolume": [hypervolume(p, (60.0, 3.0)) for p in pairs],
            "best_fid": [f["fid"].min() for f in so_far],
            "lowest_gflops": [f["gflops_per_image"].min() for f in so_far],
        }
    )
    front = done[done["is_pareto"]].sort_values("gflops_per_image")
    return frame, csv(front), generations


def csv(frame):
    """As the run directory's reader sees it."""
    return pd.read_csv(io.StringIO(frame.to_csv(index=False)))


def frame_of(*rows):
    """trials.csv of (solver, widths, fid, gflops) rows; a trial without FID has failed."""
    records = []
    for i, (solver, widths, fid, gflops) in enumerate(rows):
        record = dict.fromkeys(COLUMNS) | {"trial_id": i, "key": f"s{i}", "generation": 0}
        name, _, k_l = solver.partition(" ")
        k, l = k_l.split("_") if k_l else (None, None)  # noqa: E741
        record |= {"solver": name, "pfdiff_k": k, "pfdiff_l": l, "grid": "quad", "widths": widths}
        made = parse_run_length(widths)
        record |= {"nfe": len(made), "mean_width": sum(made) / len(made), "is_pareto": False}
        record |= {"state": "FAIL" if fid is None else "COMPLETE", "fid": fid}
        record |= {"gflops_per_image": gflops, "n_samples": 500, "metric_id": "classifier-01234567"}
        records.append(record)
    return csv(pd.DataFrame(records, columns=COLUMNS))
