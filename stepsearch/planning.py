"""What a search will take before anything is spent: a cheap and a dear candidate are timed."""

from __future__ import annotations

import io
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stepsearch.core.errors import NoFeasibleCandidate
from stepsearch.core.files import cache_folder
from stepsearch.core.latency import timed
from stepsearch.core.noise import generator
from stepsearch.core.protocols import Classifier, FeatureExtractor, Genome, Net, NetCard
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.settings import EvaluationSettings, RunSettings
from stepsearch.core.trial import Measurement, Trial
from stepsearch.evaluate import MEMORY, SIDE_VALUES, pick_device, sample
from stepsearch.journal import journal_line
from stepsearch.nets.counting import counted
from stepsearch.nets.load import load_net
from stepsearch.objectives.classifier import Classifier as ImageClassifier
from stepsearch.objectives.classifier import ClassifierFeatures
from stepsearch.objectives.features import make_extractor
from stepsearch.objectives.fid import Reference
from stepsearch.objectives.latency import measure_latency
from stepsearch.objectives.registry import OBJECTIVES, FeatureRequest, Samples
from stepsearch.search import COST, Compiler, search_problem
from stepsearch.simulate import MEASURED, simulate
from stepsearch.space_size import Size, space_size
from stepsearch.store import trial_frame
from stepsearch.supernet import supernet_path, write_untrained
from stepsearch.training.data import Dataset

DRAWS = 1000  # random genomes
BOOTSTRAPS = 1000
WALLS = 50  # simulated searches
REPEATS = 3  # of a timing
PATIENCE = 6.0  # seconds that one timing may take; fewer images where all would take longer
FIRST_IMAGES = 8  # of the warm-up, which tells how many images there is patience for
CANARIES = 2  # evaluations before a search
LATENCY = "latency_ms"
ROWS = 100  # trials that the size of files is told from


@dataclass(frozen=True, slots=True)
class Timing:
    """One candidate: seconds of a whole evaluation, scaled from `images`."""

    gflops_per_image: float
    seconds: tuple[float, ...]  # of the repeats
    images: int  # that were sampled for it


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle, and what nine of ten cases stay below."""

    p50: float
    p90: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What a search will take; hours are of one core, or of one GPU."""

    device: str
    trials: int  # at most
    training_steps: Mapping[str, int]  # of networks that are not trained yet
    cheap: Timing
    dear: Timing
    hours: Spread  # of all workers together
    workers: int
    wall_hours: Spread
    disk_mb: float
    size: Size
    accepted: float  # part of random genomes that meets the constraints
    drawn: int  # random genomes that say so


def plan_search(
    settings: RunSettings,
    images: Mapping[str, Dataset],
    scored: Dataset,
    workers: int,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Time two candidates and draw the rest.

    Networks that are not trained yet are timed with untrained weights of the same shapes: how long
    a call takes does not depend on them.

    Args:
        images: by name of network, as `space_images` loads them.
        scored: those that candidates are compared with.

    Raises:
        NoFeasibleCandidate: no random genome meets the constraints.
    """
    device = pick_device(settings.evaluation.device)
    with tempfile.TemporaryDirectory() as folder:
        nets, steps = _networks(settings, images, Path(folder), device)
    cards = _cards(settings, nets, device)
    rng = generator(settings.search.seed)
    compiler = Compiler(settings, cards)
    genomes, accepted = _drawn(settings, compiler, rng)
    schedules = [compiler.schedule(genome) for genome in genomes]
    gflops = np.array([compiler.value(COST, schedule) for schedule in schedules])
    timer = _Timer(settings, nets, cards, scored, device)
    timings = []
    for which, place in (("cheap", gflops.argmin()), ("dear", gflops.argmax())):
        say(f"timing a {which} candidate, {gflops[place]:.4g} GFLOPs per image")
        timings.append(timer.time(schedules[place], float(gflops[place])))
    trials = settings.search.population * settings.search.generations
    cheap, dear = timings
    return Plan(
        device=device,
        trials=trials,
        training_steps=steps,
        cheap=cheap,
        dear=dear,
        hours=_hours(cheap, dear, gflops, trials, rng),
        workers=workers,
        wall_hours=_wall(settings, cheap, dear, gflops, workers, rng),
        disk_mb=_disk(settings, genomes, compiler, trials) / 1e6,
        size=space_size(settings.space, cards, rng),
        accepted=accepted,
        drawn=DRAWS,
    )


def _networks(
    settings: RunSettings, images: Mapping[str, Dataset], folder: Path, device: str
) -> tuple[dict[str, Net | Classifier], dict[str, int]]:
    """Networks by key, and the steps that those not there would be trained."""
    nets: dict[str, Net | Classifier] = {}
    steps: dict[str, int] = {}
    for recipe in settings.networks:
        path = supernet_path(recipe, images[recipe.name])
        if not path.is_file():
            path = folder / path.name
            write_untrained(recipe, images[recipe.name], path)
            config = recipe.distill or recipe.train
            if config is not None:
                steps[recipe.name] = config.steps
        net = load_net(path, device=device)
        nets[net.card.key] = net
    return nets, steps


def _cards(
    settings: RunSettings, nets: Mapping[str, Net | Classifier], device: str
) -> dict[str, NetCard]:
    """Cards by name, with their times of calls where the space asks for latency."""
    counting, batch = settings.evaluation.counting, settings.evaluation.batch
    cards = {net.card.name: counted(net.card, counting) for net in nets.values()}
    if LATENCY not in (*settings.measured, *settings.constraints):
        return cards
    table = measure_latency(nets, batch, device)
    return {name: timed(card, table) for name, card in cards.items()}


def _drawn(
    settings: RunSettings, compiler: Compiler, rng: np.random.Generator
) -> tuple[list[Genome], float]:
    """Genomes that meet the constraints, those a search begins with among them; and the part of
    random ones that does."""
    problem = search_problem(settings, compiler)
    drawn = [tuple(int(rng.integers(n)) for n in problem.sizes) for _ in range(DRAWS)]
    good = [genome for genome in drawn if compiler.identity(genome) is not None]
    first = [genome for genome in problem.first if compiler.identity(genome) is not None]
    if not good and not first:
        raise NoFeasibleCandidate(
            f"constraints: none of {DRAWS} random genomes meets them; widen them"
        )
    return good or first, len(good) / DRAWS


class _Timer:
    """Times evaluations of schedules: sampling, features and what is made of them."""

    def __init__(
        self,
        settings: RunSettings,
        nets: Mapping[str, Net | Classifier],
        cards: Mapping[str, NetCard],
        data: Dataset,
        device: str,
    ) -> None:
        if device == "cpu":
            torch.set_num_threads(1)  # as an evaluator does
        self._settings, self._nets, self._device = settings.evaluation, nets, device
        self._cards = {card.key: card for card in cards.values()}
        self._extractor = _extractor(self._settings, data, device)
        self._names = [n for o in settings.measured for n in (o, *SIDE_VALUES.get(o, ()))]
        rows = generator(0).standard_normal((2 * self._extractor.dim + 2, self._extractor.dim))
        covariance = np.cov(rows, rowvar=False)
        self._reference = Reference(rows.mean(0), covariance, rows.astype(np.float32))

    def time(self, schedule: StepSchedule, gflops: float) -> Timing:
        """REPEATS timings after a warm-up, of as many images as there is patience for."""
        batch = self._settings.batch
        self._sampled(schedule, FIRST_IMAGES)
        each = self._sampled(schedule, FIRST_IMAGES) / FIRST_IMAGES
        count = max(FIRST_IMAGES, int(PATIENCE / max(each, 1e-9)))
        count = count // batch * batch if count > batch else count
        count = min(count, max(n for n, _, _ in self._rungs()))
        seconds = [self._whole(schedule, count) for _ in range(REPEATS)]
        return Timing(gflops, tuple(seconds), count)

    def _rungs(self) -> list[tuple[int, float, list[str]]]:
        """(images, part of the candidates, objectives) of each step of an evaluation."""
        rungs, part = [], 1.0
        for rung in self._settings.ladder:
            rungs.append((rung.images, part, [rung.objective]))
            part *= rung.keep
        return [*rungs, (self._settings.images, part, self._names)]

    def _whole(self, schedule: StepSchedule, count: int) -> float:
        """Seconds of a candidate; of one of many, where a ladder lets some go no further."""
        each = self._sampled(schedule, count) / count
        return sum(
            part * (each * images + self._scored(schedule, images, names))
            for images, part, names in self._rungs()
        )

    def _sampled(self, schedule: StepSchedule, count: int) -> float:
        """Seconds of sampling `count` images and taking their features."""
        batch, clock = self._settings.batch, time.perf_counter()
        for first in range(0, count, batch):
            size = min(batch, count - first)
            made = sample(schedule, self._nets, size, 0, first=first, device=self._device)
            self._extractor(made)
        return time.perf_counter() - clock

    def _scored(self, schedule: StepSchedule, images: int, names: Sequence[str]) -> float:
        """Seconds of what is made of features, which here are noise."""
        features = generator(1).standard_normal((images, self._extractor.dim), dtype=np.float32)
        clock = time.perf_counter()
        samples = Samples(features, self._reference)
        for name in names:
            if OBJECTIVES[name].needs_images and name != MEMORY:
                OBJECTIVES[name](schedule, self._cards, samples)
        return time.perf_counter() - clock


def _extractor(settings: EvaluationSettings, data: Dataset, device: str) -> FeatureExtractor:
    """The extractor of the space; the classifier of a data set untrained, which is as fast."""
    if settings.features == "classifier" and data.labels is not None:
        model = ImageClassifier(data.images.shape[1], int(data.labels.max()) + 1)
        return ClassifierFeatures(model, "", 0.0, device)
    return make_extractor(
        FeatureRequest(
            name=settings.features,
            weights=settings.weights,
            images=data.images,
            labels=data.labels,
            data_sha256=data.sha256,
            cache=cache_folder(),
            device=device,
        )
    )


def _line(cheap: Timing, dear: Timing, seconds: Sequence[float]) -> tuple[float, float]:
    """a and b of seconds = a + b GFLOPs through a time of each of the two candidates.

    Neither is negative: where the dear one is no slower, all take their mean, and where the line
    would begin below zero it goes through the dear one alone.
    """
    low, high = cheap.gflops_per_image, dear.gflops_per_image
    if high <= low or seconds[1] <= seconds[0]:
        return statistics.fmean(seconds), 0.0
    slope = (seconds[1] - seconds[0]) / (high - low)
    start = seconds[0] - slope * low
    return (start, slope) if start >= 0 else (0.0, seconds[1] / high)


def _costs(
    cheap: Timing, dear: Timing, gflops: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Seconds of `count` candidates: genomes and the two timings drawn anew."""
    a, b = _line(cheap, dear, [float(rng.choice(t.seconds)) for t in (cheap, dear)])
    return a + b * rng.choice(gflops, count)


def _hours(
    cheap: Timing, dear: Timing, gflops: np.ndarray, trials: int, rng: np.random.Generator
) -> Spread:
    """Work of a search, canaries included, by bootstrap of the draw and of the timings."""
    totals = [
        float(_costs(cheap, dear, gflops, trials + CANARIES, rng).sum()) / 3600
        for _ in range(BOOTSTRAPS)
    ]
    return _spread(totals)


def _wall(
    settings: RunSettings,
    cheap: Timing,
    dear: Timing,
    gflops: np.ndarray,
    workers: int,
    rng: np.random.Generator,
) -> Spread:
    """Time of a search on so many workers, each as fast as if it were alone."""
    search = settings.search
    trials = search.population * search.generations
    walls = []
    for _ in range(WALLS):
        costs = _costs(cheap, dear, gflops, trials + CANARIES, rng)
        before, searched = costs[:CANARIES].sum(), costs[CANARIES:].tolist()
        found = simulate(searched, workers, search.mode, search.population, MEASURED)
        walls.append((before + found.makespan) / 3600)
    return _spread(walls)


def _spread(values: Sequence[float]) -> Spread:
    p50, p90 = np.quantile(values, [0.5, 0.9])
    return Spread(float(p50), float(p90))


def _disk(
    settings: RunSettings, genomes: Sequence[Genome], compiler: Compiler, trials: int
) -> float:
    """Bytes of journal and tables, told from ROWS trials whose values are made up."""
    made = []
    for number, genome in enumerate(genomes[:ROWS]):
        schedule, candidate = compiler.schedule(genome), settings.space.decode(genome)
        values = dict.fromkeys(settings.objectives, math.pi * 100) | {"fid_se": math.e}
        result = Measurement(values, settings.evaluation.images, 0, "x" * 24, 1.234, "x" * 25)
        made.append(
            Trial(
                trial_id=number,
                generation=0,
                key=schedule.key(),
                schedule=schedule.to_json(),
                candidate=candidate,
                call_widths=schedule.widths,
                result=result,
                trained=settings.trained(candidate.supernet),
                genome=genome,
            )
        )
    frame, buffer = trial_frame(made, settings.objectives), io.BytesIO()
    frame.to_parquet(buffer, index=False)
    size = sum(len(journal_line(trial)) for trial in made) + len(buffer.getvalue())
    return (size + len(frame.to_csv(index=False))) / len(made) * trials
