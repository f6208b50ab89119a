"""Which cluster an address means, whether it is there, and whether it is large enough."""

import socket
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from stepsearch import cluster
from stepsearch.cluster import PREFACE, Head, connect, find_address, prepare_ray
from stepsearch.core.errors import ConfigError

SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


@contextmanager
def listener(answer):
    """Address of something that listens and sends `answer` to what it is told."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    if answer is not None and connection.recv(len(PREFACE)):
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=10)


def fake_ray(*resources, error=None):
    """Ray as `connect` sees it, with a node for each of `resources`; one more is dead."""
    begun = []

    def init(**settings):
        begun.append(settings)
        if error is not None:
            raise error

    nodes = [{"Alive": True, "Resources": r} for r in resources]
    nodes.append({"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}})
    return SimpleNamespace(init=init, nodes=lambda: nodes, begun=begun)


@pytest.fixture
def no_cluster(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return tmp_path / "ray" / "ray_current_cluster"


class TestAddress:
    def test_none_and_local_are_a_ray_of_ones_own(self, no_cluster):
        assert find_address(None) is None
        assert find_address("local") is None

    def test_auto_is_what_the_environment_names_or_else_what_was_started_last(
        self, no_cluster, monkeypatch
    ):
        no_cluster.parent.mkdir()
        no_cluster.write_text("10.0.0.2:6379\n")
        assert find_address("auto") == "10.0.0.2:6379"
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.3:6379")
        assert find_address("auto") == "10.0.0.3:6379"
        assert find_address("10.0.0.4:6379") == "10.0.0.4:6379"

    def test_auto_without_a_cluster_says_how_to_start_one(self, no_cluster):
        with pytest.raises(ConfigError, match=r"--address auto: .*absent.*ray start --head"):
            find_address("auto")

    @pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:port", ":6379", ""])
    def test_what_is_no_address_is_named_with_what_is(self, no_cluster, address):
        with pytest.raises(ConfigError, match=r"--address: .*HOST:PORT"):
            find_address(address)


class TestReach:
    def test_a_stale_note_of_a_cluster_that_is_gone_is_an_error_at_once(self, no_cluster):
        with listener(None) as address:
            pass
        no_cluster.parent.mkdir()
        no_cluster.write_text(address)
        ray = fake_ray({"CPU": 8.0})
        with pytest.raises(ConfigError, match=f"cannot reach {address}"):
            connect(ray, 1, "auto")
        assert not ray.begun  # Ray itself would wait for ever

    @pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n"])
    def test_a_port_that_something_else_has_taken_is_an_error(self, answer):
        ray = fake_ray({"CPU": 8.0})
        with listener(answer) as address, pytest.raises(ConfigError, match="something else"):
            connect(ray, 1, address)
        assert not ray.begun

    @pytest.mark.parametrize("error", [ConnectionError("no"), ValueError("a\nb"), RuntimeError()])
    def test_whatever_ray_says_is_one_line(self, error):
        with listener(SETTINGS) as address, pytest.raises(ConfigError) as caught:
            connect(fake_ray(error=error), 1, address)
        assert str(caught.value).startswith(f"ray: cannot reach {address}: ")
        assert "\n" not in str(caught.value)

    def test_a_head_is_watched_until_it_is_gone(self, monkeypatch):
        with listener(SETTINGS) as address:
            head = Head(address)
            assert head.gone_for() == 0
        clock = cluster.time.monotonic()
        monkeypatch.setattr(cluster.time, "monotonic", lambda: clock + 30)
        assert head.gone_for() >= 30


class TestRoom:
    @pytest.mark.parametrize(
        ("workers", "gpus", "message"),
        [
            (9, 0.0, r"--workers 9: needs 9 CPUs, the Ray cluster has 8"),
            (6, 0.5, r"--workers 6: needs 3 GPUs, the Ray cluster has 2"),
            (3, 0.6, r"--workers 3: .* have room for 2"),  # 1.8 of 2 GPUs, but never two on one
            (1, 2.0, r"--workers 1: .* have room for 0"),  # the two are on two nodes
            (1, 1.5, r"--gpus-per-worker 1.5: .* use 1 or 2"),
        ],
    )
    def test_a_cluster_that_is_too_small_is_named_with_what_it_lacks(self, workers, gpus, message):
        ray = fake_ray({"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0})
        with listener(SETTINGS) as address, pytest.raises(ConfigError, match=message):
            connect(ray, workers, address, gpus=gpus)

    @pytest.mark.parametrize(
        ("workers", "gpus"), [(8, 0.0), (8, 0.25), (4, 0.5), (6, 1 / 3), (2, 1.0)]
    )
    def test_fractions_of_gpus_are_counted_as_ray_packs_them(self, workers, gpus):
        ray = fake_ray({"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0})
        with listener(SETTINGS) as address:
            connect(ray, workers, address, gpus=gpus)
            assert ray.begun[0]["address"] == address


@pytest.mark.parametrize(
    ("address", "token", "mode"),
    [
        (None, True, "disabled"),
        ("local", True, "disabled"),
        ("auto", True, "token"),
        ("10.0.0.1:6379", True, "token"),
        ("10.0.0.1:6379", False, "disabled"),
    ],
)
def test_a_token_is_for_clusters_that_were_not_started_here(
    monkeypatch, tmp_path, address, token, mode
):
    import os

    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "before")  # so that what is set below is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("t")
    prepare_ray(address)
    assert os.environ["RAY_AUTH_MODE"] == mode
