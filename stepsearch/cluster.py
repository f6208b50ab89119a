"""Reaching a Ray cluster: one that is started here, or one at an address.

Ray is an argument, so that only those who run something on it import it.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from stepsearch.core.errors import ConfigError

REACH_SECONDS = 10.0  # for an address to answer at all
STORE_BYTES = 200_000_000  # nothing large passes through the object store


def prepare_ray(address: str | None) -> None:
    """The settings that Ray reads when it is imported.

    A local cluster of one user needs no token, and with the mode unset Ray 2.60 would write one
    that later clusters demand; a remote cluster gets the token if there is one.
    """
    token = Path.home() / ".ray" / "auth_token"
    mode = "token" if address not in (None, "local") and token.is_file() else "disabled"
    os.environ.setdefault("RAY_AUTH_MODE", mode)
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # workers keep this Python
    os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def connect(
    ray: Any, workers: int, address: str | None, *, cpus: int = 1, gpus: float = 0.0
) -> None:
    """Start a local Ray, or join the one at `address`; a worker takes `cpus` and `gpus`.

    Raises:
        ConfigError: a cluster that has too few CPUs or GPUs, or none at `address`.
    """
    common = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address in (None, "local"):
            ray.init(
                address="local",
                num_cpus=workers * cpus,
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                **common,
            )
        else:
            _check_reachable(str(address))
            ray.init(address=address, **common)
    except Exception as error:  # of a node that does not start in time it is no narrower
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"ray: cannot reach {address or 'a local cluster'}: {first}") from None
    found = ray.cluster_resources()
    for kind, needed in (("CPU", workers * cpus), ("GPU", workers * gpus)):
        if found.get(kind, 0) < needed:
            raise ConfigError(
                f"--workers {workers}: needs {needed:g} {kind}s, the Ray cluster has "
                f"{found.get(kind, 0):g}; ask for fewer workers or start more nodes"
            )


def _check_reachable(address: str) -> None:
    """ConnectionError unless something listens there; Ray itself would wait for ever."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
