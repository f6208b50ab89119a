"""What a search begins from: the front of another run, a table of trials, or a schedule by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from stepsearch.build import RELAY, RENOISE, build_schedule
from stepsearch.core.errors import ConfigError, SpaceError
from stepsearch.core.guidance import CLASSIFIER, Guidance
from stepsearch.core.protocols import Genome, NetCard
from stepsearch.core.schedule import CFG, StepSchedule, parse_run_length
from stepsearch.core.settings import RunSettings
from stepsearch.core.space import Candidate, SearchSpace
from stepsearch.core.trial import TIME_COLUMNS, Measurement
from stepsearch.encoding import nearest_genome
from stepsearch.store import JOURNAL, is_run, load_run, read_journal


def warm_genomes(
    sources: Sequence[str], space: SearchSpace, cards: Mapping[str, NetCard], limit: int
) -> tuple[Genome, ...]:
    """At most `limit` genomes of `space` nearest to what `sources` hold, each once.

    Where there are more, they are taken evenly over the order of the sources, which is that of
    GFLOPs within a run or a table.

    Raises:
        ConfigError: a source that is none, or a row that means no schedule.
    """
    found: dict[Genome, None] = {}
    for source in sources:
        for schedule, genome in read_schedules(Path(source), cards):
            exact = _means(genome, schedule, space, cards)
            found.setdefault(genome if exact else nearest_genome(schedule, space, cards))
    genomes = list(found)
    count = min(limit, len(genomes))
    return tuple(genomes[i * len(genomes) // count] for i in range(count))


def check_sources(sources: Sequence[str]) -> None:
    """ConfigError for a source where there is nothing to begin from."""
    for path in map(Path, sources):
        if not is_run(path) and not path.is_file():
            raise ConfigError(
                f"search.warm_start: {path}: no run directory, table or schedule is there"
            )


def known_measurements(
    sources: Sequence[str], settings: RunSettings, metric_id: str
) -> dict[str, Measurement]:
    """What runs among `sources` measured just as a run with `settings` would, by schedule key.

    Times and memory are of the hardware that measured them: with such objectives nothing is known.
    """
    evaluation, needed = settings.evaluation, set(settings.objectives)
    if needed & set(TIME_COLUMNS) or evaluation.ladder:
        return {}
    wanted = (metric_id, evaluation.images, evaluation.seed, evaluation.counting)
    found = {}
    for path in filter(is_run, map(Path, sources)):
        for trial in read_journal(path / JOURNAL)[0]:
            r = trial.result
            if not isinstance(r, Measurement) or not needed <= r.values.keys():
                continue
            if (r.metric_id, r.n_samples, r.seed, r.counting) == wanted:
                found[trial.key] = r
    return found


def _means(
    genome: Genome, schedule: StepSchedule, space: SearchSpace, cards: Mapping[str, NetCard]
) -> bool:
    """Whether a genome of another space means the same schedule in this one."""
    try:
        return build_schedule(space.decode(genome), cards) == schedule
    except SpaceError:
        return False


def read_schedules(path: Path, cards: Mapping[str, NetCard]) -> list[tuple[StepSchedule, Genome]]:
    """Schedules of a run's front, of a table like trials.csv or pareto.csv, or of a JSON file.

    With the genome that each had where it was searched, empty where it is not known.
    """
    if is_run(path):
        keys = list(load_run(path).pareto["key"])
        trials = {t.key: t for t in read_journal(path / JOURNAL)[0]}
        return [(StepSchedule.from_json(trials[k].schedule), trials[k].genome) for k in keys]
    if path.suffix == ".json":
        try:
            return [(StepSchedule.from_json(path.read_text(encoding="utf-8")), ())]
        except (SpaceError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from None
    try:
        table = pd.read_csv(path, dtype="string")
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no table ({error}); give a trials.csv or pareto.csv") from None
    return [(schedule, ()) for schedule in _of_table(path, table, cards)]


def _of_table(path: Path, table: pd.DataFrame, cards: Mapping[str, NetCard]) -> list[StepSchedule]:
    """The front of a table, or all of its rows where it does not say what is on the front."""
    missing = {"solver", "grid", "widths"} - set(table.columns)
    if missing:
        raise ConfigError(f"{path}: no column {sorted(missing)[0]!r}; give a trials.csv")
    if "is_pareto" in table:
        table = table[table["is_pareto"].str.lower().eq("true")]
    if "gflops_per_image" in table:
        table = table.iloc[table["gflops_per_image"].astype(float).argsort(kind="stable")]
    found = []
    for place, row in table.iterrows():
        try:
            given = {name: value for name, value in row.items() if not pd.isna(value)}
            found.append(build_schedule(_candidate(given, cards), cards))
        except (SpaceError, KeyError, ValueError) as error:
            raise ConfigError(f"{path}: row {int(str(place)) + 1}: {error}") from None
    return found


def _candidate(row: Mapping[str, Any], cards: Mapping[str, NetCard]) -> Candidate:
    """What a row of trials.csv asks for, of the network of its name or of one like it."""
    widths = parse_run_length(row["widths"])
    relayed = int(float(row.get("relay_calls", 0)))
    first = _part(row, "", row["solver"], widths[: len(widths) - relayed], cards)
    if not relayed:
        return first
    second = _part(row, "relay_", RELAY, widths[len(widths) - relayed :], cards)
    grid = {**second.grid_args, "start": float(row["relay_start"])}
    return replace(first, second=replace(second, grid_args=grid))


def _part(
    row: Mapping[str, Any],
    prefix: str,
    solver: str,
    widths: Sequence[float],
    cards: Mapping[str, NetCard],
) -> Candidate:
    """The stage whose columns begin with `prefix`, at the widths that its network has."""
    card = _network(row.get(f"{prefix}supernet"), solver, cards)
    return Candidate(
        supernet=card.name,
        solver=solver,
        solver_args=_arguments(row.get(f"{prefix}solver_args")),
        calls=len(widths),
        grid=row[f"{prefix}grid"],
        grid_args=_arguments(row.get(f"{prefix}grid_args")),
        widths=tuple(min(card.widths, key=lambda w: abs(w - width)) for width in widths),
        per_call=True,
        guidance=_guidance(row),
        distilled=card.distilled is not None,
    )


def _network(name: str | None, solver: str, cards: Mapping[str, NetCard]) -> NetCard:
    """The network of that name, else the first that `solver` can walk."""
    if name in cards:
        return cards[name]
    kind = (solver == RELAY, solver == RENOISE)
    for card in cards.values():
        if (card.relay is not None, card.distilled is not None) == kind and card.widths:
            return card
    raise SpaceError(f"no network of the space is of the kind that '{solver}' walks")


def _guidance(row: Mapping[str, Any]) -> Guidance | None:
    if "guidance" not in row:
        return None
    guide = row.get("guide", CFG)
    ends = {"low": "guidance_low", "high": "guidance_high"}
    args: dict[str, Any] = {k: float(row[column]) for k, column in ends.items() if column in row}
    net = {} if guide == CFG else {"net": guide}
    kind = CLASSIFIER if net else CFG
    return Guidance.of(kind, {"scale": float(row["guidance"]), **args, **net})


def _arguments(text: str | None) -> dict[str, Any]:
    """Arguments of a column such as 'order=3;variant=bh2'; lists are written '1|2|3'."""
    pairs = (part.partition("=") for part in text.split(";")) if text else ()
    return {name: _argument(value) for name, _, value in pairs}


def _argument(text: str) -> Any:
    if "|" in text:
        return tuple(_argument(part) for part in text.split("|"))
    try:
        return json.loads(text)  # a number, true or false
    except ValueError:
        return text
