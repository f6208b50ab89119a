"""Errors a user can act on; each carries the exit status of the command line."""

from __future__ import annotations

import errno

FULL = (errno.ENOSPC, errno.EDQUOT)  # a full disk, a spent quota


class StepsearchError(Exception):
    """Base of all expected errors; the message is one line: place, value, remedy."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # what users typed is quoted in messages: a line break in it must not make two lines
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class ConfigError(StepsearchError):
    """Bad input: a file, an override, a flag or an argument."""

    exit_code = 2


class SpaceError(ConfigError):
    """A setting that no solver, grid or network can carry out."""


class FailureBudgetExceeded(StepsearchError):
    """Too many trials failed for the search to mean anything."""

    exit_code = 3


class NoFeasibleCandidate(StepsearchError):
    """The search ended without a single completed trial."""

    exit_code = 4


class RunError(StepsearchError):
    """A run directory that is corrupt, locked by another driver, or made for something else."""

    exit_code = 5


class Interrupted(StepsearchError):
    """Stopped by a signal; everything finished is in the journal and `resume` continues."""

    exit_code = 75


class NoSpace(StepsearchError):
    """No room on a disk; everything finished is in the journal and `resume` continues."""

    exit_code = 75
