"""A run as an Optuna study, for optuna-dashboard and optuna.visualization."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from stepsearch.core.errors import ConfigError, RunError
from stepsearch.core.kinds import KINDS
from stepsearch.core.trial import COMPLETE, FAILED, Failure, Measurement, Trial
from stepsearch.journal import read_journal
from stepsearch.store import JOURNAL, is_run

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

MARK = "stepsearch_run"  # user attribute of a study that was made here
MOST = 1e6  # of a number whose range a space does not limit


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    study: str
    added: int
    total: int


def export_optuna(run: Path, url: str, name: str | None = None) -> Exported:
    """Write the trials of a run that the study lacks; safe to repeat, also while a search runs.

    Widths and schedule are attributes, not a parameter a step: a thousand parameters make a study
    that cannot be looked at.

    Args:
        url: of an Optuna storage, sqlite:///file.db.
        name: of the study; None is the name of the run directory.

    Raises:
        ConfigError: no run, no such storage, or a study of something else.
    """
    if not is_run(run):
        raise ConfigError(f"{run}: no run directory (no {JOURNAL}); see `stepsearch run --help`")
    trials, _ = read_journal(run / JOURNAL)
    objectives, supernets, resolved = _facts(run)
    name = name or run.resolve().name
    with _storage(url):
        study = _open_study(url, name, objectives)
        there = _there(study, trials, name)
        make = _Maker(objectives, _distributions(resolved, supernets))
        new = [trial for trial in trials if trial.trial_id not in there]
        for trial in new:
            study.add_trial(make.frozen(trial))
    return Exported(name, len(new), len(there) + len(new))


def _facts(run: Path) -> tuple[list[str], list[str], Mapping[str, Any]]:
    """Objectives, names of supernets, and the space with its defaults."""
    try:
        env = json.loads((run / "env.json").read_text(encoding="utf-8"))
        resolved = yaml.safe_load((run / "resolved.yaml").read_text(encoding="utf-8"))
        return list(env["objectives"]), sorted(env["supernets"]), resolved
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        raise RunError(f"{run}: env.json or resolved.yaml: {error}; restore the file") from None


@contextmanager
def _storage(url: str) -> Iterator[None]:
    """Quiet while a storage works; its errors are one line."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    except (SQLAlchemyError, ImportError, optuna.exceptions.StorageInternalError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"--to optuna: {_shown(url)}: {first}; give the URL of a database that can be written "
            f"to, as sqlite:///study.db"
        ) from None
    finally:
        optuna.logging.set_verbosity(level)


def _shown(url: str) -> str:
    """A URL without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def _open_study(url: str, name: str, objectives: Sequence[str]) -> Study:
    """The study of that name, made where there is none."""
    import optuna

    storage = optuna.storages.get_storage(url)
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        directions = ["minimize"] * len(objectives)
        study = optuna.create_study(storage=storage, study_name=name, directions=directions)
        study.set_metric_names(list(objectives))
        study.set_user_attr(MARK, {"objectives": list(objectives)})
    if study.user_attrs.get(MARK) != {"objectives": list(objectives)}:
        raise _other(name)
    return study


def _there(study: Study, trials: Sequence[Trial], name: str) -> set[int]:
    """Numbers of the trials that the study holds; ConfigError where one is not of this run."""
    known = {(t.trial_id, t.key, t.result.started_at) for t in trials}
    found = [
        tuple(t.user_attrs.get(k) for k in ("trial_id", "key", "started_at"))
        for t in study.get_trials(deepcopy=False)
    ]
    if not known.issuperset(found):
        raise _other(name)
    return {trial_id for trial_id, *_ in found}


def _other(name: str) -> ConfigError:
    return ConfigError(
        f"--to optuna: study '{name}' is there and not of this run; name another with --study, or "
        f"give another database"
    )


def _distributions(
    resolved: Mapping[str, Any], supernets: Sequence[str]
) -> dict[str, BaseDistribution]:
    """What a parameter may be: the same for all trials of the space, whenever they are written."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    sections = [resolved["schedule"], resolved.get("distilled", {})]
    calls = [n for section in sections for n in section.get("calls", [])]
    solvers = _names(sections, "solver")
    if "distilled" in resolved:
        from stepsearch.solvers.renoise import NAME

        solvers |= {NAME}
    some, number = IntDistribution(0, int(MOST)), FloatDistribution(0, MOST)
    return {
        "supernet": CategoricalDistribution(supernets),
        "kind": CategoricalDistribution(KINDS),
        "calls": IntDistribution(min(calls), max(calls)),
        "grid": CategoricalDistribution(sorted(_names(sections, "grid"))),
        "solver": CategoricalDistribution(sorted(solvers)),
        "mean_width": FloatDistribution(0, 1),
        "immiscible_batch": some,
        "pfdiff_k": some,
        "pfdiff_l": some,
        "pfdiff_c": FloatDistribution(0, 1),
        "relay_start": number,
        "relay_calls": some,
        "guidance": number,
    }


def _names(sections: Sequence[Mapping[str, Any]], key: str) -> set[str]:
    """Of settings that are a name, alone or with arguments."""
    entries = [entry for section in sections for entry in section.get(key, [])]
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes Optuna's trials of ours."""

    objectives: Sequence[str]
    distributions: Mapping[str, BaseDistribution]

    def frozen(self, trial: Trial) -> FrozenTrial:
        """A trial with few parameters; what is not a choice of the search is an attribute."""
        from optuna.trial import TrialState, create_trial

        row, result = trial.row(None) | {"calls": trial.candidate.calls}, trial.result
        params = {name: row[name] for name in self.distributions if row[name] is not None}
        states = {COMPLETE: TrialState.COMPLETE, FAILED: TrialState.FAIL}
        values = None
        if isinstance(result, Measurement):
            values = [float(result.values[name]) for name in self.objectives]
        made = create_trial(
            state=states.get(trial.state, TrialState.PRUNED),  # left by the fidelity ladder
            values=values,
            params=params,
            distributions={name: self.distributions[name] for name in params},
            user_attrs=self._attributes(trial, row),
        )
        start = _local(result.started_at)
        if start is not None:
            made.datetime_start = start
            made.datetime_complete = start + timedelta(seconds=result.seconds)
        return made

    def _attributes(self, trial: Trial, row: Mapping[str, Any]) -> dict[str, Any]:
        told = set(self.distributions) | {"rank", "is_pareto", "state", "widths"}
        attributes = {k: v for k, v in row.items() if k not in told and v is not None}
        attributes |= {
            "started_at": trial.result.started_at,
            "widths": list(trial.call_widths),
            "schedule": trial.schedule,
        }
        if isinstance(trial.result, Failure):
            return attributes | {"attempts": trial.result.attempts}
        others = {k: float(v) for k, v in trial.result.values.items()}
        return attributes | {k: v for k, v in others.items() if k not in self.objectives}


def _local(started_at: str) -> datetime | None:
    """A time in UTC as Optuna keeps it, that of the clock on the wall; None where unknown."""
    if not started_at:
        return None
    moment = datetime.fromisoformat(started_at)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.astimezone().replace(tzinfo=None)
