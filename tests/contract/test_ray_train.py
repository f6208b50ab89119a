"""Many workers train what one trains, though they die or are stopped on the way."""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from command import STEPSEARCH, files
from safetensors import safe_open
from safetensors.torch import load_file

from stepsearch import network_training
from stepsearch.cli import main
from stepsearch.core.errors import ConfigError, Interrupted
from stepsearch.recipe_config import read_recipe
from stepsearch.recipe_training import Member, checkpoint_path, losses_path, recipe_data
from stepsearch.supernet import ensure_supernet, supernet_path
from stepsearch.training.losses import LossLog, read_losses, recent_losses
from stepsearch.training.ray_train import RayTrainer

RECIPE = {
    "version": 1,
    "name": "net",
    "data": "digits",
    "widths": [0.25, 0.5, 1.0],
    "net": {"family": "unet", "base": 8, "mult": [1, 2], "blocks": 1, "groups": 2},
    "train": {"steps": 14, "batch": 32, "warmup": 4, "checkpoint_every": 5},
}


def write(folder, **train):
    """The recipe in a folder of its own, beside which its weights will lie."""
    folder.mkdir(exist_ok=True)
    path = folder / "net.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"train": RECIPE["train"] | train}))
    return path


def load(path):
    recipe = read_recipe(path)
    return recipe, recipe_data(recipe)


def process_ids(mark):
    """Processes with `mark` in their environment."""
    found = set()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if mark.encode() in environ.read_bytes():
                found.add(int(environ.parent.name))
    return found


def until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def trainer():
    """One local Ray for all tests of this process."""
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.3"
    trainer = RayTrainer(2)
    yield trainer
    trainer.close()
    del os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"]


def dying(member, at, folder):
    """The second worker kills itself once, before step `at` is reported; nested, so by value."""

    def factory():
        train = member()

        def train_or_die(team, device, on_step):
            Path(folder, f"group-{os.getpid()}").touch()

            def step_or_die(step, losses):
                died = Path(folder, "died")
                if team.rank == 1 and step == at and not died.exists():
                    died.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                on_step(step, losses)

            train(team, device, step_or_die)

        return train_or_die

    return factory


@pytest.mark.ray
@pytest.mark.faults
def test_two_workers_of_which_one_is_killed_train_what_one_trains(trainer, tmp_path, capfd):
    alone = {}
    recipe, data = load(write(tmp_path / "alone"))
    path, card = ensure_supernet(recipe, data, on_step=alone.__setitem__)

    seen = []
    recipe, data = load(write(tmp_path / "team"))
    team_path, team_card = ensure_supernet(
        recipe,
        data,
        on_step=lambda step, losses: seen.append((step, losses)),
        together=lambda member, on_step: trainer(dying(member, 8, tmp_path), on_step),
    )

    assert len(list(tmp_path.glob("group-*"))) == 4  # two groups of two
    steps = [step for step, _ in seen]
    lost = steps.index(6, 6)  # the last checkpoint was at 5; reports may be lost with a worker
    assert steps == [*range(1, lost + 1), *range(6, 15)]
    assert lost <= 8
    for step, losses in seen:
        assert losses.keys() == alone[step].keys()
        assert losses == pytest.approx(alone[step], abs=1e-5)
    mine, theirs = load_file(path), load_file(team_path)
    assert mine.keys() == theirs.keys()
    assert all((mine[name] - theirs[name]).abs().max() < 2e-5 for name in mine)
    assert team_card.training["loss"] == pytest.approx(card.training["loss"], abs=1e-5)
    table = read_losses(losses_path(team_path))
    assert table == [pytest.approx(row, abs=1e-5) for row in read_losses(losses_path(path))]
    assert {p.suffix for p in team_path.parent.iterdir()} == {
        p.suffix for p in path.parent.iterdir()
    }
    assert capfd.readouterr().out == ""


@pytest.mark.ray
def test_what_one_worker_refuses_none_trains_and_nothing_is_tried_again(trainer, tmp_path):
    folder = str(tmp_path)

    def factory():
        Path(folder, f"asked-{os.getpid()}").touch()
        try:
            Path(folder, "first").touch(exist_ok=False)
        except FileExistsError:
            return lambda team, device, on_step: Path(folder, "trained").touch()
        raise ConfigError("the folder is elsewhere")

    with pytest.raises(ConfigError, match=r"^worker on \S+: the folder is elsewhere$"):
        trainer(factory, lambda step, losses: None)
    assert len(list(tmp_path.glob("asked-*"))) == 2
    assert not (tmp_path / "trained").exists()


class TestMember:
    """What a worker checks before it trains."""

    @pytest.fixture
    def member(self, tmp_path):
        recipe, data = load(write(tmp_path))
        checkpoint = checkpoint_path(supernet_path(recipe, data))
        checkpoint.with_suffix(".team").write_text("a mark")
        return Member(recipe, checkpoint, data.sha256, "a mark", 14)

    def test_trains_where_it_sees_what_the_driver_sees(self, member):
        assert callable(member())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"mark": "another"}, "file system that all nodes share"),
            ({"checkpoint": Path("/nowhere/net.training")}, r"^/nowhere: .* all nodes share"),
            ({"data_sha256": "other"}, "'digits' holds other images here"),
        ],
    )
    def test_refuses_what_is_not_the_drivers(self, member, change, message):
        with pytest.raises(ConfigError, match=message):
            replace(member, **change)()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workers", "3"], "train.batch: 32 does not divide into 3 workers"),
        (["--workers", "2", "train.accumulate=3"], "into 2 workers x 3 parts"),
        (["--workers", "0"], "--workers: must be at least 1"),
    ],
)
def test_batches_that_workers_cannot_share_are_one_line_before_ray_starts(
    tmp_path, monkeypatch, capsys, argv, message
):
    recipe = write(tmp_path / "recipe")
    before = files(tmp_path)
    monkeypatch.setattr(network_training, "RayTrainer", None)
    assert main(["train", str(recipe), *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert files(tmp_path) == before


def test_one_worker_needs_no_ray(tmp_path, monkeypatch, capsys):
    recipe = write(tmp_path / "recipe", steps=2)
    monkeypatch.setattr(network_training, "RayTrainer", None)
    assert main(["train", str(recipe), "--workers", "1"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()


@pytest.mark.ray
@pytest.mark.faults
@pytest.mark.timeout(480)  # starts Ray from nothing, on a machine that may be busy
def test_a_stopped_team_leaves_its_last_step_and_no_process(tmp_path):
    recipe = write(tmp_path / "recipe", steps=10**6, checkpoint_every=20)
    path = supernet_path(*load(recipe))
    home, mark = tmp_path / "home", f"STEPSEARCH_CACHE={tmp_path}"
    home.mkdir()
    env = os.environ | {"HOME": str(home), "STEPSEARCH_CACHE": str(tmp_path)}
    command = subprocess.Popen(
        [STEPSEARCH, "train", recipe, "--workers", "2"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        until(checkpoint_path(path).is_file, 240)
        # a terminal's signal may end Ray first, which leaves the last checkpoint and no later one
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=120)
        until(lambda: not process_ids(mark), 120)  # Ray ends its helpers one by one
    finally:
        for pid in process_ids(mark):
            os.kill(pid, signal.SIGKILL)
    assert (command.returncode, out) == (75, b""), err.decode()
    lines = [line for line in err.decode().splitlines() if not line.startswith("training: ")]
    assert [line.partition(":")[0] for line in lines] == [
        "supernet net",
        "stepsearch",
        "stepsearch",
    ]
    assert lines[-1].endswith("continue with the same command")
    assert not list(home.iterdir())  # no ray_results, no token
    assert not list(path.parent.glob("*.team"))
    with safe_open(checkpoint_path(path), "pt") as file:
        step = int(file.metadata()["step"])
    widest = [
        (last, count) for last, width, _, count in read_losses(losses_path(path)) if width == 1
    ]
    assert (widest[-1][0], sum(count for _, count in widest)) == (step, step)

    def first(at, losses):
        assert at == step + 1
        raise Interrupted("seen")

    with pytest.raises(Interrupted, match="seen"):
        ensure_supernet(*load(recipe), on_step=first)


class TestLossTable:
    """NAME-HASH-losses.csv beside the weights; written by every checkpoint, just before it."""

    @staticmethod
    def loss(step, width):
        return 1 / step + width

    def run(self, path, first=1, last=50):
        """A process that trains some steps, with a checkpoint every 15 and at its end."""
        log = LossLog(path)
        for step in range(first, last + 1):
            widths = (1.0, 0.25, 0.5 if step % 3 else 0.75)
            log.add(step, {width: self.loss(step, width) for width in widths})
            if step % 15 == 0 or step == last:
                log.write()
        return read_losses(path)

    def test_holds_means_of_twenty_steps(self, tmp_path):
        table = self.run(tmp_path / "a.csv")
        ends = {1.0: [20, 40, 50], 0.25: [20, 40, 50], 0.5: [20, 40, 50], 0.75: [18, 39, 48]}
        assert {w: [row[0] for row in table if row[1] == w] for w in ends} == ends
        for last, width, mean, count in table:
            window = range((last - 1) // 20 * 20 + 1, last + 1)
            own = [s for s in window if width in (1.0, 0.25) or (s % 3 == 0) == (width == 0.75)]
            assert count == len(own)
            assert mean == pytest.approx(sum(self.loss(s, width) for s in own) / len(own))

    @pytest.mark.parametrize("stops", [(7,), (7, 8, 33), (40,), (49,)])
    def test_is_the_same_after_stops_and_resumes(self, tmp_path, stops):
        whole, first = self.run(tmp_path / "whole.csv"), 1
        for stop in (*stops, 50):
            parts = self.run(tmp_path / "parts.csv", first, stop)
            first = stop + 1
        assert parts == [pytest.approx(row) for row in whole]

    def test_a_kill_between_table_and_checkpoint_leaves_no_step_twice(self, tmp_path):
        whole = self.run(tmp_path / "whole.csv")
        self.run(tmp_path / "killed.csv", last=20)
        self.run(tmp_path / "killed.csv", 21, 30)  # and no checkpoint
        assert self.run(tmp_path / "killed.csv", 21) == [pytest.approx(row) for row in whole]

    def test_a_run_from_the_start_forgets_another(self, tmp_path):
        whole = self.run(tmp_path / "whole.csv")
        self.run(tmp_path / "again.csv", last=80)
        assert self.run(tmp_path / "again.csv") == [pytest.approx(row) for row in whole]

    def test_the_mean_of_the_last_steps_counts_every_step_once(self, tmp_path):
        self.run(tmp_path / "a.csv")
        recent = recent_losses(tmp_path / "a.csv", 10)
        assert list(recent) == ["0.25", "0.5", "0.75", "1"]
        want = sum(self.loss(step, 1.0) for step in range(41, 51)) / 10
        assert recent["1"] == pytest.approx(want, rel=1e-5)

    @pytest.mark.parametrize("text", ["my notes\n", "", "step,width,loss,n_steps\n1,2\n"])
    def test_another_file_of_that_name_is_left_alone(self, tmp_path, text):
        path = tmp_path / "a.csv"
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"a\.csv: no table of losses; move it away"):
            self.run(path)
        assert path.read_text() == text
