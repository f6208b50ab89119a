"""Workers that come and go, without Ray: nobody is waited for, no start is tried in a frenzy."""

import pytest

from stepsearch.executors import pool as pool_module
from stepsearch.executors.pool import Pool


class FakeRay:
    """Promises are what they will answer; an exception is a promise that is broken."""

    class exceptions:  # noqa: N801
        RayError = LookupError

    def __init__(self):
        self.killed = []

    def get(self, promise):
        if isinstance(promise.answer, Exception):
            raise promise.answer
        return promise.answer

    def kill(self, handle):
        self.killed.append(handle)


class Handle:
    def __init__(self, answer):
        self.answer, self.ready = answer, self

    def remote(self):
        return self


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when told to."""
    now = [1000.0]
    monkeypatch.setattr(pool_module.time, "monotonic", lambda: now[0])
    return now


def make_pool(answers, wanted):
    ray, begun, answers = FakeRay(), [], iter(answers)

    def start():
        begun.append(Handle(next(answers)))
        return begun[-1]

    return Pool(ray, start, wanted), ray, begun


def answer_all(pool):
    for promise in list(pool.starting):
        pool.answered(promise)


def test_a_worker_gets_work_only_once_it_has_answered(clock):
    pool, _, begun = make_pool([(1, "a"), (2, "b")], 2)
    pool.fill()
    assert len(begun) == 2
    assert pool.free() is None
    answer_all(pool)
    assert {pool.free().pid, pool.free().pid} == {1, 2}
    assert pool.free() is None


def test_a_lost_worker_is_replaced_by_a_new_one(clock):
    pool, ray, _ = make_pool([(1, "a"), (2, "b")], 1)
    pool.fill()
    answer_all(pool)
    worker = pool.free()
    pool.discard(worker)
    assert ray.killed == [worker.handle]
    pool.fill()
    answer_all(pool)
    assert pool.free().pid == 2


def test_starts_that_fail_are_tried_again_with_pauses_and_time_without_workers_counts(clock):
    pool, _, begun = make_pool([LookupError("a\nthe disk is full")] * 40, 1)
    for _ in range(3000):
        pool.fill()
        answer_all(pool)
        clock[0] += 0.1
    assert 10 < len(begun) < 20  # in 300 seconds: after 2, 4, 8, 16, 30, 30, ...
    assert pool.trouble == "the disk is full"
    assert pool.lost_for() == pytest.approx(300)


def test_time_without_workers_begins_when_the_last_is_lost(clock):
    pool, _, _ = make_pool([(1, "a"), (2, "a")], 1)
    pool.fill()
    answer_all(pool)
    clock[0] += 5000
    assert pool.lost_for() == 0
    pool.discard(pool.free())
    clock[0] += 7
    assert pool.lost_for() == pytest.approx(7)


def test_a_node_where_it_failed_is_avoided_while_there_are_others(clock):
    pool, _, _ = make_pool([(1, "a"), (2, "b")], 2)
    pool.fill()
    answer_all(pool)
    assert pool.free(avoid=("a",)).node == "b"
    assert pool.free(avoid=("a",)) is None  # b is busy and will be free
    assert pool.free(avoid=("a", "b")).node == "a"  # nowhere else is left


def test_a_node_that_was_late_is_asked_last_until_it_is_in_time(clock):
    pool, _, _ = make_pool([(1, "slow"), (2, "fast"), (3, "slow")], 2)
    pool.fill()
    answer_all(pool)
    pool.discard(next(w for w in pool.ready if w.node == "slow"), late=True)
    fast = pool.free(avoid=("slow",))
    pool._idle.clear()
    pool.fill()
    answer_all(pool)
    pool.release(fast)
    assert pool.free() is fast
    slow = pool.free()
    pool.in_time(slow)
    pool.release(slow)
    pool.release(fast)
    assert pool.free() is slow
