"""A whole run: data, supernets, reference statistics, canaries, search, tables and plots."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stepsearch.build import build_schedule, coupling_warning, trained_pool
from stepsearch.config import dump_space, read_space
from stepsearch.core.errors import ConfigError, RunError
from stepsearch.core.protocols import Executor, NetCard
from stepsearch.core.settings import Recipe, RunSettings, content_hash
from stepsearch.core.space import named
from stepsearch.evaluate import Evaluator, EvaluatorSpec, pick_device, prepare_evaluation
from stepsearch.executors.local import LocalExecutor
from stepsearch.executors.ray_pool import RayExecutor
from stepsearch.loading import scored_recipe, space_images
from stepsearch.nets.counting import counted
from stepsearch.nets.families import FAMILIES
from stepsearch.progress import Display
from stepsearch.recipe_training import Together
from stepsearch.report import plot_all
from stepsearch.search import environment, run_search
from stepsearch.signals import Signals
from stepsearch.store import RunStore, check_absent, is_run, load_run
from stepsearch.supernet import check_buildable, ensure_supernet, supernet_path
from stepsearch.training.data import Dataset
from stepsearch.training.loop import OnStep, Team
from stepsearch.training.ray_train import RayTrainer


@dataclass(frozen=True, slots=True)
class Resources:
    """Where a run runs; no part of what it measures."""

    workers: int = 1
    executor: str = "auto"  # local in this process, ray; auto is ray for two workers or more
    address: str | None = None
    gpus_per_worker: float | None = None  # None shares the GPUs evenly

    @property
    def alone(self) -> bool:
        """Whether this process does without Ray."""
        return self.workers == 1 and self.address is None


ALONE = Resources()


def start_run(
    settings: RunSettings,
    out: Path,
    typed: str,
    resources: Resources,
    *,
    resume: bool,
    allow_code: bool = False,
) -> None:
    """Run a search into `out`, or continue the one that is there when `resume` is set.

    Args:
        typed: the space file as the user wrote it.
        allow_code: import a data set that is code, see `load_dataset`.

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
        images = space_images(settings, display, signals, allow_code=allow_code)
        for recipe in settings.networks:
            check_buildable(recipe, images[recipe.name])
        data = images[scored_recipe(settings).name]
        display.stage("features and reference statistics", 1)
        spec, facts = prepare_evaluation(settings.evaluation, settings.objectives, data)
        cards, paths = {}, []
        for recipe in settings.networks:
            own = images[recipe.name]
            path, card = train(recipe, own, display, signals, settings.evaluation.device)
            cards[recipe.name] = counted(card, settings.evaluation.counting)
            paths.append(str(path))
        spec = replace(spec, nets=tuple(paths))
        pools = {r.name: trained_pool(cards[r.name]) for r in settings.recipes}
        if warning := coupling_warning(pools, map(named, settings.space.solvers)):
            display.say(warning)
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


def resume_run(out: Path, resources: Resources, *, allow_code: bool = False) -> None:
    """Continue the run in `out` from its own resolved.yaml."""
    resolved = out / "resolved.yaml"
    if not is_run(out) or not resolved.is_file():
        raise ConfigError(f"{out}: no run directory to resume (no journal or no resolved.yaml)")
    settings = read_space(resolved)
    start_run(settings, out, "", resources, resume=True, allow_code=allow_code)


def train(
    recipe: Recipe,
    data: Dataset,
    display: Display,
    signals: Signals,
    device: str = "auto",
    resources: Resources = ALONE,
    *,
    allow_code: bool = False,
) -> tuple[Path, NetCard]:
    """The recipe's network, trained with progress unless it is there already."""
    path = supernet_path(recipe, data)
    kind = "classifier" if FAMILIES[recipe.family].classifies else "supernet"
    if path.is_file():
        display.say(f"{kind} {recipe.name}: recipe unchanged, using {path}")
    elif recipe.distill is not None:
        assert recipe.teacher is not None
        _, teacher = train(recipe.teacher, data, display, signals, device)
        steps = recipe.distill.steps
        display.say(f"student {recipe.name}: distilling {teacher.key} in {steps} steps")
        if not recipe.distill.widths:
            display.say(
                f"warning: {recipe.name}: distilling all widths at once is experimental: one score "
                f"follows their mixture, and a width may make up for what another lacks"
            )
        display.stage(f"distilling {recipe.name}", steps)
        on_step = _shown(steps, display, signals)
        return ensure_supernet(recipe, data, device=pick_device(device), on_step=on_step)
    elif recipe.train is not None:
        steps = recipe.train.steps

        team = f" with {resources.workers} workers" if resources.workers > 1 else ""
        display.say(f"{kind} {recipe.name}: training {steps} steps on {data.name}{team}")
        immiscible = recipe.train.immiscible
        if immiscible is not None and immiscible.method == "knn" and immiscible.pool > 1:
            display.say(
                f"warning: {recipe.name}: the nearest of {immiscible.pool} noises (method knn) is "
                f"not Gaussian as that of sampling is: it is shorter and leans to the mean image"
            )
        display.stage(f"training {recipe.name}", steps)
        with _together(recipe, resources, signals, device, allow_code) as together:
            return ensure_supernet(
                recipe,
                data,
                device=pick_device(device),
                on_step=_shown(steps, display, signals if together is None else None),
                together=together,
            )
    return ensure_supernet(recipe, data, device=pick_device(device))


def _shown(steps: int, display: Display, signals: Signals | None) -> OnStep:
    """Shows steps, and that workers took some again; raises where a signal of `signals` came."""
    last = 0

    def on_step(step: int, losses: Mapping[float, float]) -> None:
        nonlocal last
        if step <= last:
            display.say(f"workers were lost at step {last}; others continue from step {step}")
        last = step
        display.training(step, steps, losses)
        if signals is not None:
            signals.check()

    return on_step


def check_team(recipe: Recipe, resources: Resources) -> None:
    """ConfigError unless every worker gets as many images of a batch as the others."""
    if recipe.distill is not None and not resources.alone:
        raise ConfigError(f"{recipe.file}: a student is distilled in one process; drop --workers")
    if recipe.train is not None:
        try:
            Team(0, resources.workers).rows(recipe.train.batch, recipe.train.accumulate)
        except ConfigError as error:
            raise ConfigError(f"{recipe.file}: {error}") from None


@contextmanager
def _together(
    recipe: Recipe, resources: Resources, signals: Signals, device: str, allow_code: bool
) -> Iterator[Together | None]:
    """Workers that train, None where this process does."""
    if resources.alone:
        yield None
        return
    assert recipe.train is not None
    gpus = _gpus_per_worker(resources, pick_device(device))
    trainer = RayTrainer(
        resources.workers,
        address=resources.address,
        cpus_per_worker=1 if gpus else recipe.train.threads,
        gpus_per_worker=gpus,
        check=signals.check,
    )
    with closing(trainer):
        signals.install("the same command")  # again: Ray has put in its own
        yield lambda member, on_step: trainer(replace(member, allow_code=allow_code), on_step)


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
    if resources.executor == "local" or (resources.executor == "auto" and resources.alone):
        if resources.workers != 1:
            raise ConfigError(
                f"--executor local: runs 1 worker, got {resources.workers}; use --executor ray"
            )
        return LocalExecutor(factory, stopping=signals.stopping)
    return RayExecutor(
        factory,
        resources.workers,
        address=resources.address,
        gpus_per_worker=_gpus_per_worker(resources, spec.device),
        stopping=signals.stopping,
    )


def _gpus_per_worker(resources: Resources, device: str) -> float:
    if resources.gpus_per_worker is not None:
        return resources.gpus_per_worker
    share = torch.cuda.device_count() / resources.workers if device == "cuda" else 0.0
    return float(int(share)) if share >= 1 else share


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
    widest = {"widths": (max(space.width_choices),), "per_call": False}
    candidate = replace(space.decode(middle), **widest)
    if candidate.second is not None and space.relay is not None:
        widest["widths"] = (max(space.relay.space.width_choices),)
        candidate = replace(candidate, second=replace(candidate.second, **widest))
    evaluator, schedule = Evaluator(spec), build_schedule(candidate, cards)
    seed = settings.evaluation.seed
    fids = {s: evaluator.measure(schedule, s).values["fid"] for s in (seed, seed + 1)}
    facts = json.loads((store.path / "env.json").read_text(encoding="utf-8"))["facts"]
    floor = facts.get("real_vs_real")
    baseline = f"{candidate.solver}, {candidate.grid}, {candidate.calls} calls, width "
    baseline += f"{candidate.widths[0]:g}"
    if (second := candidate.second) is not None:
        baseline += f", then relay from {second.grid_args['start']:g}, {second.calls} calls, width "
        baseline += f"{second.widths[0]:g}"
    if (guidance := candidate.guidance) is not None:
        baseline += f", {guidance.net or guidance.kind} {guidance.scale:g}"
    found = {"real_vs_real": floor, "baseline": baseline, "baseline_fid_by_seed": fids}
    store.write_text("canaries.json", json.dumps(found, indent=2) + "\n")
    shown = "not measurable" if floor is None else f"{floor:.2f}"
    display.say(f"canary: real against real (halves of the data) FID {shown}")
    both = " and ".join(f"{fid:.2f}" for fid in fids.values())
    display.say(f"canary: baseline ({baseline}) FID {both} with two seeds")


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
    for name in ("supernets", "seconds", "guides", "metric_id", "data_sha256"):
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
