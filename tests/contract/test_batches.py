"""What training steps see: every promise of the loader, and of Immiscible Diffusion's pools."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from stepsearch.core.errors import ConfigError
from stepsearch.core.process import get_process
from stepsearch.core.settings import Immiscible, TrainConfig
from stepsearch.training.batches import Batches
from stepsearch.training.data import load_dataset
from stepsearch.training.immiscible import assign_noise, nearest_noise
from stepsearch.training.noising import AddNoise

PROCESS = get_process("vp-linear-1000")
CONFIG = TrainConfig(steps=100, batch=32)
WIDTHS = (0.25, 0.5, 1.0)


@pytest.fixture(scope="module")
def images():
    """Each with its number in the first pixel, so that it is known again."""
    found = np.random.default_rng(0).integers(0, 256, (256, 1, 4, 4)).astype(np.uint8)
    found[:, 0, 1, 1] = np.arange(256)
    return found


def batches(images, config=CONFIG, pool=None, **how):
    if pool is not None:
        config = replace(config, immiscible=Immiscible(pool))
    return Batches(images, WIDTHS, AddNoise(PROCESS), config, **how)


def clean(part):
    """Images (B, C, H, W) as uint8, the noise taken out again."""
    level = torch.tensor([PROCESS.level_at(int(t)) for t in part.time], dtype=torch.float64)
    level = level[:, None, None, None]
    x0 = (1 + level**2).sqrt() * part.noisy.double() - level * part.target.double()
    return ((x0 + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def same(a, b):
    """Equal in every bit."""
    if (a.seed, [w for w, _ in a.parts]) != (b.seed, [w for w, _ in b.parts]):
        return False
    for (_, one), (_, other) in zip(a.parts, b.parts, strict=True):
        for name in ("noisy", "time", "target", "chance"):
            if not torch.equal(getattr(one, name), getattr(other, name)):
                return False
    return True


class TestImages:
    @pytest.mark.parametrize(("count", "per_epoch"), [(256, 8), (100, 3), (32, 1)])
    def test_epochs_without_replacement(self, images, count, per_epoch):
        loader = batches(images[:count])
        rows = np.array([loader._draw(step).rows for step in range(5 * per_epoch)])
        epochs = rows.reshape(5, -1)
        assert all(len(set(epoch)) == 32 * per_epoch for epoch in epochs.tolist())
        assert set(np.unique(epochs)) <= set(range(count))
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == 5

    def test_the_ragged_end_is_another_one_each_epoch(self, images):
        """Over some epochs every image is used."""
        loader = batches(images[:100])
        used = {int(n) for step in range(30) for n in loader._draw(step).rows}
        assert used == set(range(100))

    def test_all_widths_of_a_step_see_the_same_images_at_fresh_noise(self, images):
        step = batches(images)(3)
        assert len(step.parts) == 3
        for (_, a), (_, b) in itertools.combinations(step.parts, 2):
            assert not torch.equal(a.time, b.time)
            assert (a.target * b.target).mean().abs() < 0.1
        low = [part.time < 300 for _, part in step.parts]
        both = low[0] & low[1]
        one, other = (clean(part)[both] for _, part in step.parts[:2])
        assert both.any()
        assert torch.equal(one, other)

    def test_a_step_is_a_function_of_its_number(self, images):
        one, other = batches(images, pool=48), batches(images, pool=48)
        forward = [one(step) for step in range(6)]
        backward = [other(step) for step in reversed(range(6))][::-1]
        assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
        assert not same(forward[0], forward[1])

    def test_made_ahead_they_are_the_same(self, images):
        loader, again = batches(images, pool=100), batches(images, pool=100)
        ahead = list(loader.ahead(3, 12))
        assert all(same(a, again(step)) for step, a in enumerate(ahead, 3))
        assert len(ahead) == 9

    def test_an_error_in_the_loader_reaches_the_step(self, images):
        with pytest.raises(IndexError):
            list(batches(images, labels=np.zeros(3)).ahead(0, 20))

    def test_too_few_images(self, images):
        with pytest.raises(ConfigError, match=r"train.batch: 32 exceeds the 31 images"):
            batches(images[:31])

    def test_half_of_the_images_are_mirrored(self, images):
        plain, flipped = batches(images), batches(images, replace(CONFIG, flip=True))
        mirrored = 0
        for step in range(16):
            a, b = plain._draw(step).x0, flipped._draw(step).x0
            turned = (b == a.flip(3)).flatten(1).all(1)
            assert ((b == a).flatten(1).all(1) | turned).all()
            mirrored += int(turned.sum())
        assert binomtest(mirrored, 16 * 32).pvalue > 1e-4


class TestPools:
    def test_a_pool_of_one_is_plain_training_to_the_bit(self, images):
        plain, one = batches(images), batches(images, pool=1)
        assert all(same(plain(step), one(step)) for step in range(10))

    @pytest.mark.parametrize("pool", [2, 16, 32, 48, 64, 100, 256])
    def test_every_noise_of_a_pool_is_used_once_at_the_least_distance(self, images, pool):
        """Whatever the batch: pools run on over batches and epochs."""
        steps = -(-3 * pool // 32)
        plain, loader = batches(images), batches(images, pool=pool)
        for width in range(3):
            x = torch.cat([plain._draw(s).x0 for s in range(steps)]).flatten(1)
            before = torch.cat([plain(s).parts[width][1].target for s in range(steps)]).flatten(1)
            after = torch.cat([loader(s).parts[width][1].target for s in range(steps)]).flatten(1)
            for first in range(0, 3 * pool, pool):
                own = slice(first, first + pool)
                perm = assign_noise(x[own], before[own])
                assert sorted(perm.tolist()) == list(range(pool))
                assert torch.equal(after[own], before[own][perm])

    def test_only_noise_changes(self, images):
        plain, loader = batches(images)(5), batches(images, pool=64)(5)
        for (w, a), (v, b) in zip(plain.parts, loader.parts, strict=True):
            assert w == v
            assert torch.equal(a.time, b.time)
            assert torch.equal(a.chance, b.chance)
            assert not torch.equal(a.target, b.target)
            low = (a.time < 200).numpy()
            assert np.array_equal(clean(a)[low], clean(b)[low])

    def test_within_classes_noise_keeps_its_label(self, images):
        groups = np.arange(256) % 3
        plain, loader = batches(images), batches(images, pool=64, groups=groups)
        kept = 0
        for step in range(4):
            rows = plain._draw(step).rows
            label = torch.from_numpy(groups[rows])
            before, after = (b(step).parts[0][1].target.flatten(1) for b in (plain, loader))
            origin = {tuple(n.tolist()): int(g) for n, g in zip(before, label, strict=True)}
            for noise, group in zip(after, label, strict=True):
                if (key := tuple(noise.tolist())) in origin:  # others come from the pool's rest
                    assert origin[key] == int(group)
                    kept += 1
        assert kept > 20

    def test_candidates_of_knn_are_the_image_s_own(self, images):
        plain = batches(images)
        loader = batches(images, replace(CONFIG, immiscible=Immiscible(4, "knn")))
        unchanged, nearer = 0, []
        for step in range(8):
            x, a, b = plain._draw(step).x0, plain(step).parts[0][1], loader(step).parts[0][1]
            unchanged += int((a.target == b.target).flatten(1).all(1).sum())
            distances = [(x - n).flatten(1).norm(dim=1).mean() for n in (a.target, b.target)]
            nearer.append(float(distances[0] - distances[1]))
        assert binomtest(unchanged, 256, 0.25).pvalue > 1e-4
        assert min(nearer) > 0


class TestAssignment:
    def test_golden_permutations(self, golden):
        found = golden("immiscible")
        for case in found["cases"]:
            x, noise = torch.tensor(case["x"]), torch.tensor(case["noise"])
            assert assign_noise(x, noise).tolist() == case["perm_by_cost"]["neg_inner_fp64"]

    def test_within_labels_each_label_is_a_pool_of_its_own(self):
        rng = torch.Generator().manual_seed(1)
        x, noise = (torch.randn(40, 6, generator=rng) for _ in range(2))
        labels = torch.randint(3, (40,), generator=rng) - 1
        perm = assign_noise(x, noise, labels=labels)
        for label in (-1, 0, 1):
            own = (labels == label).nonzero()[:, 0]
            assert torch.equal(perm[own], own[assign_noise(x[own], noise[own])])

    @pytest.mark.parametrize("count", [1, 2, 5, 7])
    def test_no_pairing_is_nearer(self, count):
        rng = torch.Generator().manual_seed(count)
        x, noise = (torch.randn(count, 2, 3, generator=rng) for _ in range(2))
        square = (x[:, None] - noise[None]).square().sum((2, 3))
        rows = list(range(count))
        best = min(float(square[rows, list(perm)].sum()) for perm in itertools.permutations(rows))
        perm = assign_noise(x, noise)
        assert sorted(perm.tolist()) == rows
        assert float(square[rows, perm].sum()) == pytest.approx(best, rel=1e-6)

    def test_arrays_lists_and_doubles_are_welcome(self):
        rng = np.random.default_rng(0)
        x, noise, labels = rng.random((12, 3)), rng.random((12, 3)), [0, 1, 1] * 4
        want = assign_noise(torch.tensor(x), torch.tensor(noise), labels=torch.tensor(labels))
        got = assign_noise(x, noise, labels=labels)
        assert got.dtype == torch.long
        assert torch.equal(got, want)

    def test_scaled_images_are_paired_alike(self):
        rng = torch.Generator().manual_seed(0)
        x, noise = (torch.randn(64, 3, 4, 4, generator=rng) for _ in range(2))
        assert torch.equal(assign_noise(x, noise), assign_noise(2 * x, noise))

    def test_the_gain_is_that_of_real_images(self, data):
        """About 2.4 deviations of <x, n> at 256 for CIFAR-10 (Li et al. 2024; reference notes)."""
        path = data / "cifar10-jpeg-test.parquet"
        if not path.is_file():
            pytest.skip(f"{path} is not there; set STEPSEARCH_DATA")
        images = load_dataset("parquet", path).images[:256]
        x = torch.from_numpy(images).float() / 127.5 - 1
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        given = noise[assign_noise(x, noise)]
        gain = (x * given).flatten(1).sum(1) / x.flatten(1).norm(dim=1)
        assert float(gain.mean()) == pytest.approx(2.38, abs=0.15)

    @pytest.mark.parametrize(
        ("x", "noise", "labels", "says"),
        [
            ((3, 2), (4, 2), None, r"\(3, 2\) and \(4, 2\)"),
            ((3,), (3,), None, r"\(N, \.\.\.\)"),
            ((3, 2), (3, 2), (2,), r"labels need shape \(3,\), got \(2,\)"),
        ],
    )
    def test_shapes_that_do_not_fit(self, x, noise, labels, says):
        labels = None if labels is None else torch.zeros(labels)
        with pytest.raises(ValueError, match=says):
            assign_noise(torch.zeros(x), torch.zeros(noise), labels=labels)

    def test_nothing_is_paired_with_what_is_no_number(self):
        with pytest.raises(ValueError, match="not finite"):
            assign_noise(torch.tensor([[1.0], [float("nan")]]), torch.zeros(2, 1))

    def test_nearest_is_the_nearest(self):
        rng = torch.Generator().manual_seed(3)
        x, noise = torch.randn(9, 2, 4, 4, generator=rng), torch.randn(9, 5, 2, 4, 4, generator=rng)
        want = [int((noise[i] - x[i]).flatten(1).norm(dim=1).argmin()) for i in range(9)]
        assert nearest_noise(x, noise).tolist() == want
        assert Counter(want).keys() != {0}

    def test_candidates_that_do_not_fit(self):
        with pytest.raises(ValueError, match=r"\(N, k, "):
            nearest_noise(torch.zeros(3, 2), torch.zeros(4, 5, 2))
