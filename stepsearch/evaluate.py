"""StepSchedule -> Measurement: owns networks, the feature extractor and reference statistics."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stepsearch.core.errors import ConfigError, SpaceError
from stepsearch.core.files import cache_folder, write_atomic
from stepsearch.core.latency import LatencyTable, timed
from stepsearch.core.noise import generator, image_labels, image_noise
from stepsearch.core.protocols import Classifier, FeatureExtractor, Net, NetCard
from stepsearch.core.schedule import CFG, Stage, StepSchedule
from stepsearch.core.settings import EvaluationSettings
from stepsearch.core.trial import Measurement, NonFinite
from stepsearch.nets.counting import counted
from stepsearch.nets.load import file_sha256, load_net
from stepsearch.objectives.bootstrap import fid_replicates
from stepsearch.objectives.features import make_extractor
from stepsearch.objectives.fid import Reference, moments
from stepsearch.objectives.latency import measure_latency
from stepsearch.objectives.memory import check_memory, peak_memory
from stepsearch.objectives.reference import Statistics
from stepsearch.objectives.registry import OBJECTIVES, FeatureRequest, Samples
from stepsearch.solvers.guidance import reads_labels
from stepsearch.solvers.integrate import integrate
from stepsearch.training.data import Dataset

SIDE_VALUES = {"fid": ("fid_se",)}  # measured along with an objective
FLOOR_SPLITS = 4
MEMORY = "peak_memory_mb"


@dataclass(frozen=True, slots=True)
class EvaluatorSpec:
    """All that a worker needs to build its evaluator: names and paths, nothing loaded."""

    nets: tuple[str, ...]
    objectives: tuple[str, ...]
    settings: EvaluationSettings
    reference: str  # npz with mean and cov, for kid with features of real images too
    data_sha256: str
    metric_id: str
    device: str
    image_shape: tuple[int, ...]  # (C, H, W) of the images that are scored
    latency: LatencyTable | None = None  # of this run, where latency is measured
    replicates: int = 0  # of the bootstrap of FID, which a measurement then has with it
    extractor: tuple[str, ...] = ()  # files of the cache that the extractor is read from

    @property
    def cache(self) -> Path:
        """The folder that `extractor` is in."""
        return Path(self.extractor[0]).parent if self.extractor else cache_folder()

    def files(self) -> tuple[tuple[str, str], ...]:
        """(path, sha256) of all that an evaluator reads."""
        paths = [Path(self.reference), *map(Path, self.extractor)]
        if self.settings.weights is not None:
            paths.append(Path(self.settings.weights))
        for net in map(Path, self.nets):
            paths += [net.with_suffix(".safetensors"), net.with_suffix(".json")]
        return tuple((str(path), file_sha256(path)) for path in paths)

    def located(self, paths: Mapping[str, str]) -> EvaluatorSpec:
        """The same where each of `files` is at another path, files of one stem together."""
        weights = self.settings.weights
        nets = (str(Path(net).with_suffix(".safetensors")) for net in self.nets)
        return replace(
            self,
            nets=tuple(paths[net] for net in nets),
            reference=paths[self.reference],
            extractor=tuple(paths[path] for path in self.extractor),
            settings=replace(self.settings, weights=None if weights is None else paths[weights]),
        )


def pick_device(device: str) -> str:
    """`auto` is the GPU where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda is not available here; use cpu or auto")
    return device


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> 0..255, rounded to the nearest; files hold nothing finer.

    Raises:
        NonFinite: a sampler that diverged; cast to whole numbers it would look like an image.
    """
    if not bool(torch.isfinite(images).all()):
        raise NonFinite("images: the sampler diverged to values that are not finite")
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def sample(
    schedule: StepSchedule,
    nets: Mapping[str, Net | Classifier],
    count: int,
    seed: int,
    *,
    first: int = 0,
    device: str = "cpu",
) -> Tensor:
    """Images first .. first + count - 1 of the last stage as uint8 (count, C, H, W).

    Noise and label of image j depend on (seed, j) alone, so every schedule starts from the same.
    """
    stage = schedule.stages[0]
    card = nets[stage.net].card
    if card.relay is not None:
        raise SpaceError(
            f"network '{card.name}' is the second stage of a relay and does not start from noise; "
            f"put a first stage before it"
        )
    noise = torch.from_numpy(image_noise(seed, first, (count, *card.image_shape)))
    start = noise.to(device) * card.diffusion.start_scale(stage.levels[0])
    labels = None
    if reads_labels(schedule, nets):
        classes = max(nets[key].card.classes for s in schedule.stages for key in _keys(s))
        labels = torch.from_numpy(image_labels(seed, first, count, classes)).to(device)
    return to_uint8(integrate(schedule, nets, start, seed=seed, first_image=first, cond=labels))


def _keys(stage: Stage) -> list[str]:
    """Networks that a stage asks."""
    return [stage.net] if stage.guide in (None, CFG) else [stage.net, stage.guide]


class Evaluator:
    """Scores schedules; one per worker, networks and statistics loaded once."""

    def __init__(self, spec: EvaluatorSpec) -> None:
        if spec.device == "cpu":
            torch.set_num_threads(1)  # one worker a core; two threads beside a busy core crawl
        self._spec = spec
        nets = [load_net(path, device=spec.device) for path in spec.nets]
        self._nets: dict[str, Net | Classifier] = {net.card.key: net for net in nets}
        self.cards: dict[str, NetCard] = {
            key: counted(net.card, spec.settings.counting) for key, net in self._nets.items()
        }
        if spec.latency is not None:
            self.cards = {key: timed(card, spec.latency) for key, card in self.cards.items()}
        nothing = np.empty((0, *spec.image_shape), np.uint8)
        about = (nothing, None, spec.data_sha256, spec.device)
        self._extractor = _extractor(spec.settings, *about, cache=spec.cache)
        with np.load(spec.reference, allow_pickle=False) as file:
            features = file.get("features")
            self._reference = Reference(file["mean"], file["cov"], features)

    def __call__(self, schedule: StepSchedule, rung: int | None = None) -> Measurement:
        """Measure with the seed of the settings, all there is or a rung of the ladder alone."""
        settings = self._spec.settings
        if rung is None:
            return self.measure(schedule, settings.seed)
        step = settings.ladder[rung]
        found = self._measure(schedule, settings.seed, step.images, (step.objective,))
        return replace(found, values={step.name: found.values[step.objective]})

    def measure(self, schedule: StepSchedule, seed: int) -> Measurement:
        """Sample `images` images, score them; image j starts from the noise of (seed, j)."""
        names = [n for o in self._spec.objectives for n in (o, *SIDE_VALUES.get(o, ()))]
        return self._measure(schedule, seed, self._spec.settings.images, names)

    def measure_latency(self) -> LatencyTable:
        """Times of all networks on this worker's hardware, in batches as of the evaluation."""
        return measure_latency(self._nets, self._spec.settings.batch, self._spec.device)

    def _measure(
        self, schedule: StepSchedule, seed: int, images: int, names: Sequence[str]
    ) -> Measurement:
        start, clock = datetime.now(UTC), time.perf_counter()
        samples = None
        if any(OBJECTIVES[name].needs_images for name in names):
            samples = self.samples(schedule, seed, images, memory=MEMORY in names)
        values = {name: OBJECTIVES[name](schedule, self.cards, samples) for name in names}
        if self._spec.replicates and samples is not None:
            values |= self._replicates(samples, seed)
        return Measurement(
            values=values,
            n_samples=images,
            seed=seed,
            metric_id=self._spec.metric_id,
            seconds=round(time.perf_counter() - clock, 3),
            started_at=start.isoformat(timespec="seconds"),
            counting=self._spec.settings.counting,
        )

    def _replicates(self, samples: Samples, seed: int) -> dict[str, float]:
        count, device = self._spec.replicates, self._spec.device
        found = fid_replicates(samples.features, samples.reference, seed, count, device)
        return {replicate_name(b): float(value) for b, value in enumerate(found)}

    def samples(
        self, schedule: StepSchedule, seed: int, images: int, *, memory: bool = False
    ) -> Samples:
        """Features of images 0 .. images - 1; with `memory`, what the first batch took of it."""
        batch, peak = self._spec.settings.batch, None
        parts = []
        for first in range(0, images, batch):
            make = partial(self._sample, schedule, min(batch, images - first), seed, first)
            if memory and not first:
                made, peak = peak_memory(make, self._spec.device)
            else:
                made = make()
            parts.append(self._extractor(made))
        return Samples(np.concatenate(parts), self._reference, peak)

    def _sample(self, schedule: StepSchedule, count: int, seed: int, first: int) -> Tensor:
        return sample(schedule, self._nets, count, seed, first=first, device=self._spec.device)


def replicate_name(number: int) -> str:
    """Of a replicate's deviation among the values of a measurement."""
    return f"fid_replicate_{number:03d}"


def prepare_evaluation(
    settings: EvaluationSettings, objectives: tuple[str, ...], data: Dataset
) -> tuple[EvaluatorSpec, dict[str, float]]:
    """Train or load the extractor and write reference statistics; returns a spec without networks
    and facts of the real images.

    The facts hold the noise floor, the mean distance between two random halves of the real images.
    """
    device = pick_device(settings.device)
    if MEMORY in objectives:
        check_memory(device)
    extractor = _extractor(settings, data.images, data.labels, data.sha256, device)
    if settings.reference is None:
        real = data_statistics(extractor, data, settings.batch)
    else:
        real = Statistics.load(Path(settings.reference))
        real.check_extractor(settings.reference, extractor)
    reference = real.reference
    identity = {"extractor": [extractor.name, extractor.sha256], "reference": reference.sha256}
    identity |= {"pixels": "uint8", "images": (real.images, *real.shape)}
    text = json.dumps(identity, sort_keys=True)
    metric_id = f"{settings.features}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    path = _write_reference(settings, objectives, real, metric_id)
    facts = {"reference_images": float(real.images), "feature_dimensions": float(extractor.dim)}
    if real.real_vs_real is not None:
        facts["real_vs_real"] = real.real_vs_real
    if data.corrupt:
        facts["corrupt_images"] = float(len(data.corrupt))
    if (accuracy := getattr(extractor, "accuracy", None)) is not None:
        facts["classifier_accuracy"] = accuracy
    spec = EvaluatorSpec(
        nets=(),
        objectives=objectives,
        settings=settings,
        reference=str(path),
        data_sha256=data.sha256,
        metric_id=metric_id,
        device=device,
        image_shape=tuple(data.images.shape[1:]),
        extractor=tuple(map(str, getattr(extractor, "files", ()))),
    )
    return spec, facts


def _write_reference(
    settings: EvaluationSettings, objectives: Sequence[str], real: Statistics, metric_id: str
) -> Path:
    """What a worker compares with, in the cache; ConfigError where it is not all there."""
    arrays, stem = {"mean": real.reference.mean, "cov": real.reference.cov}, metric_id
    if "kid" in (*objectives, *(rung.objective for rung in settings.ladder)):
        real.check_kid(str(settings.reference))
        assert real.reference.features is not None
        arrays["features"], stem = real.reference.features, f"{metric_id}-features"
    path = cache_folder() / f"reference-{stem}.npz"
    if not path.is_file():
        write_atomic(path, _npz(**arrays))
    return path


def write_statistics(settings: EvaluationSettings, data: Dataset, path: Path) -> Statistics:
    """Train or load the extractor and write the statistics of the images to `path`."""
    device = pick_device(settings.device)
    extractor = _extractor(settings, data.images, data.labels, data.sha256, device)
    found = data_statistics(extractor, data, settings.batch)
    found.save(path)
    return found


def data_statistics(extractor: FeatureExtractor, data: Dataset, batch: int) -> Statistics:
    """Reference statistics of all images of a data set."""
    features = real_features(extractor, data, batch)
    return Statistics(
        reference=Reference.of(features),
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
        data=data.name,
        data_sha256=data.sha256,
        images=len(features),
        shape=tuple(data.images.shape[1:]),
        real_vs_real=noise_floor(features),
    )


def real_features(extractor: FeatureExtractor, data: Dataset, batch: int) -> np.ndarray:
    """Features (N, D) of all images of a data set."""
    images = torch.from_numpy(data.images)
    return np.concatenate([extractor(images[i : i + batch]) for i in range(0, len(images), batch)])


def noise_floor(features: np.ndarray) -> float | None:
    """Mean distance between two random halves; None where a half cannot fit a covariance."""
    half = len(features) // 2
    if half <= features.shape[1]:
        return None
    distances = []
    for split in range(FLOOR_SPLITS):
        order = generator(split).permutation(len(features))
        one, other = features[order[:half]], features[order[half : 2 * half]]
        distances.append(Reference.of(one).distance(*moments(other.astype(np.float64))))
    return float(np.mean(distances))


def _extractor(
    settings: EvaluationSettings,
    images: np.ndarray,
    labels: np.ndarray | None,
    data_sha256: str,
    device: str,
    cache: Path | None = None,
) -> FeatureExtractor:
    request = FeatureRequest(
        name=settings.features,
        weights=settings.weights,
        images=images,
        labels=labels,
        data_sha256=data_sha256,
        cache=cache or cache_folder(),
        device=device,
    )
    return make_extractor(request)


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
