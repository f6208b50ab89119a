"""A whole run: data, supernets, reference statistics, canaries, search, tables and plots."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stepsearch.build import build_schedule
from stepsearch.config import dump_space, read_space
from stepsearch.core.errors import ConfigError, RunError
from stepsearch.core.protocols import Executor, NetCard
from stepsearch.core.settings import Recipe, RunSettings, content_hash
from stepsearch.evaluate import Evaluator, EvaluatorSpec, pick_device, prepare_evaluation
from stepsearch.executors.local import LocalExecutor
from stepsearch.executors.ray_pool import RayExecutor
from stepsearch.nets.families import FAMILIES
from stepsearch.progress import Display
from stepsearch.report import plot_all
from stepsearch.search import environment, run_search
from stepsearch.signals import Signals
from stepsearch.store import RunStore, check_absent, is_run, load_run
from stepsearch.supernet import check_buildable, ensure_supernet, recipe_data, supernet_path
from stepsearch.training.data import Dataset


@dataclass(frozen=True, slots=True)
class Resources:
    """Where a run runs; no part of what it measures."""

    workers: int = 1
    executor: str = "auto"  # local in this process, ray; auto is ray for two workers or more
    address: str | None = None
    gpus_per_worker: float | None = None  # None shares the GPUs evenly


def start_run(
    settings: RunSettings, out: Path, typed: str, resources: Resources, *, resume: bool
) -> None:
    """Run a search into `out`, or continue the one that is there when `resume` is set.

    Args:
        typed: the space file as the user wrote it.

    Raises:
        ConfigError: `out` exists and `resume` is not set, or settings that cannot be run.
        RunError: `out` holds another search.
    """
    there = resume and is_run(out)
    if there:
        _check_same(settings, out)
    else:
        check_absent(out)
    again = f"`stepsearch resume {out}`" if there else "the same command"
    with Display() as display, Signals(again) as signals:
        data = _shared_data(settings)
        for recipe in settings.networks:
            check_buildable(recipe, data)
        display.stage("features and reference statistics", 1)
        spec, facts = prepare_evaluation(settings.evaluation, settings.objectives, data)
        cards, paths = {}, []
        for recipe in settings.networks:
            path, card = train(recipe, data, display, signals, settings.evaluation.device)
            cards[recipe.name] = card
            paths.append(str(path))
        spec = replace(spec, nets=tuple(paths))
        env = environment(settings, cards, spec, facts)
        if there:
            _check_env(out, env)
        with ExitStack() as stack:
            executor = _executor(spec, resources, signals)
            stack.callback(executor.close)
            store = _store(settings, out, typed, env, there)
            stack.callback(store.close)
            stack.enter_context(_logging_to(out / "log.txt"))
            signals.install(f"`stepsearch resume {out}`")  # again: Ray has put in its own
            if store.torn is not None:
                display.say(f"{out}: the journal's last line was torn; set aside as {store.torn}")
            _canaries(settings, cards, spec, store, display)
            workers = f"{resources.workers} worker{'s' if resources.workers > 1 else ''}"
            _search(settings, cards, store, executor, display, workers)


def _store(settings: RunSettings, out: Path, typed: str, env: str, there: bool) -> RunStore:
    if there:
        return RunStore(out, settings.objectives)
    files = {"space.yaml": typed, "resolved.yaml": dump_space(settings), "env.json": env}
    return RunStore.create(out, settings.objectives, files)


def resume_run(out: Path, resources: Resources) -> None:
    """Continue the run in `out` from its own resolved.yaml."""
    resolved = out / "resolved.yaml"
    if not is_run(out) or not resolved.is_file():
        raise ConfigError(f"{out}: no run directory to resume (no journal or no resolved.yaml)")
    start_run(read_space(resolved), out, "", resources, resume=True)


def train(
    recipe: Recipe, data: Dataset, display: Display, signals: Signals, device: str = "auto"
) -> tuple[Path, NetCard]:
    """The recipe's network, trained with progress unless it is there already."""
    path = supernet_path(recipe, data)
    kind = "classifier" if FAMILIES[recipe.family].classifies else "supernet"
    if path.is_file():
        display.say(f"{kind} {recipe.name}: recipe unchanged, using {path}")
    elif recipe.train is not None:
        steps = recipe.train.steps

        def on_step(step: int, losses: Mapping[float, float]) -> None:
            display.training(step, steps, losses)
            signals.check()

        display.say(f"{kind} {recipe.name}: training {steps} steps on {data.name}")
        display.stage(f"training {recipe.name}", steps)
        return ensure_supernet(
            recipe,
            data,
            device=pick_device(device),
            on_step=on_step,
        )
    return ensure_supernet(recipe, data, device=pick_device(device))


def _search(
    settings: RunSettings,
    cards: dict[str, NetCard],
    store: RunStore,
    executor: Executor,
    display: Display,
    workers: str,
) -> None:
    planned = settings.search.population * settings.search.generations
    display.say(f"search: {planned} trials on {workers}, results in {store.path}")
    display.stage("search", planned)
    try:
        run_search(settings, cards, store, executor, display.trial)
    finally:
        if store.trials:
            store.write_tables()
    run = load_run(store.path)
    plot_all(run.trials, run.pareto, run.generations, run.schedules, store.path / "plots")
    display.say(f"{store.path}: {len(run.trials)} trials, {len(run.pareto)} on the front")


def _executor(spec: EvaluatorSpec, resources: Resources, signals: Signals) -> Executor:
    factory = functools.partial(Evaluator, spec)
    local = resources.workers == 1 and resources.address is None
    if resources.executor == "local" or (resources.executor == "auto" and local):
        if resources.workers != 1:
            raise ConfigError(
                f"--executor local: runs 1 worker, got {resources.workers}; use --executor ray"
            )
        return LocalExecutor(factory, stopping=signals.stopping)
    gpus = resources.gpus_per_worker
    if gpus is None:
        share = torch.cuda.device_count() / resources.workers if spec.device == "cuda" else 0.0
        gpus = float(int(share)) if share >= 1 else share
    return RayExecutor(
        factory,
        resources.workers,
        address=resources.address,
        gpus_per_worker=gpus,
        stopping=signals.stopping,
    )


def _canaries(
    settings: RunSettings,
    cards: dict[str, NetCard],
    spec: EvaluatorSpec,
    store: RunStore,
    display: Display,
) -> None:
    """Before anything is searched: what no candidate can beat, and how much seeds alone move."""
    path = store.path / "canaries.json"
    if path.is_file() or "fid" not in settings.objectives:
        return
    space = settings.space
    middle = next(iter(space.uniform_genomes(1)))
    candidate = replace(space.decode(middle), widths=(max(space.width_choices),))
    candidate = replace(candidate, per_call=False)
    evaluator, schedule = Evaluator(spec), build_schedule(candidate, cards)
    seed = settings.evaluation.seed
    fids = {s: evaluator.measure(schedule, s).values["fid"] for s in (seed, seed + 1)}
    facts = json.loads((store.path / "env.json").read_text(encoding="utf-8"))["facts"]
    floor = facts.get("real_vs_real")
    baseline = f"{candidate.solver}, {candidate.grid}, {candidate.calls} calls, width "
    baseline += f"{candidate.widths[0]:g}"
    if (guidance := candidate.guidance) is not None:
        baseline += f", {guidance.net or guidance.kind} {guidance.scale:g}"
    found = {"real_vs_real": floor, "baseline": baseline, "baseline_fid_by_seed": fids}
    store.write_text("canaries.json", json.dumps(found, indent=2) + "\n")
    shown = "not measurable" if floor is None else f"{floor:.2f}"
    display.say(f"canary: real against real (halves of the data) FID {shown}")
    both = " and ".join(f"{fid:.2f}" for fid in fids.values())
    display.say(f"canary: baseline ({baseline}) FID {both} with two seeds")


def _shared_data(settings: RunSettings) -> Dataset:
    first = settings.recipes[0]
    for recipe in settings.networks[1:]:
        if recipe.data != first.data:
            raise ConfigError(
                f"networks '{first.name}' and '{recipe.name}' are trained on different data and "
                f"cannot be compared; use one data set"
            )
    return recipe_data(first)


def _check_same(settings: RunSettings, out: Path) -> None:
    try:
        found = json.loads((out / "env.json").read_text(encoding="utf-8"))["space_sha256"]
    except (OSError, ValueError, KeyError):
        raise RunError(
            f"{out}/env.json: missing or damaged; restore it or start a new run"
        ) from None
    wanted = content_hash(settings.content())
    if found != wanted:
        raise RunError(
            f"{out}: created for space {found[:8]}, this one is {wanted[:8]}; restore the file or "
            f"start a new run with -o"
        )


def _check_env(out: Path, env: str) -> None:
    """RunError where networks, data or statistics are no longer what the journal was made with."""
    old, new = json.loads((out / "env.json").read_text(encoding="utf-8")), json.loads(env)
    for name in ("supernets", "guides", "metric_id", "data_sha256"):
        before, now = old.get(name), new.get(name)
        if before != now:
            raise RunError(f"{out}: {name} changed from {before} to {now}; start a new run")


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("stepsearch")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
