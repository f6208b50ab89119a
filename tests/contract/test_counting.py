"""FLOPs as the DDSM paper counts them: its numbers, and a run that asks for them."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from networks import EXAMPLES, SHAPE, each_width, make
from support import make_trials, read_csv

from stepsearch import load_run
from stepsearch.config import dump_space, read_space
from stepsearch.core.counting import COUNTINGS
from stepsearch.core.errors import ConfigError
from stepsearch.core.protocols import NetCard
from stepsearch.core.settings import content_hash
from stepsearch.core.trial import Trial
from stepsearch.nets.counting import counted, ddsm_flops, ddsm_macs
from stepsearch.nets.families import FAMILIES, count_flops
from stepsearch.nets.unet import UNet, UNetArch
from stepsearch.objectives import classifier
from stepsearch.report import plot_front
from stepsearch.run import Resources, start_run
from stepsearch.store import RunStore
from stepsearch.tables import front_text, savings

PAPER = "ddsm-paper"


def cifar(channels):
    with torch.device("meta"):
        return UNet(UNetArch(3, channels, (1, 2, 2, 2), 2, (1,), 16))


class TestThePaper:
    """Its table: 6.07 G, 3.42 G, 1.52 G and 382.58 M MACs; its FLOPs are twice that."""

    @pytest.mark.parametrize(
        ("channels", "gmacs"), [(128, 6.07), (96, 3.42), (64, 1.52), (32, 0.38258)]
    )
    def test_its_networks(self, channels, gmacs):
        assert ddsm_flops(cifar(channels), (3, 32, 32), 1.0) == pytest.approx(2e9 * gmacs, 1e-12)

    @pytest.mark.parametrize(
        ("width", "gflops"), [(1, 12.14), (0.75, 6.84), (0.5, 3.04), (0.25, 0.76518)]
    )
    def test_its_supernet(self, width, gflops):
        """At a narrow width the sinusoid, which stays full, makes a few MACs more."""
        assert ddsm_flops(cifar(128), (3, 32, 32), width) == pytest.approx(1e9 * gflops, 1e-12)

    def test_before_rounding(self):
        assert ddsm_macs(cifar(128), (3, 32, 32), 1.0) == 6_065_456_000


@each_width
@pytest.mark.parametrize("level", [0, 1])
def test_attention_costs_its_layers_and_no_products(width, level):
    """Per attention: four 1x1 convolutions with bias, and two an element of its norm."""
    config = {"base": 8, "mult": [1, 2], "blocks": 1, "groups": 2}
    macs = [
        ddsm_macs(make("unet", config | {"attention": levels}), SHAPE, width)
        for levels in ([], [level])
    ]
    c, n = 8 * (level + 1) * width, (8 // 2**level) ** 2
    assert macs[1] - macs[0] == 3 * (4 * (c * c + c) * n + 2 * c * n)


@each_width
def test_a_transformer_costs_its_layers(width):
    """Linear layers with one bias each, and one an element of a norm without weights."""
    config = EXAMPLES["dit"][0]
    d, n, inner, hidden = 16, 16, 16 * width, 64 * width
    layers = [(256, d, 1), (d, d, 1), (8, d, n), (d, 2 * d, 1), (d, 8, n)]
    block = [(d, 6 * d, 1), *[(d, inner, n)] * 3, (inner, d, n), (d, hidden, n), (hidden, d, n)]
    layers += config["depth"] * block
    want = sum(i * o * rows + o for i, o, rows in layers) + (1 + 2 * config["depth"]) * n * d
    assert ddsm_macs(make("dit", config), SHAPE, width) == want


def card_of(family, config, widths=(0.5, 1.0)):
    return NetCard(
        name="net",
        sha256="0" * 64,
        family=family,
        process="vp-linear-1000",
        image_shape=SHAPE,
        widths=widths,
        flops=tuple(count_flops(make(family, config), SHAPE, width) for width in widths),
        arch=config,
        classes=config.get("classes", 0),
    )


class TestCard:
    @pytest.mark.parametrize("family", ["dit", "unet"])
    def test_nothing_but_its_flops_changes(self, family):
        card = card_of(family, EXAMPLES[family][1])
        state = torch.get_rng_state()
        got = counted(card, PAPER)
        net = make(family, card.arch)
        assert got.flops == tuple(ddsm_flops(net, SHAPE, width) for width in card.widths)
        assert replace(got, flops=card.flops) == card
        assert got.key == card.key
        assert torch.equal(torch.get_rng_state(), state)

    def test_in_full_it_stays_as_it_is(self):
        card = card_of("unet", EXAMPLES["unet"][0])
        assert counted(card, "full") is card

    @pytest.mark.parametrize("family", ["gaussian", "noisy-classifier"])
    def test_what_the_paper_has_no_count_for(self, family):
        card = replace(card_of("unet", EXAMPLES["unet"][0]), family=family)
        with pytest.raises(ConfigError, match=f"'net' of family '{family}'; use full") as caught:
            counted(card, PAPER)
        assert "\n" not in str(caught.value)


RECIPE = """\
version: 1
name: net
data: digits
widths: [0.5, 1.0]
net: {family: unet, base: 4, mult: [1, 2], groups: 1, attention: [1]}
train: {steps: 2, batch: 8, warmup: 0}
"""
FITTED = RECIPE[: RECIPE.index("net: {")] + "net: {family: gaussian, components: 4}\n"
SPACE = """\
version: 1
name: counted
supernets: [net.yaml]
schedule:
  calls: [1, 2]
  grid: quad
  solver: ddim
  widths: {segments: 1, choices: [0.5, 1.0]}
objectives: [gflops_per_image, nfe]
constraints: {gflops_per_image: {max: 1.083e-3}}
evaluation: {images: 4, batch: 4, counting: ddsm-paper}
search: {algorithm: random, population: 4, generations: 1}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.yaml").write_text(RECIPE)
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path


class TestSpaceFile:
    def test_reads_back_equal(self, folder):
        settings = read_space(folder / "space.yaml")
        assert settings.evaluation.counting == PAPER
        (folder / "resolved.yaml").write_text(dump_space(settings))
        assert read_space(folder / "resolved.yaml") == settings

    def test_full_is_what_a_space_without_it_means(self, folder):
        hashes = {}
        for counting in (None, *COUNTINGS):
            line = "" if counting is None else f", counting: {counting}"
            (folder / "space.yaml").write_text(SPACE.replace(f", counting: {PAPER}", line))
            content = read_space(folder / "space.yaml").content()
            hashes[counting] = content_hash(content)
            assert ("counting" in content["evaluation"]) == (counting == PAPER)
        assert hashes[None] == hashes["full"] != hashes[PAPER]

    def test_an_unknown_way_is_named(self, folder):
        (folder / "space.yaml").write_text(SPACE.replace(PAPER, "ddsm"))
        with pytest.raises(ConfigError, match=r"space.yaml:11:.*counting.*'ddsm'.*ddsm-paper"):
            read_space(folder / "space.yaml")

    def test_a_network_without_such_a_count_is_named(self, folder):
        (folder / "net.yaml").write_text(FITTED)
        with pytest.raises(ConfigError, match=r"space.yaml:11:45: .*counting.*'net' .*use full"):
            read_space(folder / "space.yaml")
        full = read_space(folder / "space.yaml", ["evaluation.counting=full"])
        assert full.evaluation.counting == "full"


def test_a_run_says_how_its_flops_are_counted(folder, monkeypatch):
    """Constraints too: the dearest schedule meets them by the paper's count alone."""
    monkeypatch.setenv("STEPSEARCH_CACHE", str(folder / "cache"))
    monkeypatch.setattr("stepsearch.run.plot_all", lambda *_: [])
    monkeypatch.setitem(classifier.SETTINGS, "epochs", 1)  # nobody looks at its features
    for name in COUNTINGS:
        settings = read_space(folder / "space.yaml", [f"evaluation.counting={name}"])
        start_run(settings, folder / name, SPACE, Resources(), resume=False)
    rows = {
        name: {r["key"]: r for r in read_csv(folder / name / "trials.csv")} for name in COUNTINGS
    }
    (dearest,) = rows[PAPER].keys() - rows["full"].keys()
    assert (len(rows[PAPER]), len(rows["full"])) == (4, 3)
    assert rows[PAPER][dearest]["widths"] == "1.0x2"
    net = FAMILIES["unet"].build(read_space(folder / "space.yaml").recipes[0].net, (1, 8, 8), (1,))
    for row in rows[PAPER].values():
        assert row["counting"] == PAPER
        cost = int(row["nfe"]) * ddsm_flops(net, (1, 8, 8), float(row["mean_width"])) / 1e9
        assert float(row["gflops_per_image"]) == pytest.approx(cost)
    for row in rows["full"].values():
        assert row["counting"] == "full"
        cost = int(row["nfe"]) * count_flops(net, (1, 8, 8), float(row["mean_width"])) / 1e9
        assert float(row["gflops_per_image"]) == pytest.approx(cost)


class TestTables:
    def run(self, folder, counting):
        trials = [replace(t, result=replace(t.result, counting=counting)) for t in make_trials(8)]
        store = RunStore.create(folder / "run", ("fid", "gflops_per_image"), {"env.json": "{}"})
        for trial in trials:
            store.append(trial)
        store.write_tables()
        store.close()
        return load_run(folder / "run")

    @pytest.mark.parametrize("counting", COUNTINGS)
    def test_every_number_says_it(self, tmp_path, counting, monkeypatch):
        from matplotlib.figure import Figure

        figures = []
        monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
        trials = self.run(tmp_path, counting).trials
        plot_front(trials, tmp_path / "front")
        label = figures[0].axes[0].get_xlabel()
        assert label.startswith("compute (GFLOPs per image)")
        uniform = trials.assign(widths="1.0x5", solver="ddim", solver_args=pd.NA)
        told = [label, front_text(trials).splitlines()[0], savings(uniform).to_csv()]
        assert [PAPER in text for text in told] == [counting == PAPER] * 3

    def test_a_table_without_the_column_is_in_full(self, tmp_path):
        trials = self.run(tmp_path, "full").trials
        assert set(trials["counting"]) == {"full"}
        older = trials.drop(columns="counting")
        assert front_text(older) == front_text(trials)
        pd.testing.assert_frame_equal(savings(older), savings(trials))

    def test_different_counts_are_never_compared(self, tmp_path):
        trials = self.run(tmp_path, "full").trials
        trials = trials.assign(widths="1.0x5", solver="ddim", solver_args=pd.NA)
        half = trials.assign(gflops_per_image=trials["gflops_per_image"] / 2, counting=PAPER)
        both = savings(pd.concat([trials, half]))
        for counting, own in (("full", trials), (PAPER, half)):
            found = both[both["counting"] == counting]["answer_gflops"]
            assert sorted(found) == sorted(savings(own)["answer_gflops"])

    def test_a_journal_line_of_an_older_version_is_in_full(self):
        trial = make_trials(1)[0]
        data = json.loads(json.dumps(trial.to_dict()))
        del data["result"]["counting"]
        assert Trial.from_dict(data) == trial
