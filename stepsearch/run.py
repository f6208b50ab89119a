"""A whole run: data, supernets, reference statistics, canaries, search, tables and plots."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from stepsearch.build import build_schedule, coupling_warning, trained_pool
from stepsearch.config import dump_space, read_space
from stepsearch.core.errors import ConfigError, RunError
from stepsearch.core.latency import LatencyTable, timed
from stepsearch.core.protocols import Executor, Genome, NetCard
from stepsearch.core.settings import RunSettings, content_hash
from stepsearch.core.space import named
from stepsearch.core.trial import Measurement
from stepsearch.core.yamlfile import read_yaml
from stepsearch.environment import environment
from stepsearch.evaluate import Evaluator, EvaluatorSpec, prepare_evaluation
from stepsearch.executors.local import LocalExecutor
from stepsearch.executors.ray_pool import RayExecutor
from stepsearch.ladder import ladder_frame
from stepsearch.loading import scored_recipe, space_images
from stepsearch.nets.counting import counted
from stepsearch.nets.load import load_card
from stepsearch.network_training import train
from stepsearch.objectives.registry import OBJECTIVES
from stepsearch.progress import Display
from stepsearch.remeasured import load_remeasured
from stepsearch.remote import Mirror
from stepsearch.report import plot_all
from stepsearch.resources import Resources, gpus_per_worker
from stepsearch.search import COST, run_search
from stepsearch.signals import Signals
from stepsearch.store import RunStore, check_absent, is_run, load_run
from stepsearch.supernet import check_buildable
from stepsearch.warm_start import check_sources, known_measurements, warm_genomes

RESOLVED, WARM_FILE = "resolved.yaml", "warm_start.json"
LATENCY = "latency_ms"
WARM = "the runs that this one begins from"


def start_run(
    settings: RunSettings,
    out: Path,
    typed: str,
    resources: Resources,
    *,
    resume: bool,
    allow_code: bool = False,
    mirror: Mirror | None = None,
) -> None:
    """Run a search into `out`, or continue the one that is there when `resume` is set.

    Args:
        typed: the space file as the user wrote it.
        allow_code: import a data set that is code, see `load_dataset`.
        mirror: of `out`, where the run lives at a URI.

    Raises:
        ConfigError: `out` exists and `resume` is not set, or settings that cannot be run.
        RunError: `out` holds another search.
    """
    there = resume and is_run(out)
    if there:
        _check_same(settings, out)
    else:
        check_absent(out)
        check_sources(settings.search.warm_start)
    again = f"`stepsearch resume {out}`" if there else "the same command"
    with Display() as display, Signals(again) as signals, ExitStack() as stack:
        made = _prepared(settings, out, there, display, signals, allow_code=allow_code)
        executor = _executor(made.spec, resources, signals)
        stack.callback(executor.close)
        warm = _warm(settings, made.cards, out, there)
        known = known_measurements(settings.search.warm_start, settings, made.spec.metric_id)
        files = {"space.yaml": typed, **made.files}
        store = _store(settings, out, files, warm, there, mirror)
        stack.callback(store.close)
        stack.enter_context(_logging_to(out / "log.txt"))
        signals.install(f"`stepsearch resume {out}`")  # again: Ray has put in its own
        if store.torn is not None:
            display.say(f"{out}: the journal's last line was torn; set aside as {store.torn}")
        _canaries(settings, made.cards, made.spec, store, display)
        workers = f"{resources.workers} worker{'s' if resources.workers > 1 else ''}"
        if known:
            display.say(f"{len(known)} measurements of {WARM} are taken as they are")
        _search(settings, made.cards, store, executor, display, workers, warm, known)
        if mirror is not None:
            mirror.push([*sorted((out / "plots").iterdir()), out / "log.txt"])


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a search needs beside its settings."""

    spec: EvaluatorSpec
    cards: Mapping[str, NetCard]
    files: Mapping[str, str]  # of a new run directory


def _prepared(
    settings: RunSettings,
    out: Path,
    there: bool,
    display: Display,
    signals: Signals,
    *,
    allow_code: bool,
) -> _Prepared:
    """Data, networks and reference statistics, which must be those of a run that is continued."""
    images = space_images(settings, display, signals, allow_code=allow_code)
    for recipe in settings.networks:
        check_buildable(recipe, images[recipe.name])
    data = images[scored_recipe(settings).name]
    display.stage("features and reference statistics", 1)
    spec, facts = prepare_evaluation(settings.evaluation, settings.measured, data)
    cards: dict[str, NetCard] = {}
    paths = []
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
    files = {RESOLVED: dump_space(settings), "env.json": env}
    if LATENCY in (*settings.measured, *settings.constraints):
        table = _latencies(spec, out, there)
        spec, files["latency.json"] = replace(spec, latency=table), table.to_json()
        cards = {name: timed(card, table) for name, card in cards.items()}
    return _Prepared(spec, cards, files)


def _latencies(spec: EvaluatorSpec, out: Path, there: bool) -> LatencyTable:
    """Times of the calls of all networks: measured here, or those that the run began with."""
    path = out / "latency.json"
    if not there:
        return Evaluator(spec).measure_latency()
    try:
        return LatencyTable.from_json(path.read_text(encoding="utf-8"), str(path))
    except OSError:
        raise RunError(f"{path}: missing; restore it or start a new run") from None


def _store(
    settings: RunSettings,
    out: Path,
    files: Mapping[str, str],
    warm: Sequence[Genome],
    there: bool,
    mirror: Mirror | None,
) -> RunStore:
    if there:
        store = RunStore(out, settings.objectives, mirror)
        if settings.search.generations > _generations(out):
            store.write_text(RESOLVED, dump_space(settings))
        return store
    begun = {WARM_FILE: json.dumps([list(genome) for genome in warm]) + "\n"} if warm else {}
    return RunStore.create(out, settings.objectives, {**files, **begun}, mirror)


def _warm(
    settings: RunSettings, cards: Mapping[str, NetCard], out: Path, there: bool
) -> tuple[Genome, ...]:
    """Genomes that the search begins from: those it began from, where it is continued."""
    if there:
        path = out / WARM_FILE
        if not path.is_file():
            return ()
        return tuple(map(tuple, json.loads(path.read_text(encoding="utf-8"))))
    sources = settings.search.warm_start
    return warm_genomes(sources, settings.space, cards, settings.search.population)


def resume_run(
    out: Path,
    resources: Resources,
    overrides: Sequence[str] = (),
    *,
    allow_code: bool = False,
    mirror: Mirror | None = None,
) -> None:
    """Continue the run in `out` from its own resolved.yaml; `overrides` may raise the budget."""
    resolved = out / RESOLVED
    if not is_run(out) or not resolved.is_file():
        raise ConfigError(f"{out}: no run directory to resume (no journal or no resolved.yaml)")
    settings = read_space(resolved, list(overrides))
    if settings.search.generations < _generations(out):
        raise ConfigError(
            f"search.generations: {settings.search.generations} is less than the "
            f"{_generations(out)} of {out}; a budget can only grow"
        )
    how = {"resume": True, "allow_code": allow_code}
    start_run(settings, out, "", resources, **how, mirror=mirror)


def _search(
    settings: RunSettings,
    cards: dict[str, NetCard],
    store: RunStore,
    executor: Executor,
    display: Display,
    workers: str,
    warm: Sequence[Genome],
    known: Mapping[str, Measurement],
) -> None:
    planned = settings.search.population * settings.search.generations
    display.say(f"search: {planned} trials on {workers}, results in {store.path}")
    display.stage("search", planned)
    try:
        run_search(settings, cards, store, executor, display.trial, warm=warm, known=known)
    finally:
        if store.trials:
            store.write_tables()
    _say_ladder(settings, store, display)
    run = load_run(store.path)
    again = load_remeasured(store.path, run.pareto)
    plot_all(run.trials, run.pareto, run.generations, run.schedules, store.path / "plots", again)
    display.say(f"{store.path}: {len(run.trials)} trials, {len(run.pareto)} on the front")


def _say_ladder(settings: RunSettings, store: RunStore, display: Display) -> None:
    """How each rung of the ladder ranks as the next does, in words and in ladder.csv."""
    ladder = settings.evaluation.ladder
    if not ladder:
        return
    full = next(name for name in settings.objectives if OBJECTIVES[name].needs_images)
    frame = ladder_frame(store.trials, ladder, full)
    store.write_text("ladder.csv", frame.to_csv(index=False))
    for row in frame.to_dict("records"):
        text = f"ladder: {row['went_on']} of {row['measured']} went on from {row['rung']}"
        if row["tau"] == row["tau"]:
            text += f"; Kendall tau with {row['next']} {row['tau']:.2f} "
            text += f"({row['tau_low']:.2f} to {row['tau_high']:.2f}) among these"
        display.say(text)


def _executor(spec: EvaluatorSpec, resources: Resources, signals: Signals) -> Executor:
    if resources.executor == "local" or (resources.executor == "auto" and resources.alone):
        if resources.workers != 1:
            raise ConfigError(
                f"--executor local: runs 1 worker, got {resources.workers}; use --executor ray"
            )
        return LocalExecutor(functools.partial(Evaluator, spec), stopping=signals.stopping)
    cards = {card.key: card for card in map(load_card, map(Path, spec.nets))}
    return RayExecutor(
        functools.partial(_evaluator_on, spec),
        resources.workers,
        address=resources.address,
        gpus_per_worker=gpus_per_worker(resources, spec.device),
        stopping=signals.stopping,
        files=spec.files(),
        cost=lambda schedule: OBJECTIVES[COST](schedule, cards, None),
    )


def _evaluator_on(spec: EvaluatorSpec, paths: Mapping[str, str]) -> Evaluator:
    """The evaluator of a node that has the files of `spec` at `paths`."""
    return Evaluator(spec.located(paths))


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
    """RunError where the run is of another space; the budget alone may differ."""
    try:
        env = json.loads((out / "env.json").read_text(encoding="utf-8"))
        found = env["space_sha256"]
    except (OSError, ValueError, KeyError):
        raise RunError(
            f"{out}/env.json: missing or damaged; restore it or start a new run"
        ) from None
    first = env["generations"] if "generations" in env else _generations(out)
    begun = replace(settings, search=replace(settings.search, generations=first))
    wanted = content_hash(begun.content())
    if found != wanted:
        raise RunError(
            f"{out}: created for space {found[:8]}, this one is {wanted[:8]}; restore the file, or "
            f"begin another run from this one with `stepsearch fork {out} SPACE -o NEW`"
        )


def _generations(out: Path) -> int:
    """The budget that a run has by now."""
    search = read_yaml(out / RESOLVED).section().need("search").section()
    return search.need("generations").whole(1)


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
