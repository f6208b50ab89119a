"""Ray's job API: a command that runs on a cluster, under an id that is used once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stepsearch.cluster import prepare_ray
from stepsearch.core.errors import ConfigError

AGAIN = "-again-"  # between the id of a job and the number of a later attempt
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
POLL_SECONDS = 2.0
NEEDED = (
    "submit ray: needs ray[default], here and on the cluster's head; install it with "
    "`pip install 'stepsearch[cluster]'`"
)


@dataclass(frozen=True, slots=True)
class Job:
    """A job of a cluster; `status` is Ray's word for it."""

    job_id: str
    status: str
    exit_code: int | None = None  # of its command, once that has ended
    submitted: bool = False  # just now

    @property
    def ended(self) -> bool:
        """Whether its command runs no more."""
        return self.status in ENDED


def open_client(address: str) -> Any:
    """Ray's client of the jobs at http://HOST:PORT, with the token if there is one.

    Raises:
        ConfigError: no ray[default] here, or no cluster there.
    """
    prepare_ray(address)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(name, None)  # they would go before what was asked for
    try:
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise ConfigError(NEEDED) from None
    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        raise ConfigError(
            f"--address {address}: the cluster wants its token; put it into ~/.ray/auth_token or "
            f"RAY_AUTH_TOKEN"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        if "ray[default]" in str(error):
            raise ConfigError(NEEDED) from None
        raise ConfigError(
            f"--address {address}: {_first_line(error)}; use http://HOST:PORT of the dashboard of "
            f"a running cluster"
        ) from None


def submit_once(client: Any, job_id: str, command: str, runtime_env: dict[str, Any]) -> Job:
    """Submit a job, unless one of that id runs or has succeeded; safe to call twice, or at once.

    Ids of a cluster are used once: where an attempt ended in another way, the next one has a number
    behind the id.

    Args:
        command: for a shell.
    """
    attempts = _attempts(client, job_id)
    if attempts and not (attempts[-1].ended and attempts[-1].status != "SUCCEEDED"):
        return attempts[-1]
    name = job_id if not attempts else f"{job_id}{AGAIN}{len(attempts) + 1}"
    try:
        client.submit_job(entrypoint=command, submission_id=name, runtime_env=runtime_env)
    except RuntimeError as error:
        later = _attempts(client, job_id)
        if len(later) > len(attempts):  # someone else was quicker
            return later[-1]
        raise ConfigError(f"submit ray: {_first_line(error)}") from None
    return Job(name, "PENDING", submitted=True)


def wait_for(
    client: Any, job: Job, check: Callable[[], None], seconds: float = POLL_SECONDS
) -> Job:
    """The job when it has ended; `check` is called between questions and may raise."""
    while True:
        check()
        found = _of(client.get_job_info(job.job_id))
        if found.ended:
            return found
        time.sleep(seconds)


def _attempts(client: Any, job_id: str) -> list[Job]:
    """Jobs of that id, the first attempt first."""
    found = {}
    for details in client.list_jobs():
        name, again, number = (details.submission_id or "").partition(AGAIN)
        if name == job_id and (not again or number.isdigit()):
            found[int(number) if again else 1] = _of(details)
    return [found[number] for number in sorted(found)]


def _of(details: Any) -> Job:
    status = getattr(details.status, "value", details.status)
    return Job(details.submission_id, str(status), details.driver_exit_code)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
