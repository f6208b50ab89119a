"""What a search begins from: runs, tables and schedules by hand."""

from dataclasses import replace

import pytest
from joint import JOINT_CARDS, JOINT_SPACE
from support import CARDS, OBJECTIVES, SETTINGS, SPACE, StubExecutor, read_csv, score

from stepsearch.build import build_schedule
from stepsearch.core.errors import ConfigError
from stepsearch.core.settings import SearchSettings
from stepsearch.search import run_search
from stepsearch.store import RunStore
from stepsearch.warm_start import check_sources, known_measurements, read_schedules, warm_genomes


def run(folder, settings=SETTINGS, executor=None, cards=CARDS, **begun):
    store = RunStore.create(folder, OBJECTIVES, {"env.json": "{}"})
    try:
        run_search(settings, cards, store, executor or StubExecutor(), **begun)
        store.write_tables()
    finally:
        store.close()
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return run(tmp_path_factory.mktemp("warm") / "source")


def front_keys(folder):
    return [row["key"] for row in read_csv(folder / "pareto.csv")]


def meant(genomes, space=SPACE, cards=CARDS):
    return [build_schedule(space.decode(g), cards).key() for g in genomes]


def test_the_front_of_a_run_is_begun_from_exactly(source):
    genomes = warm_genomes([str(source)], SPACE, CARDS, 100)
    assert meant(genomes) == front_keys(source)


def test_a_table_says_the_same_as_the_run_it_is_of(source, tmp_path):
    copy = tmp_path / "front.csv"
    copy.write_bytes((source / "pareto.csv").read_bytes())
    assert set(meant(warm_genomes([str(copy)], SPACE, CARDS, 100))) == set(front_keys(source))
    every = warm_genomes([str(source / "trials.csv")], SPACE, CARDS, 100)
    assert set(meant(every)) == set(front_keys(source))


def test_relays_and_students_are_read_from_a_table(tmp_path):
    settings = replace(SETTINGS, space=JOINT_SPACE, search=SearchSettings(population=30))

    class Cheap(StubExecutor):
        def map(self, schedules, rung=None):
            for schedule in schedules:
                same = dict.fromkeys(OBJECTIVES, 1.0)
                yield schedule.key(), replace(score(schedule), values=same)

    settings = replace(settings, search=replace(settings.search, generations=1))
    folder = run(tmp_path / "run", settings, Cheap(), JOINT_CARDS)
    rows = read_csv(folder / "pareto.csv")
    assert {row["kind"] for row in rows} == {"single", "relay", "distilled"}
    schedules = read_schedules(folder / "pareto.csv", JOINT_CARDS)
    assert {s.key() for s, _ in schedules} == {row["key"] for row in rows}


def test_a_schedule_written_by_hand_is_begun_from(tmp_path):
    genome = (0, 1, 1, 2, 0, 3, 1)
    path = tmp_path / "mine.json"
    path.write_text(build_schedule(SPACE.decode(genome), CARDS).to_json())
    assert meant(warm_genomes([str(path)], SPACE, CARDS, 5)) == meant([genome])


def test_more_than_fit_are_thinned_evenly_and_come_once(source):
    every = warm_genomes([str(source)], SPACE, CARDS, 100)
    few = warm_genomes([str(source), str(source)], SPACE, CARDS, 2)
    assert len(few) == 2
    assert few == (every[0], every[len(every) // 2])


def test_a_search_asks_what_it_begins_from_first(source, tmp_path):
    genomes = warm_genomes([str(source)], SPACE, CARDS, 3)
    rows = read_csv(run(tmp_path / "next", warm=genomes) / "trials.csv")
    assert [row["key"] for row in rows[: len(genomes)]] == meant(genomes)
    assert len(rows) == SETTINGS.search.population * SETTINGS.search.generations


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "x,y\n1,2\n", "no column 'grid'"),
        ("a.csv", "solver,grid,widths\nddim,uniform,1.0x3\nno,uniform,1.0x3\n", "row 2"),
        ("a.csv", "solver,grid,widths\nddim,uniform,1.0\n", "row 1"),
        ("a.csv", b"\xff\xfe\x00", "no table"),
        ("a.json", "{}", "not a StepSchedule document"),
        ("a.json", b"\xff", "a.json"),
    ],
)
def test_a_source_that_means_nothing_is_named(tmp_path, name, text, says):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=says) as caught:
        warm_genomes([str(path)], SPACE, CARDS, 5)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_source_that_is_not_there_is_named_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        check_sources([str(tmp_path / "nowhere")])


class TestKnownMeasurements:
    def known(self, source, **changed):
        evaluation = replace(SETTINGS.evaluation, images=200, **changed)
        return known_measurements([str(source)], replace(SETTINGS, evaluation=evaluation), "stub-0")

    def test_what_was_measured_alike_is_not_measured_again(self, source, tmp_path):
        known = self.known(source)
        keys = {row["key"] for row in read_csv(source / "trials.csv")}
        assert known.keys() == keys
        executor = StubExecutor()
        folder = run(tmp_path / "next", executor=executor, known=known)
        rows = {row["key"] for row in read_csv(folder / "trials.csv")}
        assert executor.seen.keys() == rows - keys == set()

    def test_the_result_is_the_same_with_and_without(self, source, tmp_path):
        other = replace(SETTINGS, search=replace(SETTINGS.search, seed=5))
        executor = StubExecutor()
        first = run(tmp_path / "a", other, executor, known=self.known(source))
        second = run(tmp_path / "b", other)
        assert (first / "trials.csv").read_bytes() == (second / "trials.csv").read_bytes()
        assert 0 < len(executor.seen) < len(read_csv(first / "trials.csv"))

    def test_in_steady_mode_what_is_known_is_told_before_the_next_is_asked(self, source, tmp_path):
        known, executor = self.known(source), StubExecutor()
        steady = replace(SETTINGS, search=replace(SETTINGS.search, mode="steady"))
        first = run(tmp_path / "a", steady, executor, known=known)
        second = run(tmp_path / "b", steady)
        assert (first / "trials.csv").read_bytes() == (second / "trials.csv").read_bytes()
        assert not executor.seen.keys() & known.keys()
        assert len(executor.seen) < len(read_csv(first / "trials.csv"))

    def test_another_seed_number_of_images_or_metric_is_something_else(self, source):
        assert not self.known(source, seed=1)
        evaluation = replace(SETTINGS.evaluation, images=200)
        settings = replace(SETTINGS, evaluation=evaluation)
        assert not known_measurements([str(source)], settings, "stub-1")
        assert not known_measurements([str(source)], SETTINGS, "stub-0")
        for objectives in (("fid", "latency_ms"), ("fid", "kid")):
            changed = replace(settings, objectives=objectives)
            assert not known_measurements([str(source)], changed, "stub-0")
