"""Trains one network on many workers of a Ray cluster, with Ray Train's TorchTrainer.

Every worker makes its own rows of every batch and nothing is sent but gradients. A worker that
dies takes its group with it; Ray Train starts another group, and that one continues from the last
checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stepsearch.cluster import connect, prepare_ray
from stepsearch.core.errors import ConfigError, Interrupted, StepsearchError
from stepsearch.training.loop import OnStep, Team

FAILURES = 3  # groups of workers that may be lost in one run
POLL_SECONDS = 0.25  # between looks at what workers report
STOP_SECONDS = 60.0  # for workers to finish a step and write a checkpoint
CLOSE_SECONDS = 40.0  # that Ray Train may take to end what it has begun; some 12 are usual
AGAIN = "the same command continues from the last checkpoint"

Train = Callable[[Team, str, OnStep], None]  # on a device; stops where on_step raises Interrupted
Steps = list[tuple[int, Mapping[float, float]]]


def _import_ray(address: str | None) -> Any:
    """Ray with its trainer, and the settings that it reads when it is imported."""
    prepare_ray(address)
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # paths mean the same to all workers
    import ray
    import ray.train.torch

    return ray


class _Board:
    """An actor beside the driver: what workers report, and whether they are to stop."""

    def __init__(self) -> None:
        self._steps: Steps = []
        self._trouble: str | None = None
        self._stop = self._ended = False

    def report(self, steps: Steps) -> bool:
        """Steps that were done; answers whether to stop."""
        self._steps += steps
        return self._stop

    def end(self, trouble: str | None = None) -> None:
        """Training has ended, or there is none, and why."""
        self._ended, self._trouble = True, trouble

    def read(self, stop: bool) -> tuple[Steps, bool, str | None]:
        """What was reported since the last time; `stop` is told to whoever reports next."""
        steps, self._steps, self._stop = self._steps, [], stop
        return steps, self._ended, self._trouble


class RayTrainer:
    """Workers on a new local Ray, or on the cluster at `address`.

    Args:
        check: raises Interrupted once training is to stop.

    Raises:
        ConfigError: a cluster that has too few CPUs or GPUs, or none at `address`.
    """

    def __init__(
        self,
        workers: int,
        *,
        address: str | None = None,
        cpus_per_worker: int = 1,
        gpus_per_worker: float = 0.0,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._workers, self._check = workers, check
        self._each = {"CPU": cpus_per_worker, "GPU": gpus_per_worker}
        self._ray = _import_ray(address)
        # what Ray Train notes for itself; its default is a folder in the user's home
        self._begun: list[_Fit] = []
        self._notes = tempfile.TemporaryDirectory(
            prefix="stepsearch-ray-", ignore_cleanup_errors=True
        )
        try:
            with _quiet():
                connect(self._ray, workers, address, cpus=cpus_per_worker, gpus=gpus_per_worker)
        except BaseException:
            self.close()
            raise

    def __call__(self, factory: Callable[[], Train], on_step: OnStep) -> None:
        """Train to the end; `on_step` is called here, soon after every step of the first worker.

        Args:
            factory: called in every worker, and again in those of a group that replaces a lost
                one; no worker trains where it raises a StepsearchError anywhere.

        Raises:
            ConfigError: a factory that raised.
            Interrupted: of `check`, when the workers have stopped.
            StepsearchError: more groups were lost than may be.
        """
        board = self._ray.remote(num_cpus=0)(_Board).remote()
        with _quiet():
            running = _Fit(self._trainer({"factory": factory, "board": board}))
            self._begun.append(running)
            try:
                stopped, trouble = self._follow(running, board, on_step)
            except self._ray.exceptions.RayError as error:
                self._check()  # a signal to the whole group may end Ray before its workers
                raise StepsearchError(f"ray: {_last_line(error)}; {AGAIN}") from None
        if stopped is not None:
            raise stopped
        if trouble is not None:
            raise ConfigError(trouble)
        if running.error is not None:
            raise StepsearchError(
                f"ray: training failed and was taken up again {FAILURES} times, the last: "
                f"{_last_line(running.error)}; {AGAIN}"
            )

    def _trainer(self, job: dict[str, Any]) -> Any:
        train, gpus = self._ray.train, self._each["GPU"]
        return train.torch.TorchTrainer(
            _work,
            train_loop_config=job,
            # NCCL takes no two workers on one GPU; gloo does
            torch_config=train.torch.TorchConfig("nccl" if gpus >= 1 else "gloo"),
            scaling_config=train.ScalingConfig(
                num_workers=self._workers, use_gpu=gpus > 0, resources_per_worker=self._each
            ),
            run_config=train.RunConfig(
                name=secrets.token_hex(8),  # runs of one name would be one run
                storage_path=self._notes.name,
                failure_config=train.FailureConfig(max_failures=FAILURES),
            ),
        )

    def _follow(
        self, running: _Fit, board: Any, on_step: OnStep
    ) -> tuple[Interrupted | None, str | None]:
        """Pass reports on until the end; returns what stopped it, and why none trained.

        It is the first worker that says when the end has come: Ray Train needs 12 seconds more
        to stop an actor that asks a dashboard, of which there is none.
        """
        stopped, asked, begun = None, 0.0, False
        while True:
            over = running.ended(POLL_SECONDS)
            if stopped is None:
                try:
                    self._check()
                except Interrupted as error:
                    stopped, asked = error, time.monotonic()
            steps, ended, trouble = self._ray.get(board.read.remote(stopped is not None))
            for step, losses in steps:
                on_step(step, losses)
            begun = begun or bool(steps)
            deaf = stopped is not None and (not begun or time.monotonic() - asked > STOP_SECONDS)
            if over or ended or deaf:
                return stopped, trouble

    def close(self) -> None:
        """Stop the workers, and Ray itself if it was started here.

        Ray ends the whole process, with status 1, where a thread asks it for anything after that.
        """
        with _quiet():
            deadline = time.monotonic() + CLOSE_SECONDS
            for running in self._begun:
                running.ended(max(deadline - time.monotonic(), 0.0))
            self._ray.shutdown()
        self._notes.cleanup()


def _quiet() -> contextlib.redirect_stdout[Any]:
    """Ray prints what its raylet says of dead workers to stdout, which belongs to data."""
    return contextlib.redirect_stdout(sys.stderr)


class _Fit:
    """`trainer.fit()` in a thread: in the main one it would take the signals of the driver."""

    def __init__(self, trainer: Any) -> None:
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(trainer,), daemon=True)
        self._thread.start()

    def _run(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except Exception as error:  # told by the thread that asks
            self.error = error

    def ended(self, seconds: float) -> bool:
        """Whether it has ended, after waiting for at most `seconds`."""
        self._thread.join(seconds)
        return not self._thread.is_alive()


def _work(job: Mapping[str, Any]) -> None:
    """What every worker of a group runs."""
    import ray.train.torch

    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    device, board = str(ray.train.torch.get_device()), job["board"]
    train, trouble = None, None
    try:
        train = job["factory"]()
    except StepsearchError as error:
        trouble = f"worker on {socket.gethostname()}: {error}"
    troubles: list[str | None] = [None] * size
    dist.all_gather_object(troubles, trouble)  # a worker that trains alone would wait for ever
    first = next((t for t in troubles if t is not None), None)
    if train is None or first is not None:
        ray.get(board.end.remote(first))
        return

    def average(tensor: Tensor) -> None:
        dist.all_reduce(tensor)
        tensor /= size

    report = _Report(ray, board, rank, device)
    with contextlib.suppress(Interrupted):
        train(Team(rank, size, average), device, report)
    report.close()


class _Report:
    """`on_step` of a worker: the first one tells the board, and all stop at the same step."""

    def __init__(self, ray: Any, board: Any, rank: int, device: str) -> None:
        self._ray, self._board, self._rank, self._device = ray, board, rank, device
        self._waiting: Steps = []
        self._answer: Any = None
        self._stop = False

    def __call__(self, step: int, losses: Mapping[float, float]) -> None:
        if self._rank == 0:
            self._waiting.append((step, losses))
            if self._answer is None or self._ray.wait([self._answer], timeout=0)[0]:
                self._send()
        stop = torch.tensor(float(self._stop), device=self._device)
        dist.all_reduce(stop)
        if stop.item():
            raise Interrupted("the driver stops")

    def _send(self) -> None:
        """One message at a time: where steps are faster than the board, many go together."""
        if self._answer is not None:
            self._stop = self._ray.get(self._answer)
        self._answer, self._waiting = self._board.report.remote(self._waiting), []

    def close(self) -> None:
        """Tell the rest."""
        if self._rank == 0:
            self._send()
            self._ray.get([self._answer, self._board.end.remote()])


def _last_line(error: Exception) -> str:
    """What went wrong in the first worker that failed."""
    failures = getattr(error, "worker_failures", {})
    lines = str(next(iter(failures.values()), error)).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
