"""The command line as a user meets it: commands, streams, exit statuses, files."""

import io
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import yaml
from command import call, files, one_line, stepsearch

from stepsearch import load_run
from stepsearch.cli import COMMANDS, main
from stepsearch.core.trial import COLUMNS

SPACE = """\
# A very small space
version: 1
name: tiny
supernets: [net.yaml]
schedule:
  calls: [2, 3]
  grid: [uniform, quad]
  solver: [ddim, {pfdiff: {k: 1, l: 1}}]
  widths: {segments: 2, choices: [0.5, 1.0]}
objectives: [fid, gflops_per_image]
evaluation: {images: 50, batch: 50}
search: {population: 4, generations: 1}
"""
NET = """\
# A mixture of four
version: 1
name: net
data: digits
widths: [0.5, 1.0]
net: {family: gaussian, components: 4}
"""
UNET = """\
version: 1
name: unet
data: digits
widths: [0.5, 1.0]
net: {family: unet, base: 4, mult: [1, 2], groups: 1}
train: {steps: 2, batch: 8, warmup: 0}
"""
RUN = ("run", "space.yaml", "search.population=8", "-o", "out", "search.generations=2")
RUN += ("evaluation.images=100", "--seed", "3", "evaluation.batch=50")
HEAVY = ["torch", "ray", "pymoo", "pandas", "numpy", "matplotlib"]


def write_inputs(folder):
    (folder / "space.yaml").write_text(SPACE)
    (folder / "net.yaml").write_text(NET)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with inputs and the finished run `out`, made by the real command."""
    folder = tmp_path_factory.mktemp("home")
    write_inputs(folder)
    done = stepsearch(folder, *RUN)
    assert done.returncode == 0, done.stderr
    (folder / "streams.json").write_text(json.dumps([done.stdout, done.stderr]))
    return folder


@pytest.fixture
def copy(home, tmp_path, monkeypatch):
    """A copy of `home` to spoil, as current folder."""
    folder = tmp_path / "home"
    shutil.copytree(home, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("STEPSEARCH_CACHE", str(folder / "cache"))
    return folder


class TestHelp:
    def test_help_names_every_command_and_is_instant(self, tmp_path):
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            done = stepsearch(tmp_path, "--help")
            seconds.append(time.perf_counter() - start)
        assert (done.returncode, done.stderr) == (0, "")
        for name in COMMANDS:
            assert f"\n    {name} " in done.stdout
        assert min(seconds) < 1.0

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_explains_itself(self, tmp_path, name):
        done = stepsearch(tmp_path, name, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"usage: stepsearch {name}")

    @pytest.mark.parametrize(
        ("argv", "heavy"),
        [
            (["--help"], HEAVY),
            (["ls"], HEAVY),
            (["front", "out", "-f", "csv"], ["torch", "ray", "pymoo", "matplotlib"]),
            (["status", "out"], ["torch", "ray", "pymoo", "matplotlib"]),
        ],
        ids=lambda v: v[0],
    )
    def test_reading_loads_no_more_than_it_needs(self, home, argv, heavy):
        code = (
            "import contextlib, sys, stepsearch.cli as cli\n"
            f"with contextlib.suppress(SystemExit): assert cli.main({argv}) == 0\n"
            f"sys.exit(' '.join(m for m in {heavy} if m in sys.modules) or 0)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=home, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize(
        ("argv", "says"),
        [
            ([], "COMMAND"),
            (["rum"], "'rum'"),
            (["run"], "one FILE is needed"),
            (["run", "space.yaml", "--sead", "1"], "'--sead'"),
            (["run", "space.yaml", "--seed", "one"], "'one'"),
            (["run", "space.yaml", "population"], "'population'"),
            (["resume", "out", "--executor", "slurm"], "'slurm'"),
            (["ls", "a=1"], "'a=1'"),
            (["front", "out", "-f", "xml"], "'xml'"),
        ],
        ids=lambda v: " ".join(v) if isinstance(v, list) else "",
    )
    def test_an_unknown_word_is_one_line_and_exit_status_2(self, tmp_path, argv, says):
        write_inputs(tmp_path)
        before = files(tmp_path)
        one_line(stepsearch(tmp_path, *argv), says)
        assert files(tmp_path) == before


class TestLs:
    def test_files_here_and_shipped_are_listed_with_their_first_comment(self, tmp_path):
        (tmp_path / "search_spaces").mkdir()
        (tmp_path / "search_spaces" / "mine.yaml").write_text(SPACE)
        done = stepsearch(tmp_path, "ls")
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0] == "search_spaces/mine.yaml  A very small space"
        for name in ("search_spaces/toy.yaml", "supernets/digits.yaml"):
            assert sum(name in line for line in lines) == 1

    def test_a_file_in_another_encoding_does_not_hide_the_others(
        self, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "supernets").mkdir()
        (tmp_path / "supernets" / "odd.yaml").write_bytes("# größer\n".encode("latin-1"))
        assert main(["ls"]) == 0
        assert "supernets/digits.yaml" in capsys.readouterr().out


class TestValidate:
    @pytest.mark.parametrize(
        ("argv", "says"),
        [
            (["space.yaml"], "6 genes, 4 trials"),
            (["search.generations=3", "space.yaml"], "12 trials"),
            (["net.yaml"], "recipe 'net', widths [0.5, 1.0]"),
            (["net.yaml", "widths=[1]"], "widths [1.0]"),
        ],
        ids=lambda v: " ".join(v) if isinstance(v, list) else "",
    )
    def test_a_good_file_is_summed_up_and_nothing_is_written(
        self, tmp_path, monkeypatch, capsys, argv, says
    ):
        monkeypatch.chdir(tmp_path)
        write_inputs(tmp_path)
        before = files(tmp_path)
        assert main(["validate", *argv]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert says in out
        assert files(tmp_path) == before


def test_train_keeps_what_is_unchanged_and_trains_what_is_new(tmp_path):
    (tmp_path / "unet.yaml").write_text(UNET)
    first = stepsearch(tmp_path, "train", "unet.yaml")
    path = tmp_path / first.stdout.strip()
    assert (first.returncode, first.stdout) == (0, f"{path}\n")
    assert "training 2 steps on digits" in first.stderr
    assert "width 0.5: " in first.stderr
    assert path.is_file()

    (tmp_path / "unet.yaml").write_text("# another comment\n" + UNET)
    before = files(tmp_path)
    again = stepsearch(tmp_path, "train", "unet.yaml")
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert "recipe unchanged" in again.stderr
    assert files(tmp_path) == before

    other = stepsearch(tmp_path, "train", "unet.yaml", "train.steps=3")
    assert other.returncode == 0
    assert "training 3 steps" in other.stderr
    assert (tmp_path / other.stdout.strip()).is_file()
    assert other.stdout != first.stdout
    assert path.read_bytes() == before[path]


class TestRun:
    def test_stdout_is_the_run_directory_and_stderr_plain_text(self, home):
        out, err = json.loads((home / "streams.json").read_text())
        assert out == "out\n"
        assert err
        assert all(line.isprintable() for line in err.split("\n"))

    def test_the_run_directory_holds_what_was_typed_and_what_was_run(self, home):
        out = home / "out"
        assert (out / "space.yaml").read_text() == SPACE
        resolved = yaml.safe_load((out / "resolved.yaml").read_text())
        assert resolved["evaluation"].items() >= {"images": 100, "batch": 50}.items()
        assert resolved["search"].items() >= {"population": 8, "generations": 2, "seed": 3}.items()
        assert not [p for p in out.rglob("*") if p.suffix in (".pkl", ".pt", ".pth", ".tmp")]

    def test_load_run_gives_typed_frames(self, home):
        run = load_run(home / "out")
        assert list(run.trials) == list(run.pareto) == COLUMNS
        assert len(run.trials) == 16
        types = run.trials.dtypes.astype(str)
        for name in ("key", "widths", "solver", "grid", "supernet", "state", "metric_id", "error"):
            assert types[name] == "string"
            assert all(isinstance(value, str) for value in run.trials[name].dropna())
        assert set(types[["trial_id", "generation", "nfe", "pfdiff_k", "seed"]]) == {"Int64"}
        assert set(types[["fid", "fid_se", "gflops_per_image", "mean_width"]]) == {"Float64"}
        assert types["is_pareto"] == "boolean"
        assert set(run.trials["key"]) == set(run.schedules)
        assert run.trials["trial_id"].tolist() == list(range(16))
        assert set(run.pareto["key"]) == set(run.trials["key"][run.trials["is_pareto"]])
        assert list(run.generations["trials"]) == [8, 8]
        assert run.env["seeds"] == {"search": 3, "evaluation": 0}

    def test_the_parquet_table_is_the_csv_table(self, home):
        parquet = pd.read_parquet(home / "out" / "trials.parquet")
        pd.testing.assert_frame_equal(parquet, load_run(home / "out").trials, check_dtype=False)

    def test_the_same_directory_again_is_refused_with_the_way_to_resume(self, home):
        before = files(home)
        one_line(stepsearch(home, *RUN), "stepsearch resume out")
        assert files(home) == before

    @pytest.mark.parametrize("argv", [(*RUN, "--resume"), ("resume", "out")], ids=["run", "resume"])
    def test_a_finished_run_resumed_is_unchanged(self, home, argv):
        names = ["journal.jsonl", "trials.csv", "pareto.csv", "generations.csv", "resolved.yaml"]
        before = {name: (home / "out" / name).read_bytes() for name in names}
        done = stepsearch(home, *argv)
        assert (done.returncode, done.stdout) == (0, "out\n")
        assert {name: (home / "out" / name).read_bytes() for name in names} == before

    def test_another_space_cannot_resume_it(self, home):
        before = files(home)
        done = stepsearch(home, *RUN, "search.population=6", "--resume")
        one_line(done, "out: created for space ", status=5)
        assert files(home) == before

    @pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["run", "resume"])
    def test_a_folder_of_something_else_is_refused_before_anything_is_trained(
        self, tmp_path, resume
    ):
        write_inputs(tmp_path)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("mine")
        before = files(tmp_path)
        one_line(call(tmp_path, "run", "space.yaml", "-o", "mine", *resume))
        assert files(tmp_path) == before

    def test_weights_that_do_not_match_their_card_end_the_run(self, copy):
        weights = next(copy.glob("net-*.safetensors"))
        data = weights.read_bytes()
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        card = json.loads(weights.with_suffix(".json").read_text())
        before = files(copy)
        done = stepsearch(copy, "run", "space.yaml", "-o", "new")
        assert (done.returncode, done.stdout) == (2, "")
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"stepsearch: {weights}: sha256 is ")
        assert f"its card says {card['sha256'][:12]}" in last
        assert "restore the file" in last
        assert "Traceback" not in done.stderr
        assert files(copy) == before

    def test_too_few_reference_images_leave_no_run_directory(self, tmp_path, rng):
        write_inputs(tmp_path)
        (tmp_path / "net.yaml").write_text(NET.replace("data: digits", "data: {npz: few.npz}"))
        images = rng.integers(0, 256, (40, 8, 8, 1), np.uint8)
        np.savez(tmp_path / "few.npz", images=images, labels=np.arange(40) % 4)
        done = stepsearch(tmp_path, "run", "space.yaml", "-o", "out")
        says = "40 reference images cannot fit a covariance of 64 features"
        one_line(done, says, "use more images")
        assert not (tmp_path / "out").exists()


class TestReading:
    def test_status_tells_how_far_a_run_is(self, home, monkeypatch, capsys):
        monkeypatch.chdir(home)
        assert main(["status", "out", "--json"]) == 0
        out, err = capsys.readouterr()
        state = json.loads(out)
        assert err == ""
        want = {"trials": 16, "planned": 16, "failed": 0, "generation": 2, "generations": 2}
        assert state.items() >= want.items()
        assert state["best_fid"] == pytest.approx(load_run("out").trials["fid"].min())
        assert main(["status", "out"]) == 0
        lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
        assert lines == {k: str(v) for k, v in state.items()}

    @pytest.mark.parametrize("savings", [[], ["--savings"]], ids=["front", "savings"])
    def test_front_is_the_same_table_in_every_format(self, home, savings):
        table, csv, js = (
            stepsearch(home, "front", "out", "-f", f, *savings) for f in ("table", "csv", "json")
        )
        said = "" if savings else "proxy front (100 images); `stepsearch reeval out` measures it"
        assert (table.returncode, table.stderr[: len(said)]) == (0, said)
        for done in (csv, js):
            assert (done.returncode, done.stderr) == (0, "")
        from_csv = pd.read_csv(io.StringIO(csv.stdout))
        assert len(from_csv) == len(json.loads(js.stdout)) > 0
        for name, values in pd.DataFrame(json.loads(js.stdout)).items():
            assert values.dropna().tolist() == pytest.approx(from_csv[name].dropna().tolist())
        assert len(table.stdout.splitlines()) == len(from_csv) + (2 if savings else 1)

    def test_front_is_pareto_csv(self, home):
        done = stepsearch(home, "front", "out", "-f", "csv")
        assert done.stdout == (home / "out" / "pareto.csv").read_text()

    def test_plot_prints_the_files_that_it_drew(self, copy):
        shutil.rmtree("out/plots")
        done = stepsearch(copy, "plot", "out")
        assert (done.returncode, done.stderr) == (0, "")
        drawn = [copy / line for line in done.stdout.splitlines()]
        assert sorted(drawn) == sorted((copy / "out" / "plots").iterdir())
        assert {p.suffix for p in drawn} == {".png", ".pdf"}

    @pytest.mark.parametrize("command", ["status", "front", "plot", "resume"])
    def test_a_folder_that_is_no_run_is_told(self, tmp_path, command):
        one_line(call(tmp_path, command, str(tmp_path)), str(tmp_path))
        assert files(tmp_path) == {}

    @pytest.mark.parametrize(
        ("command", "name", "content"),
        [
            ("status", "resolved.yaml", None),
            ("status", "resolved.yaml", b"version: ["),
            ("status", "journal.jsonl", b"{}\n{}\n"),
            ("front", "journal.jsonl", None),
            ("front", "trials.csv", b""),
            ("front", "pareto.csv", None),
            ("front", "env.json", None),
            ("plot", "generations.csv", None),
            ("resume", "env.json", None),
            ("resume", "env.json", b"{"),
        ],
    )
    def test_a_damaged_run_directory_is_told_in_one_line(self, copy, command, name, content):
        (copy / "out" / name).unlink()
        if content is not None:
            (copy / "out" / name).write_bytes(content)
        before = files(copy)
        done = call(copy, command, "out")
        assert done.returncode in (2, 5)
        one_line(done, name, status=done.returncode)
        assert files(copy) == before
