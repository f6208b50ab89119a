"""A disk that fails: the calls of `os` that change files, wrapped in a driver of its own process.

A point is a moment before, within or after such a call; a call is what an error is raised by.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Any

BY_NAME = ("replace", "rename", "truncate", "unlink", "mkdir")  # the first argument is a path
BY_NUMBER = ("write", "fsync", "ftruncate")  # the first argument is a descriptor
MOVES = ("replace", "rename")
POINTLESS = ("mkdir",)  # of a folder that is nearly always there
GROWS = ("write", "open", "mkdir", "replace", "rename")  # what needs room
REFUSE = (errno.EROFS, errno.EACCES)  # of a disk that takes nothing at all


class Disk:
    """Counts points and calls below a folder, and injects one fault.

    Args:
        kill: the point to die at, from 0.
        call: the call to fail, from 0, with the error `fails`; part of a write is done first.
        lasting: whether every later call that the error fits fails as well.
    """

    def __init__(
        self,
        folder: str,
        *,
        kill: int | None = None,
        call: int | None = None,
        fails: str = "EIO",
        lasting: bool = False,
    ) -> None:
        self.folder, self.kill, self.call, self.lasting = folder, kill, call, lasting
        self.error = getattr(errno, fails)
        self.points: list[str] = []
        self.calls: list[str] = []
        self.real: dict[str, Callable[..., Any]] = {}

    def install(self) -> None:
        """From now on, until the process ends."""
        for name in (*BY_NAME, *BY_NUMBER, "open"):
            self.real[name] = getattr(os, name)
            setattr(os, name, self._wrapped(name))

    def _wrapped(self, name: str) -> Callable[..., Any]:
        def call(target: Any, *args: Any, **kwargs: Any) -> Any:
            path = self._path(name, target)
            reads = name == "open" and not args[0] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
            if reads or not path.startswith(self.folder):
                return self.real[name](target, *args, **kwargs)
            what = f"{name} {os.path.basename(args[0] if name in MOVES else path)}"
            self.calls.append(what)
            failing = self._failing(name)
            self._point(f"before {what}")
            if name == "write":
                result = self._write(target, args[0], what, failing)
            else:
                self._fail(failing)
                result = self.real[name](target, *args, **kwargs)
            self._point(f"after {what}")
            return result

        return call

    def _write(self, descriptor: int, data: bytes, what: str, failing: bool) -> int:
        """In two halves, as a kernel may do."""
        half = 0 if failing and self.error in REFUSE else len(data) // 2
        done = self.real["write"](descriptor, data[:half])
        self._point(f"within {what}")
        self._fail(failing)
        return done + self.real["write"](descriptor, data[half:])

    def _fail(self, failing: bool) -> None:
        if failing:
            raise OSError(self.error, os.strerror(self.error))

    def _path(self, name: str, target: Any) -> str:
        if name not in BY_NUMBER:
            return os.path.abspath(os.fspath(target))
        return os.readlink(f"/proc/self/fd/{target}")

    def _failing(self, name: str) -> bool:
        number = len(self.calls) - 1
        if self.call is None or number < self.call:
            return False
        if number == self.call:
            return True
        full = self.error in (errno.ENOSPC, errno.EDQUOT)
        return self.lasting and (name in GROWS if full else True)

    def _point(self, what: str) -> None:
        if what.split()[1] in POINTLESS:
            return
        if len(self.points) == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        self.points.append(what)
