"""Guidance: its formulas on data whose answers are exact, its interval, labels and costs."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from stepsearch.build import plan_stage
from stepsearch.core.errors import SpaceError
from stepsearch.core.guidance import Guidance
from stepsearch.core.noise import image_noise
from stepsearch.core.schedule import StepSchedule
from stepsearch.evaluate import sample
from stepsearch.nets.gaussian import GaussianMixture
from stepsearch.objectives.registry import OBJECTIVES
from stepsearch.solvers.integrate import integrate
from stepsearch.solvers.registry import SOLVERS

CLASSES = 3
LABEL = np.array([0, 1, 1, 2, 0])  # of every component
RNG = np.random.default_rng(5)
WEIGHTS = np.array([0.3, 0.1, 0.2, 0.25, 0.15])
MEANS, VARIANCES = RNG.uniform(-1, 1, (5, 1, 2, 2)), RNG.uniform(0.02, 0.2, 5)
PROCESSES = ["vp-linear-1000", "edm"]
LABELS = torch.tensor([2, 0, 1, 1])
each_process = pytest.mark.parametrize("process", PROCESSES)


class Labelled:
    """Exact noise prediction of a mixture with labels: of all components, or of one label's."""

    def __init__(self, process="vp-linear-1000"):
        self.whole = GaussianMixture(WEIGHTS, MEANS, VARIANCES, process)
        self.parts = [
            GaussianMixture(WEIGHTS[keep], MEANS[keep], VARIANCES[keep], process)
            for keep in (np.equal(LABEL, c) for c in range(CLASSES))
        ]
        self.card = dataclasses.replace(self.whole.card, name="labelled", classes=CLASSES)
        self.asked = []

    def eps(self, x, level, *, width=1.0, cond=None):
        self.asked.append((level, None if cond is None else cond.tolist()))
        if cond is None:
            return self.whole.eps(x, level)
        return torch.cat([self.parts[c].eps(x[i:][:1], level) for i, c in enumerate(cond)])


class Posterior:
    """The exact classifier of that mixture: Bayes' rule, and its gradient."""

    def __init__(self, process="vp-linear-1000"):
        card = GaussianMixture(WEIGHTS, MEANS, VARIANCES, process).card
        self.card = dataclasses.replace(
            card, name="posterior", sha256="5" * 64, classes=CLASSES, flops=(7e9,)
        )

    def gradient(self, x, level, labels):
        alpha = self.card.diffusion.alpha(level)
        x = x.clone().requires_grad_()
        means = alpha * torch.tensor(MEANS).flatten(1)
        variances = alpha**2 * (torch.tensor(VARIANCES) + level**2)
        square = ((x.flatten(1)[:, None] - means) ** 2).sum(2)
        log = torch.tensor(WEIGHTS).log() - 2 * variances.log() - square / (2 * variances)
        own = log.masked_fill(torch.tensor(LABEL) != labels[:, None], -torch.inf)
        (own.logsumexp(1) - log.logsumexp(1)).sum().backward()
        return x.grad


class ByHand:
    """The guided prediction as a network of its own, for schedules that are not guided."""

    def __init__(self, net, scale, low=0.0, high=math.inf):
        self.net, self.scale, self.low, self.high = net, scale, low, high
        self.card = dataclasses.replace(net.card, classes=0)

    def eps(self, x, level, *, width=1.0, cond=None):
        assert cond is None
        scale = self.scale if self.low <= level <= self.high else 1.0
        free, own = self.net.whole.eps(x, level), self.net.eps(x, level, cond=LABELS)
        return (1 - scale) * free + scale * own


def run(net, guidance=None, *, classifier=None, cond=LABELS, plan=None):
    """Images in float64, from the same noise every time."""
    plan = {"solver": "ddim", "calls": 5} | (plan or {})
    card = None if classifier is None else classifier.card
    stage = plan_stage(net.card, guidance=guidance, classifier=card, **plan)
    nets = {net.card.key: net} | ({} if classifier is None else {card.key: classifier})
    x = torch.from_numpy(image_noise(0, 0, (len(LABELS), *net.card.image_shape))).double()
    x = x * net.card.diffusion.start_scale(stage.levels[0])
    return integrate(StepSchedule((stage,)), nets, x, cond=cond)


def close(a, b, tolerance=1e-9):
    assert (a - b).abs().max() <= tolerance


def cfg(scale, **interval):
    return Guidance("cfg", scale, **interval)


class TestFormulas:
    @each_process
    def test_scale_0_is_the_unconditional_network(self, process):
        net = Labelled(process)
        assert torch.equal(run(net, cfg(0)), run(net.whole, cond=None))

    @each_process
    def test_scale_1_is_the_conditional_network(self, process):
        """Image i is what the network of its class alone makes of it."""
        net, got = Labelled(process), run(Labelled(process), cfg(1))
        for i, c in enumerate(LABELS):
            close(got[i], run(net.parts[c], cond=None)[i], 1e-12)

    @each_process
    @pytest.mark.parametrize("scale", [0.5, 1.5, 4])
    def test_any_scale_is_the_line_through_both(self, process, scale):
        net = Labelled(process)
        close(run(net, cfg(scale)), run(ByHand(net, scale), cond=None))

    @each_process
    def test_an_exact_classifier_at_scale_1_makes_an_unconditional_network_conditional(
        self, process
    ):
        """Bayes: the score of p(x | label) is that of p(x) plus that of p(label | x)."""
        net, guide = Labelled(process), Posterior(process)
        got = run(net.whole, Guidance("classifier", 1, net="posterior"), classifier=guide)
        want = run(net, cfg(1))
        close(got, want)
        assert (run(net.whole, cond=None) - want).abs().max() > 0.1

    @each_process
    def test_both_kinds_agree_at_every_scale_where_the_classifier_is_exact(self, process):
        net, guide = Labelled(process), Posterior(process)
        by_classifier = Guidance("classifier", 2.5, net="posterior")
        close(run(net.whole, by_classifier, classifier=guide), run(net, cfg(2.5)))

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_every_solver_sees_guided_values_alone(self, solver):
        """Buffers too: PFDiff and the multistep solvers go on with what was guided."""
        plan = {"solver": solver, "calls": 7}
        plan |= {"pfdiff": {"k": 2, "l": 1}, "relay": {"scale": 2}}.get(solver, {})
        net = Labelled()
        want = run(ByHand(net, 3.0, 0.1, 20), cond=None, plan=plan)
        close(run(net, cfg(3.0, low=0.1, high=20), plan=plan), want)
        least = 1e-5 if solver == "renoise" else 1e-3  # which forgets all but the last calls
        assert (run(net, cfg(3.0), plan=plan) - want).abs().max() > least


class TestInterval:
    def test_only_calls_inside_are_guided(self):
        net = Labelled()
        run(net, cfg(2, low=0.5, high=10), plan={"calls": 8})
        both = [level for level, labels in net.asked if labels is None]
        own = [level for level, labels in net.asked if labels is not None]
        assert len(own) == 8
        assert both == [level for level in own if 0.5 <= level <= 10]
        assert 0 < len(both) < 8

    def test_ends_belong_to_it(self):
        level = plan_stage(Labelled().card, solver="ddim", calls=3).calls[1].level
        stage = plan_stage(
            Labelled().card, solver="ddim", calls=3, guidance=cfg(2, low=level, high=level)
        )
        assert [call.scale for call in stage.calls] == [None, 2, None]

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (cfg(2, low=0.5, high=10), cfg(2, low=0.51, high=9.9)),
            (cfg(2), cfg(2, low=0, high=1e6)),
            (cfg(1), cfg(3, low=1e5, high=1e6)),
            (cfg(1), None),
            (Guidance("classifier", 0, net="posterior"), None),
        ],
        ids=str,
    )
    def test_settings_that_guide_the_same_calls_are_one_schedule(self, one, other):
        a, b = (
            plan_stage(
                Labelled().card,
                solver="ddim",
                calls=6,
                guidance=guidance,
                classifier=Posterior().card,
            )
            for guidance in (one, other)
        )
        assert StepSchedule((a,)).key() == StepSchedule((b,)).key()

    def test_another_scale_is_another_schedule(self):
        keys = {
            StepSchedule((plan_stage(Labelled().card, solver="ddim", calls=2, guidance=g),)).key()
            for g in (None, cfg(0), cfg(2), cfg(3), cfg(3, low=1))
        }
        assert len(keys) == 5


class TestCost:
    def costs(self, guidance, calls=8):
        net, guide = Labelled().card, Posterior().card
        stage = plan_stage(net, solver="ddim", calls=calls, guidance=guidance, classifier=guide)
        cards = {card.key: card for card in (net, guide)}
        schedule = StepSchedule((stage,))
        names = ("gflops_per_image", "nfe")
        total, nfe = (OBJECTIVES[name](schedule, cards, None) for name in names)
        assert nfe == schedule.nfe == calls
        guided = sum(call.scale is not None for call in stage.calls)
        return total / net.gflops(1), guided

    @pytest.mark.parametrize(
        ("guidance", "each"),
        [(None, 1), (cfg(2), 2), (cfg(1), 1), (cfg(0), 1), (cfg(0.5), 2)],
        ids=str,
    )
    def test_of_classifier_free_guidance_is_that_of_two_calls_unless_one_is_enough(
        self, guidance, each
    ):
        assert self.costs(guidance)[0] == pytest.approx(8 * each, rel=1e-12)

    def test_in_an_interval_counts_guided_calls_twice(self):
        total, guided = self.costs(cfg(2, low=0.5, high=10))
        assert 0 < guided < 8
        assert total == pytest.approx(8 + guided, rel=1e-12)

    def test_of_a_classifier_is_added_to_guided_calls(self):
        total, guided = self.costs(Guidance("classifier", 2, high=10, net="posterior"))
        assert 0 < guided < 8
        added = Posterior().card.gflops(1) / Labelled().card.gflops(1)
        assert total == pytest.approx(8 + guided * added, rel=1e-12)

    def test_is_what_the_network_is_asked(self):
        for guidance in (cfg(2, low=0.5, high=10), cfg(0), cfg(1)):
            net = Labelled()
            run(net, guidance, plan={"calls": 8})
            assert self.costs(guidance)[0] == pytest.approx(len(net.asked), rel=1e-12)


class Recorder(Labelled):
    """Keeps the labels that it is asked with."""

    @property
    def labels(self):
        return [label for _, labels in self.asked for label in labels or []]


class TestLabels:
    def sampled(self, first, count, seed=3, calls=1, guidance=None):
        net = Recorder()
        stage = plan_stage(net.card, solver="ddim", calls=calls, guidance=guidance)
        images = sample(StepSchedule((stage,)), {net.card.key: net}, count, seed, first=first)
        return images, net.labels[:count]

    def test_depend_on_seed_and_image_alone(self):
        images, labels = self.sampled(0, 12)
        parts = [self.sampled(first, 4) for first in (0, 4, 8)]
        assert labels == [label for _, part in parts for label in part]
        assert set(labels) == set(range(CLASSES))
        assert torch.equal(images, torch.cat([part for part, _ in parts]))
        assert self.sampled(0, 12, calls=3)[1] == labels
        assert self.sampled(0, 12, guidance=cfg(3))[1] == labels
        assert self.sampled(0, 12, seed=4)[1] != labels

    def test_are_those_of_the_classifier_where_the_network_knows_none(self):
        """The same that a conditional network of as many classes gets."""
        net, guide, seen = Labelled().whole, Posterior(), []
        exact = guide.gradient
        guide.gradient = lambda x, level, labels: seen.append(labels) or exact(x, level, labels)
        guidance = Guidance("classifier", 1, net="posterior")
        stage = plan_stage(
            net.card, solver="ddim", calls=1, guidance=guidance, classifier=guide.card
        )
        nets = {net.card.key: net, guide.card.key: guide}
        sample(StepSchedule((stage,)), nets, 12, 3)
        assert torch.cat(seen).tolist() == self.sampled(0, 12)[1]

    def test_an_unconditional_network_gets_none(self):
        """GaussianMixture refuses labels."""
        net = GaussianMixture(WEIGHTS, MEANS, VARIANCES)
        stage = plan_stage(net.card, solver="ddim", calls=1)
        assert len(sample(StepSchedule((stage,)), {net.card.key: net}, 2, 0)) == 2


class TestRefusals:
    def test_classifier_free_guidance_of_an_unconditional_network(self):
        net = GaussianMixture(WEIGHTS, MEANS, VARIANCES)
        with pytest.raises(SpaceError, match="'gaussian' is unconditional"):
            run(net, cfg(2))

    @pytest.mark.parametrize("guidance", [cfg(2), Guidance("classifier", 2, net="posterior")])
    def test_guidance_without_labels(self, guidance):
        guide = Posterior() if guidance.net else None
        with pytest.raises(SpaceError, match="is guided; give labels"):
            run(Labelled(), guidance, classifier=guide, cond=None)

    def test_labels_without_guidance_of_an_unconditional_network(self):
        with pytest.raises(SpaceError, match="cond"):
            run(GaussianMixture(WEIGHTS, MEANS, VARIANCES))

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (None, "no classifier 'posterior' is given"),
            ({"name": "other"}, "no classifier 'posterior' is given"),
            ({"process": "edm"}, "has process edm"),
            ({"image_shape": (3, 2, 2)}, "has image_shape"),
        ],
        ids=str,
    )
    def test_a_classifier_that_does_not_fit(self, change, says):
        guidance = Guidance("classifier", 2, net="posterior")
        card = None if change is None else dataclasses.replace(Posterior().card, **change)
        with pytest.raises(SpaceError, match=says):
            plan_stage(Labelled().card, solver="ddim", calls=2, guidance=guidance, classifier=card)

    def test_a_schedule_whose_classifier_is_not_there(self):
        net, guidance = Labelled(), Guidance("classifier", 2, net="posterior")
        stage = plan_stage(
            net.card, solver="ddim", calls=2, guidance=guidance, classifier=Posterior().card
        )
        x = torch.zeros(4, 1, 2, 2)
        for nets in ({}, {Posterior().card.key: net}):
            with pytest.raises(SpaceError, match="asks for classifier 'posterior@55555555'"):
                integrate(StepSchedule((stage,)), {net.card.key: net} | nets, x, cond=LABELS)
