"""Reaching a Ray cluster: one that is started here, or one at an address.

Ray is an argument, so that only those who run something on it import it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stepsearch.core.errors import ConfigError

REACH_SECONDS = 10.0  # for an address to answer at all
STORE_BYTES = 200_000_000  # of a local Ray: workers read files where they lie
SLACK = 1e-6  # of resources, which Ray counts in ten-thousandths

# how HTTP/2 begins, and so gRPC: a client says this and empty settings, a server its own settings
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
SETTINGS_FRAME = 4


def is_local(address: str | None) -> bool:
    """Whether a Ray of one's own is meant."""
    return address in (None, "local")


def prepare_ray(address: str | None) -> None:
    """The settings that Ray reads when it is imported.

    A local cluster of one user needs no token, and with the mode unset Ray 2.60 would write one
    that later clusters demand; a remote cluster gets the token if there is one.
    """
    given = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    token = any(map(os.environ.get, given)) or (Path.home() / ".ray" / "auth_token").is_file()
    mode = "token" if token and not is_local(address) else "disabled"
    os.environ.setdefault("RAY_AUTH_MODE", mode)
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # workers keep this Python
    os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def connect(
    ray: Any, workers: int, address: str | None, *, cpus: int = 1, gpus: float = 0.0
) -> None:
    """Start a local Ray, or join the one at `address`; a worker takes `cpus` and `gpus`.

    Args:
        address: HOST:PORT of a cluster's head; `auto` is what RAY_ADDRESS names, or else the
            cluster that was last started on this machine.

    Raises:
        ConfigError: a cluster that has too few CPUs or GPUs, or none at `address`.
    """
    if gpus > 1 and gpus != int(gpus):
        raise ConfigError(
            f"--gpus-per-worker {gpus:g}: Ray gives a worker a part of one GPU or whole ones; use "
            f"{int(gpus)} or {int(gpus) + 1}"
        )
    where = find_address(address)
    common = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if where is None:
            ray.init(
                address="local",
                num_cpus=workers * cpus,
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                **common,
            )
        else:
            _check_reachable(where)
            ray.init(address=where, **common)
    except ConfigError:
        raise
    except Exception as error:  # of a node that does not start in time it is no narrower
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"ray: cannot reach {where or 'a local cluster'}: {first}") from None
    _check_room(ray.nodes(), workers, cpus, gpus)


def find_address(address: str | None) -> str | None:
    """HOST:PORT of the cluster that is meant, None for one to be started here.

    Raises:
        ConfigError: `auto` where no cluster is named, or what is no HOST:PORT.
    """
    source = "--address"
    if address == "auto" and (named := os.environ.get("RAY_ADDRESS", "auto")) != "auto":
        address, source = named, "RAY_ADDRESS"
    if is_local(address):
        return None
    if address == "auto":
        base = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
        note = Path(base, "ray", "ray_current_cluster")
        if not note.is_file():
            raise ConfigError(
                f"--address auto: RAY_ADDRESS is not set and {note} is absent, so no Ray cluster "
                f"runs here; start one with `ray start --head` or leave --address out"
            )
        address, source = note.read_text(encoding="utf-8").strip(), str(note)
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise ConfigError(
            f"{source}: '{address}' is no address of a Ray cluster; use HOST:PORT of its head, as "
            f"10.0.0.1:6379, or auto"
        )
    return address


def _check_reachable(address: str) -> None:
    """OSError unless gRPC is spoken there; of anything else Ray itself would wait for ever."""
    if not speaks_grpc(address, REACH_SECONDS):
        raise ConnectionError("something else listens there; is its cluster gone?")


def speaks_grpc(address: str, seconds: float) -> bool:
    """Whether a gRPC server, as the head of a cluster is, answers; OSError where nothing does."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), seconds) as connection:
        if os.environ.get("RAY_USE_TLS") == "1":
            return True  # it may be, and a certificate would be needed to know
        connection.sendall(PREFACE)
        answer = connection.recv(9)
    return len(answer) == 9 and answer[3] == SETTINGS_FRAME


class Head:
    """Watches whether the head of a cluster is there.

    Ray itself keeps silent for 60 seconds and then ends the process, whatever it is doing.
    """

    def __init__(self, address: str) -> None:
        self._address, self._heard = address, time.monotonic()

    def gone_for(self) -> float:
        """Seconds since it last answered; asks it, and waits for that a second at most."""
        try:
            answers = speaks_grpc(self._address, 1.0)
        except OSError:
            answers = False
        if answers:
            self._heard = time.monotonic()
            return 0.0
        return time.monotonic() - self._heard


def _check_room(nodes: Iterable[Mapping[str, Any]], workers: int, cpus: int, gpus: float) -> None:
    """ConfigError where that many workers can never run at a time; Ray would wait for ever."""
    found = [node["Resources"] for node in nodes if node["Alive"]]
    totals = {kind: sum(r.get(kind, 0.0) for r in found) for kind in ("CPU", "GPU")}
    for kind, needed in (("CPU", workers * cpus), ("GPU", workers * gpus)):
        if totals[kind] < needed - SLACK:
            raise ConfigError(
                f"--workers {workers}: needs {needed:g} {kind}s, the Ray cluster has "
                f"{totals[kind]:g}; ask for fewer workers or start more nodes"
            )
    room = sum(_room(r, cpus, gpus) for r in found)
    if room < workers:
        raise ConfigError(
            f"--workers {workers}: a worker takes {cpus} CPUs and {gpus:g} GPUs of one node, and "
            f"the nodes of the Ray cluster have room for {room}; ask for fewer workers or start "
            f"more nodes"
        )


def _room(resources: Mapping[str, float], cpus: int, gpus: float) -> int:
    """Workers that a node can hold at a time; two share a GPU only where both parts fit on it."""
    room = int((resources.get("CPU", 0.0) + SLACK) // cpus)
    there = resources.get("GPU", 0.0) + SLACK
    if gpus >= 1:
        room = min(room, int(there // gpus))
    elif gpus > 0:
        room = min(room, int(there) * int((1 + SLACK) // gpus))
    return room
