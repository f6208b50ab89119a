"""Feature extractors: one contract for all of ours, and torch-fidelity's behind it."""

import dataclasses
import json
import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision_shim import ensure_torchvision

from stepsearch.core.errors import ConfigError
from stepsearch.objectives import classifier, fidelity
from stepsearch.objectives.features import make_extractor
from stepsearch.objectives.fid import frechet_distance, moments
from stepsearch.objectives.registry import EXTRACTORS, FeatureRequest
from stepsearch.training.data import load_dataset

INCEPTION = "inception-v3-compat"
DIGITS = load_dataset("digits")
IMAGES = torch.from_numpy(DIGITS.images)
GREY = IMAGES[:8]


def ask_for(name, cache, **changes):
    plain = FeatureRequest(name, None, DIGITS.images, DIGITS.labels, DIGITS.sha256, cache)
    return dataclasses.replace(plain, **changes)


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """Two cache folders that know nothing of each other."""
    return [tmp_path_factory.mktemp(name) for name in ("one", "two")]


@pytest.fixture(scope="module", params=sorted(EXTRACTORS))
def built_twice(request, caches):
    """An extractor built in either cache."""
    return [make_extractor(ask_for(request.param, cache)) for cache in caches]


@pytest.fixture(scope="module")
def cache(caches):
    """A cache that holds the classifier of digits."""
    make_extractor(ask_for("classifier", caches[0]))
    return caches[0]


class TestOurs:
    def test_features_are_float32_rows(self, built_twice):
        extractor = built_twice[0]
        assert extractor.name in EXTRACTORS
        for count in (1, 7):
            features = extractor(IMAGES[:count])
            assert isinstance(features, np.ndarray)
            assert features.shape == (count, extractor.dim)
            assert features.dtype == np.float32
            assert np.isfinite(features).all()

    def test_batch_size_does_not_matter(self, built_twice):
        extractor = built_twice[0]
        whole = extractor(IMAGES[:60])
        for size in (1, 17, 59):
            parts = np.concatenate([extractor(b) for b in IMAGES[:60].split(size)])
            np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)

    def test_images_matter_and_stay_untouched(self, built_twice):
        before = IMAGES[:20].clone()
        features = built_twice[0](IMAGES[:20])
        assert torch.equal(IMAGES[:20], before)
        assert len(np.unique(features, axis=0)) == 20

    def test_two_builds_agree(self, built_twice):
        one, two = built_twice
        assert one.sha256 == two.sha256
        assert len(one.sha256) == 64
        np.testing.assert_array_equal(one(IMAGES[:100]), two(IMAGES[:100]))


class TestClassifier:
    def test_card_tells_the_accuracy(self, cache):
        (card,) = cache.glob("classifier-*.json")
        assert json.loads(card.read_text())["accuracy"] > 0.9

    def test_cached_weights_are_not_trained_again(self, cache, monkeypatch):
        monkeypatch.setattr(classifier, "_train", lambda *_: pytest.fail("trained again"))
        assert make_extractor(ask_for("classifier", cache)).accuracy > 0.9

    def test_other_data_is_another_classifier(self, cache, tmp_path, monkeypatch):
        monkeypatch.setattr(classifier, "_train", lambda *_: 0.5)
        other = make_extractor(ask_for("classifier", tmp_path, data_sha256="other"))
        assert other.sha256 != make_extractor(ask_for("classifier", cache)).sha256

    def test_no_labels_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="has no labels; use a pretrained extractor"):
            make_extractor(ask_for("classifier", tmp_path, labels=None))
        assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def torch_fidelity():
    ensure_torchvision()
    return pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")


def inception_weights(torch_fidelity, seed):
    """He-initialised weights of torch-fidelity's Inception: activations keep their size."""

    class Blank(torch_fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            """Nothing to load: only names and shapes are wanted."""

    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        module = sys.modules[torch_fidelity.FeatureExtractorInceptionV3.__module__]
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        shapes = {k: v.shape for k, v in Blank(INCEPTION, ["2048"]).state_dict().items()}
    rng = torch.Generator().manual_seed(seed)

    def draw(key, shape):
        if len(shape) > 1:
            return torch.randn(shape, generator=rng) * (2 / shape[1:].numel()) ** 0.5
        if key.endswith("num_batches_tracked"):
            return torch.tensor(0)
        return torch.ones(shape) if key.endswith(("bn.weight", "var")) else torch.zeros(shape)

    return {key: draw(key, shape) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def weights(torch_fidelity, tmp_path_factory):
    """Two files of Inception weights, from different seeds."""
    paths = [tmp_path_factory.mktemp("weights") / f"{seed}.pth" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        torch.save(inception_weights(torch_fidelity, seed), path)
    return paths


@pytest.fixture(scope="module")
def inception(weights, tmp_path_factory):
    return make_extractor(ask_for(INCEPTION, tmp_path_factory.mktemp("c"), weights=str(weights[0])))


@pytest.fixture(scope="module")
def grey_features(inception):
    return inception(GREY)


class TestInception:
    def test_features_are_float32_rows(self, inception, grey_features):
        assert (inception.name, inception.dim, inception.layer) == (INCEPTION, 2048, "2048")
        assert grey_features.shape == (8, 2048)
        assert grey_features.dtype == np.float32
        assert grey_features.std(0).max() > 1e-3

    def test_equals_torch_fidelity_itself(self, torch_fidelity, weights, grey_features):
        path = str(weights[0])
        theirs = torch_fidelity.FeatureExtractorInceptionV3(
            INCEPTION, ["2048"], feature_extractor_weights_path=path
        )
        (want,) = theirs(GREY.repeat(1, 3, 1, 1))
        np.testing.assert_array_equal(grey_features, want.numpy())

    def test_calls_and_batches_agree(self, inception, grey_features):
        np.testing.assert_array_equal(inception(GREY), grey_features)
        parts = np.concatenate([inception(GREY[:3]), inception(GREY[3:])])
        np.testing.assert_allclose(parts, grey_features, rtol=1e-4, atol=1e-5)

    def test_hash_is_that_of_the_weights_not_of_the_file(self, inception, weights, tmp_path):
        path = tmp_path / "same.safetensors"
        save_file(torch.load(weights[0], weights_only=True), path)
        same = make_extractor(ask_for(INCEPTION, tmp_path, weights=str(path)))
        assert same.sha256 == inception.sha256
        np.testing.assert_array_equal(same(GREY[:1]), inception(GREY[:1]))

    def test_other_weights_are_another_extractor(self, inception, weights, tmp_path):
        other = make_extractor(ask_for(INCEPTION, tmp_path, weights=str(weights[1])))
        assert other.sha256 != inception.sha256
        assert not np.allclose(other(GREY[:1]), inception(GREY[:1]), rtol=0.01)

    def test_torch_fidelity_never_unpickles_the_given_file(self, weights, tmp_path, monkeypatch):
        load, unsafe = torch.load, []

        def watched(file, *args, **options):
            if options.get("weights_only") is False:
                unsafe.append(str(file))
            return load(file, *args, **options)

        monkeypatch.setattr(torch, "load", watched)
        make_extractor(ask_for(INCEPTION, tmp_path, weights=str(weights[0])))
        assert unsafe  # its own loading still takes place, so what it opens matters
        assert str(weights[0]) not in unsafe

    def test_one_changed_number_changes_the_hash(self, inception, weights, tmp_path):
        state = torch.load(weights[0], weights_only=True)
        state["Mixed_7c.branch_pool.bn.bias"][-1] += 1e-6
        torch.save(state, tmp_path / "w.pth")
        changed = make_extractor(ask_for(INCEPTION, tmp_path, weights=str(tmp_path / "w.pth")))
        assert changed.sha256 != inception.sha256

    def test_a_published_file_already_there_is_used(
        self, inception, weights, tmp_path, monkeypatch
    ):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "weights-inception-2015-12-05-6726825d.pth").symlink_to(weights[0])
        assert make_extractor(ask_for(INCEPTION, tmp_path)).sha256 == inception.sha256


def message(*args, **changes):
    with pytest.raises(ConfigError) as caught:
        make_extractor(ask_for(*args, **changes))
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"evaluation.features: '{args[0]}'")
    return text


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.usefixtures("torch_fidelity")
class TestRefusals:
    def test_unknown_name(self, tmp_path):
        text = message("inception-v3", tmp_path)
        assert f"did you mean '{INCEPTION}'?" in text
        assert "classifier" in text
        assert "vgg16" in text

    def test_channels(self, tmp_path):
        images = np.zeros((3, 4, 8, 8), np.uint8)
        assert "1 or 3 channels and the data set has 4" in message(
            INCEPTION, tmp_path, images=images
        )

    def test_missing_file(self, tmp_path):
        path = str(tmp_path / "none.pth")
        assert f"weights {path}: no such file" in message(INCEPTION, tmp_path, weights=path)

    def test_pickled_code_is_refused_and_not_run(self, tmp_path):
        path, canary = tmp_path / "evil.pth", tmp_path / "canary"
        torch.save({"fc.bias": Canary(str(canary))}, path)
        text = message(INCEPTION, tmp_path, weights=str(path))
        assert "not a state dict that loads without running code (UnpicklingError)" in text
        assert not canary.exists()

    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    @pytest.mark.parametrize("size", [0, 1, 100, 3000])
    def test_damaged_file(self, tmp_path, suffix, size):
        path = tmp_path / f"w.{suffix}"
        state = {"fc.bias": torch.zeros(1008)}
        torch.save(state, path) if suffix == "pth" else save_file(state, path)
        path.write_bytes(path.read_bytes()[:size])
        assert f"weights {path}: not a state dict" in message(
            INCEPTION, tmp_path, weights=str(path)
        )

    @pytest.mark.parametrize("content", [[torch.zeros(2)], {"epoch": 3}, torch.zeros(2)])
    def test_file_of_something_else(self, tmp_path, content):
        torch.save(content, tmp_path / "w.pth")
        text = message(INCEPTION, tmp_path, weights=str(tmp_path / "w.pth"))
        assert "not a state dict" in text

    def test_weights_of_another_network(self, tmp_path):
        torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "w.pth")
        text = message(INCEPTION, tmp_path, weights=str(tmp_path / "w.pth"))
        assert "of another network" in text

    @pytest.mark.parametrize("name", ["clip-vit-b-32", "dinov2-vit-s-14"])
    def test_program_from_a_file(self, tmp_path, name):
        text = message(name, tmp_path, weights=str(tmp_path / "w.pt"))
        assert "never run from a given file; leave weights out" in text

    @pytest.mark.parametrize("name", [INCEPTION, "vgg16"])
    def test_no_network(self, tmp_path, monkeypatch, name):
        def offline(*args, **kwargs):
            raise urllib.error.URLError("no network")

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
        text = message(name, tmp_path)
        assert "cannot download its weights (URLError: <urlopen error no network>)" in text
        assert text.endswith("pass a local file with weights: PATH")

    def test_old_torch_reads_safetensors_alone(self, tmp_path, monkeypatch):
        torch.save({}, tmp_path / "w.pth")
        monkeypatch.setattr(fidelity, "SAFE_LOAD", (99,))
        text = message(INCEPTION, tmp_path, weights=str(tmp_path / "w.pth"))
        assert "give it as .safetensors or install torch>=99" in text


@pytest.fixture
def unimported(monkeypatch):
    """torch-fidelity as in a fresh process; what was imported before returns afterwards."""
    for name in [m for m in sys.modules if m.partition(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("unimported")
class TestWithoutTorchFidelity:
    def test_objectives_import(self):
        """In a process of its own, where nothing has been imported yet."""
        code = "import sys; sys.modules.update(torch_fidelity=None, torchvision=None)"
        code += "; import stepsearch.objectives"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

    def test_not_installed(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch_fidelity", None)
        text = message("clasifier", tmp_path)
        assert "did you mean 'classifier'?" in text
        assert "(built in: classifier)" in text
        assert "module 'torch_fidelity' is not installed" in text
        assert "pip install 'stepsearch[fidelity]'" in text

    def test_torchvision_of_another_torch(self, tmp_path, monkeypatch):
        package = tmp_path / "torch_fidelity"
        package.mkdir()
        cause = "operator torchvision::nms does not exist"
        (package / "__init__.py").write_text(f"raise RuntimeError({cause!r})\n")
        monkeypatch.syspath_prepend(tmp_path)
        for _ in range(2):
            text = message(INCEPTION, tmp_path)
            assert f"cannot load on torch {torch.__version__} ({cause})" in text
            assert "install the torchvision build that matches" in text


@pytest.fixture(scope="module")
def correlated():
    """Two sets of correlated features, float32 as an extractor gives them, (4000, 64) each."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((64, 64)) / 8 + np.eye(64)
    one, two = rng.standard_normal((2, 4000, 64))
    return one.astype(np.float32), (0.8 * two @ mix + 0.3).astype(np.float32)


def their_fid(one, two):
    from torch_fidelity import metric_fid

    stats = [metric_fid.fid_features_to_statistics(torch.from_numpy(f)) for f in (one, two)]
    return metric_fid.fid_statistics_to_metric(*stats, verbose=False)[metric_fid.KEY_METRIC_FID]


def our_fid(one, two):
    return frechet_distance(*moments(one.astype(np.float64)), *moments(two.astype(np.float64)))


def their_kid(one, two):
    from torch_fidelity import metric_kid

    features = (torch.from_numpy(f) for f in (one, two))
    out = metric_kid.kid_features_to_metric(
        *features, kid_subsets=20, kid_subset_size=500, verbose=False
    )
    return out[metric_kid.KEY_METRIC_KID_MEAN], out[metric_kid.KEY_METRIC_KID_STD]


def their_prc(one, two):
    from torch_fidelity import metric_prc

    features = (torch.from_numpy(f) for f in (one, two))
    out = metric_prc.prc_features_to_metric(*features, verbose=False)
    return out[metric_prc.KEY_METRIC_PRECISION], out[metric_prc.KEY_METRIC_RECALL]


@pytest.mark.usefixtures("torch_fidelity")
class TestTheirMetrics:
    def test_fid_is_ours(self, correlated):
        """Their mean is float32; given float64 features only rounding is left."""
        np.testing.assert_allclose(our_fid(*correlated), their_fid(*correlated), rtol=1e-6)
        exact = [f.astype(np.float64) for f in correlated]
        np.testing.assert_allclose(our_fid(*exact), their_fid(*exact), rtol=1e-11)

    def test_fid_of_classifier_features_is_ours(self, cache):
        extractor = make_extractor(ask_for("classifier", cache))
        noisy = (IMAGES.int() + IMAGES.flip(0).int() // 2).clamp(max=255).to(torch.uint8)
        one, two = extractor(IMAGES), extractor(noisy)
        np.testing.assert_allclose(our_fid(one, two), their_fid(one, two), rtol=1e-6)

    def test_kid_of_one_distribution_is_near_zero(self, correlated):
        mean, std = their_kid(correlated[0][:2000], correlated[0][2000:])
        assert abs(mean) < std

    def test_kid_grows_with_the_shift(self, correlated):
        one, two = correlated[0][:2000], correlated[0][2000:]
        kids = [their_kid(one, two + np.float32(shift))[0] for shift in (0, 0.25, 0.5, 1)]
        assert kids == sorted(kids)
        assert kids[1] > 5 * abs(kids[0])

    def test_precision_and_recall_at_their_limits(self, correlated):
        one = correlated[0][:1000]
        assert their_prc(one, one) == (1, 1)
        assert their_prc(one, one + np.float32(100)) == (0, 0)

    def test_precision_without_recall(self, correlated):
        """A point mass inside the data is precise and covers nothing."""
        real = correlated[0][:1000]
        assert their_prc(real[:1] + 1e-3 * real[:200], real) == (1, pytest.approx(0, abs=0.01))
