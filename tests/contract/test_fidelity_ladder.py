"""What a worker measures: rungs of few images, KID, latency and memory beside FID."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import SHAPE, WIDTHS, make
from support import copy_toy

from stepsearch.build import plan_stage
from stepsearch.config import read_space
from stepsearch.core.errors import ConfigError, RunError
from stepsearch.core.guidance import CFG, CLASSIFIER, Guidance
from stepsearch.core.latency import LatencyTable, TimedCard, timed
from stepsearch.core.protocols import NetCard
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.settings import Rung
from stepsearch.evaluate import Evaluator, data_statistics, prepare_evaluation, replicate_name
from stepsearch.nets.families import FAMILIES
from stepsearch.objectives.bootstrap import fid_replicates
from stepsearch.objectives.features import make_extractor
from stepsearch.objectives.fid import Fid
from stepsearch.objectives.kid import Kid
from stepsearch.objectives.latency import LatencyMs, measure_latency
from stepsearch.objectives.memory import peak_memory
from stepsearch.objectives.reference import Statistics
from stepsearch.objectives.registry import Samples
from stepsearch.supernet import ensure_supernet
from stepsearch.training.data import load_dataset

LADDER = (Rung(60, "kid", 0.5), Rung(100, "fid", 0.5))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A network and 400 digits; the cache is of this module alone."""
    folder = tmp_path_factory.mktemp("ladder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPSEARCH_CACHE", str(folder / "cache"))
        (recipe,) = read_space(copy_toy(folder)).recipes
        digits = load_dataset("digits")
        data = replace(digits, images=digits.images[:400], labels=digits.labels[:400])
        path, card = ensure_supernet(recipe, data)
        yield folder, data, path, card


@pytest.fixture(scope="module")
def settings(home):
    space = read_space(home[0] / "search_spaces" / "toy.yaml", ["evaluation.device=cpu"])
    return replace(space.evaluation, images=150, batch=40)


@pytest.fixture(scope="module")
def spec_of(home, settings):
    """Builds what a worker is told."""

    def build(*objectives, **changes):
        _, data, path, _ = home
        spec, _ = prepare_evaluation(replace(settings, **changes), objectives, data)
        return replace(spec, nets=(str(path),))

    return build


@pytest.fixture(scope="module")
def schedule(home):
    card = home[3]
    return StepSchedule((plan_stage(card, solver="ddim", calls=4, widths=[1, 0.5, 0.5, 0.25]),))


class TestRungs:
    def test_a_rung_is_its_own_objective_of_its_first_images(self, spec_of, schedule):
        evaluator = Evaluator(spec_of("fid", "gflops_per_image", ladder=LADDER))
        whole = evaluator.samples(schedule, 0, 150)
        for i, (rung, objective) in enumerate(zip(LADDER, (Kid(), Fid()), strict=True)):
            found = evaluator(schedule, i)
            few = Samples(whole.features[: rung.images], whole.reference)
            want = objective(schedule, {}, few)
            assert list(found.values) == [rung.name]
            assert found.values[rung.name] == pytest.approx(want, rel=1e-5)
            assert (found.n_samples, found.seed) == (rung.images, 0)
        assert [rung.name for rung in LADDER] == ["kid_60", "fid_100"]

    def test_without_a_rung_it_is_the_full_evaluation(self, spec_of, schedule):
        with_ladder = Evaluator(spec_of("fid", "gflops_per_image", ladder=LADDER))(schedule)
        plain = Evaluator(spec_of("fid", "gflops_per_image"))(schedule)
        assert with_ladder.values == plain.values
        assert list(plain.values) == ["fid", "fid_se", "gflops_per_image"]
        assert plain.n_samples == 150

    def test_replicates_come_with_a_measurement_where_asked_for(self, spec_of, schedule):
        spec = spec_of("fid")
        evaluator = Evaluator(replace(spec, replicates=5))
        found = evaluator.measure(schedule, 3)
        samples = evaluator.samples(schedule, 3, 150)
        want = fid_replicates(samples.features, samples.reference, 3, 5)
        assert [found.values[replicate_name(b)] for b in range(5)] == pytest.approx(list(want))
        assert len(found.values) == 2 + 5


class TestKid:
    def test_the_metric_is_the_same_with_and_without(self, spec_of):
        plain, with_kid = spec_of("fid"), spec_of("fid", "kid")
        assert plain.metric_id == with_kid.metric_id
        assert spec_of("fid", ladder=LADDER).reference == with_kid.reference != plain.reference
        with np.load(plain.reference) as file:
            assert sorted(file) == ["cov", "mean"]  # as ever
        with np.load(with_kid.reference) as file:
            assert file["features"].shape == (400, 64)

    def test_statistics_without_real_features_are_refused_where_kid_is_asked_for(
        self, home, settings, spec_of
    ):
        folder, data, *_ = home
        extractor = make_extractor(_request(settings, data))
        found = data_statistics(extractor, data, 100)
        found.save(folder / "new.npz")
        old = replace(found, reference=replace(found.reference, features=None))
        old.save(folder / "old.npz")
        assert Statistics.load(folder / "old.npz").reference.features is None
        kept = Statistics.load(folder / "new.npz").reference.features
        assert np.array_equal(kept, found.reference.features)
        for name in ("new.npz", "old.npz"):
            assert spec_of("fid", reference=str(folder / name)).metric_id
        assert spec_of("kid", "fid", reference=str(folder / "new.npz")).metric_id
        for objectives, ladder in ((("kid", "fid"), ()), (("fid",), LADDER)):
            with pytest.raises(ConfigError, match=r"old\.npz: has no features .*stepsearch stats"):
                spec_of(*objectives, ladder=ladder, reference=str(folder / "old.npz"))

    @pytest.mark.parametrize(
        "features",
        [
            np.zeros((5, 63), np.float32),
            np.zeros((5, 64)),
            np.zeros((1, 64), np.float32),
            np.full((5, 64), np.nan, np.float32),
        ],
        ids=["other dimension", "other type", "one", "not finite"],
    )
    def test_features_that_make_no_sense_are_refused(self, home, settings, features):
        folder, data, *_ = home
        found = data_statistics(make_extractor(_request(settings, data)), data, 100)
        bad = replace(found, reference=replace(found.reference, features=features))
        bad.save(folder / "bad.npz")
        with pytest.raises(ConfigError, match=r"bad\.npz: no readable statistics .*features"):
            Statistics.load(folder / "bad.npz")


def _request(settings, data):
    from stepsearch.core.files import cache_folder
    from stepsearch.objectives.registry import FeatureRequest

    facts = {"images": data.images, "labels": data.labels, "data_sha256": data.sha256}
    return FeatureRequest(settings.features, None, **facts, cache=cache_folder())


def card_of(name, classes=0, widths=(0.5, 1.0)):
    return NetCard(
        name,
        name * 8,
        "unet",
        "vp-linear-1000",
        (1, 8, 8),
        widths,
        (1e9, 4e9)[: len(widths)],
        classes=classes,
    )


class TestLatency:
    """Times of 2 and 7 ms at widths 0.5 and 1; a classifier's gradient takes 3."""

    table = LatencyTable("a machine", "cpu", 8, {"a@aaaaaaaa": (2.0, 7.0), "c@cccccccc": (3.0,)})

    def cost(self, **plan):
        cards = {c.key: timed(c, self.table) for c in (card_of("a", 10), card_of("c", 10, (1.0,)))}
        net = cards["a@aaaaaaaa"]
        stage = plan_stage(net, solver="ddim", calls=3, widths=[1, 0.5, 0.5], **plan)
        return LatencyMs()(StepSchedule((stage,)), cards, None)

    def test_is_the_sum_over_the_calls(self):
        assert self.cost() == 7 + 2 + 2

    def test_guidance_asks_twice_or_the_classifier_as_flops_count_it(self):
        assert self.cost(guidance=Guidance.of(CFG, {"scale": 2})) == 2 * (7 + 2 + 2)
        assert self.cost(guidance=Guidance.of(CFG, {"scale": 0})) == 7 + 2 + 2
        by_classifier = {"guidance": Guidance.of(CLASSIFIER, {"scale": 1, "net": "c"})}
        by_classifier["classifier"] = card_of("c", 10, (1.0,))
        assert self.cost(**by_classifier) == (7 + 2 + 2) + 3 * 3

    def test_nothing_is_known_of_calls_that_were_not_timed(self, schedule, home):
        with pytest.raises(ConfigError, match=r"latency_ms: .*not timed"):
            LatencyMs()(schedule, {home[3].key: home[3]}, None)
        with pytest.raises(RunError, match="measured with others"):
            timed(home[3], self.table)

    def test_a_timed_card_is_the_same_network(self):
        card = card_of("a")
        found = timed(card, self.table)
        assert isinstance(found, TimedCard)
        assert (found.key, found.gflops(0.5)) == (card.key, card.gflops(0.5))
        assert found.milliseconds_at(0.5) == 2

    def test_a_table_is_plain_data(self):
        assert LatencyTable.from_json(self.table.to_json(), "x") == self.table
        for text in ("{", "[]", "{}", self.table.to_json().replace("2.0", "-2.0")):
            with pytest.raises(RunError, match=r"RUN/latency\.json: no table of latencies"):
                LatencyTable.from_json(text, "RUN/latency.json")

    def test_every_width_of_every_network_is_timed(self):
        modules = {"unet": {"base": 8, "groups": 2}, "noisy-classifier": {"classes": 3, "base": 8}}
        modules["noisy-classifier"]["groups"] = 2
        nets = {}
        for family, config in modules.items():
            widths = WIDTHS if family == "unet" else (1.0,)
            classes = config.get("classes", 0)
            flops = tuple(1e6 for _ in widths)
            card = NetCard(family, "0" * 8, family, "vp-linear-1000", SHAPE, widths, flops, config)
            card = replace(card, classes=classes)
            nets[card.key] = FAMILIES[family].adapt(card, make(family, config), "cpu")
        found = measure_latency(nets, 4, "cpu", repeats=3)
        assert {key: len(times) for key, times in found.milliseconds.items()} == {
            key: len(net.card.widths) for key, net in nets.items()
        }
        assert all(t > 0 for times in found.milliseconds.values() for t in times)
        assert (found.batch, found.device) == (4, "cpu")
        assert "1 thread" in found.hardware

    def test_a_worker_with_a_table_measures_latency_and_can_make_one(self, spec_of, schedule):
        spec = spec_of("fid", "latency_ms")
        table = Evaluator(spec).measure_latency()
        (times,) = table.milliseconds.values()
        (card,) = Evaluator(spec).cards.values()
        by_width = dict(zip(card.widths, times, strict=True))
        found = Evaluator(replace(spec, latency=table))(schedule)
        want = sum(by_width[w] for w in schedule.widths)
        assert found.values["latency_ms"] == pytest.approx(want)
        assert json.loads(table.to_json())["batch"] == 40


class TestMemory:
    def test_is_the_most_that_was_allocated_at_a_time(self):
        def work():
            first = torch.zeros(1000, 1000)  # 4 MB
            second = torch.zeros(500, 1000)  # and 2 beside it
            del first
            third = torch.zeros(250, 1000)  # 3 in all
            return float(second.sum() + third.sum())

        result, peak = peak_memory(work, "cpu")
        assert result == 0
        assert peak == pytest.approx(6.0, abs=0.01)

    def test_what_was_there_before_counts_for_nothing(self):
        before = torch.zeros(1000, 1000)
        _, peak = peak_memory(lambda: before[:250].clone(), "cpu")
        assert peak == pytest.approx(1.0, abs=0.01)

    def test_does_not_depend_on_what_was_freed_before(self):
        """The size of the process would: it keeps what is freed."""

        def work():
            return torch.zeros(2000, 1000).sum()

        assert peak_memory(work, "cpu")[1] == peak_memory(work, "cpu")[1]

    def test_a_device_that_tells_nothing_is_refused(self):
        with pytest.raises(ConfigError, match=r"peak_memory_mb: cannot be measured .*leave it"):
            peak_memory(lambda: None, "meta")

    def test_a_measurement_has_that_of_one_batch_and_the_same_images(self, spec_of, schedule):
        plain = Evaluator(spec_of("fid"))(schedule)
        found = Evaluator(spec_of("fid", "peak_memory_mb"))(schedule)
        assert found.values["fid"] == plain.values["fid"]
        double = Evaluator(spec_of("fid", "peak_memory_mb", batch=80))(schedule)
        ratio = double.values["peak_memory_mb"] / found.values["peak_memory_mb"]
        assert 1.5 < ratio < 2.5
        image = 4 * 64 / 1e6  # megabytes of one
        assert found.values["peak_memory_mb"] > 40 * image
