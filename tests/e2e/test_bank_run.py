"""A search over a bank of supernets, from the space file to its tables."""

import shutil

import pytest
from support import read_csv, timeless

from stepsearch import recipe_training
from stepsearch.cli import main
from stepsearch.config import read_space
from stepsearch.core.errors import Interrupted
from stepsearch.nets.load import load_card
from stepsearch.recipe_config import read_recipe
from stepsearch.recipe_training import recipe_data
from stepsearch.store import JOURNAL
from stepsearch.supernet import ensure_supernet

STEPS, TRUNK = 14, 8
NET = f"""\
version: 1
name: net
data: digits
widths: [0.5, 1.0]
net: {{family: unet, base: 4, mult: [1, 2], groups: 1}}
train: {{steps: {STEPS}, batch: 16, warmup: 2, checkpoint_every: 5, ema: 0.9}}
"""
SPACE = f"""\
version: 1
name: bank
supernets: [net.yaml]
train: {{immiscible.pool: [16, 1], trunk: {TRUNK}}}
schedule:
  calls: [2, 3]
  grid: [uniform, quad]
  solver: [ddim, ddpm]
  widths: {{segments: 2, choices: [0.5, 1.0]}}
objectives: [fid, gflops_per_image]
evaluation: {{images: 200, batch: 200}}
search: {{population: 4, generations: 2, seed: 1}}
"""
PLAIN, POOL = "net", "net-immiscible.pool-16"


def write_inputs(folder):
    folder.mkdir(exist_ok=True)
    (folder / "net.yaml").write_text(NET)
    (folder / "space.yaml").write_text(SPACE)
    return folder


@pytest.fixture(scope="module")
def steps():
    """The number of every training step that was made, in the order of making."""
    return []


@pytest.fixture(scope="module")
def home(tmp_path_factory, steps):
    """A folder with the finished run `out`; `steps` holds every training step that it took."""
    folder = write_inputs(tmp_path_factory.mktemp("bank"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("STEPSEARCH_CACHE", str(folder / "cache"))
        trained = counting(recipe_training.train_supernet, steps)
        patch.setattr(recipe_training, "train_supernet", trained)
        assert main(["run", "space.yaml", "-o", "out"]) == 0
        yield folder


def counting(train_supernet, steps):
    """The same function, which notes every step."""

    def train(*args, on_step, **options):
        def note(step, losses):
            steps.append(step)
            on_step(step, losses)

        return train_supernet(*args, on_step=note, **options)

    return train


def weights(folder, **options):
    """Hash of the weights of every network of the space in `folder`, trained where missing."""
    settings = read_space(folder / "space.yaml")
    data = recipe_data(settings.recipes[0])
    return {r.name: ensure_supernet(r, data, **options)[1].sha256 for r in settings.recipes}


def test_one_network_is_trained_per_value_and_their_common_steps_once(home, steps):
    branch = list(range(TRUNK + 1, STEPS + 1))
    assert steps == [*range(1, TRUNK + 1), *branch, *branch]
    cards = {c.name: c for c in map(load_card, home.glob("net-*.safetensors"))}
    assert set(cards) == {PLAIN, POOL}
    assert cards[POOL].training["immiscible"]["pool"] == 16
    assert "immiscible" not in cards[PLAIN].training
    assert cards[POOL].sha256 != cards[PLAIN].sha256


@pytest.mark.parametrize("table", ["trials.csv", "pareto.csv"])
def test_tables_say_which_network_every_trial_used(home, table):
    rows = read_csv(home / "out" / table)
    assert {(r["supernet"], r["immiscible_batch"]) for r in rows} <= {(PLAIN, "1"), (POOL, "16")}
    assert {r["train"] for r in rows} == {""}
    assert {r["state"] for r in rows} == {"COMPLETE"}


def test_the_search_tries_every_network_in_its_first_generation(home):
    rows = read_csv(home / "out" / "trials.csv")
    assert {r["supernet"] for r in rows if r["generation"] == "0"} == {PLAIN, POOL}
    assert len(rows) == 8


def test_the_front_and_the_savings_name_the_networks(home, capsys):
    pareto = read_csv(home / "out" / "pareto.csv")
    assert main(["front", "out", "--savings"]) == 0
    assert PLAIN in capsys.readouterr().out
    assert main(["front", "out"]) == 0
    text = capsys.readouterr().out
    several = len({row["supernet"] for row in pareto}) > 1
    assert (text.splitlines()[0].endswith("supernet")) == several


def test_fresh_noise_is_warned_of_once(home, capsys):
    assert main(["validate", "space.yaml"]) == 0
    out, err = capsys.readouterr()
    assert "fine" in out
    (line,) = err.splitlines()
    assert line.startswith("warning: ")
    assert all(words in line for words in (f"'{POOL}'", "ddpm", "coupled"))
    assert main(["validate", "space.yaml", "schedule.solver=ddim"]) == 0
    assert capsys.readouterr().err == ""


def test_a_run_that_lost_its_last_trials_ends_the_same(home, steps, capsys):
    before, done = timeless(home / "out" / "trials.csv"), len(steps)
    shutil.copytree(home / "out", home / "again")
    journal = home / "again" / JOURNAL
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:3]))
    assert main(["resume", "again"]) == 0
    err = capsys.readouterr().err
    assert timeless(home / "again" / "trials.csv") == before
    assert len(steps) == done
    assert sum(line.startswith("warning: ") for line in err.splitlines()) == 1


def test_a_sample_warns_only_of_a_coupled_network_and_fresh_noise(home, capsys):
    warned = {}
    for row in read_csv(home / "out" / "trials.csv"):
        kind = (row["supernet"], row["solver"])
        if kind not in warned:
            args = ["sample", "out", row["trial_id"], "-n", "2", "-o", "-".join(kind)]
            assert main(args) == 0
            warned[kind] = "warning: " in capsys.readouterr().err
    assert warned == {kind: kind == (POOL, "ddpm") for kind in warned}
    assert set(warned.values()) == {True, False}


def test_the_plain_network_is_the_one_without_bank_or_trunk(home, tmp_path):
    (tmp_path / "net.yaml").write_text(NET)
    recipe = read_recipe(tmp_path / "net.yaml")
    data = recipe_data(recipe)
    path, card = ensure_supernet(recipe, data)
    assert (home / path.name).is_file()
    assert card.sha256 == load_card(home / path.name).sha256
    assert not list(tmp_path.glob("*.trunk"))


@pytest.mark.parametrize("killed", [3, TRUNK, TRUNK + 3])
def test_killed_in_the_trunk_or_on_a_branch_training_ends_in_the_same_weights(
    home, tmp_path, killed
):
    folder = write_inputs(tmp_path / "other")
    seen = []

    def kill(step, losses):
        seen.append(step)
        if len(seen) == killed or len(seen) == killed + STEPS - TRUNK:
            raise Interrupted("stopped")

    for _ in range(2):
        with pytest.raises(Interrupted):
            weights(folder, on_step=kill)
    found = weights(folder, on_step=kill)
    assert found == weights(home)
    assert len(seen) == TRUNK + 2 * (STEPS - TRUNK)  # nothing was trained twice
