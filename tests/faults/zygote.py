"""A process with one thread that has imported what a search needs: drivers are forked from it, in
milliseconds, and may be killed."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Job = Mapping[str, Any]  # "job" names a function of drivers.py, the rest are its arguments


class Ended:
    """How a driver ended: its exit status, minus the signal that killed it, and what it said."""

    def __init__(self, code: int, output: str) -> None:
        self.code, self.output = code, output

    def __repr__(self) -> str:
        return f"exit status {self.code}, said: {self.output}"


class Zygote:
    """Runs jobs, those of one request at the same time; use as a context manager.

    Args:
        prefix: a command that the process is started by.
    """

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
            "OMP_NUM_THREADS": "1",
        }
        self._files = tempfile.TemporaryDirectory()
        self._requests = 0
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._read("ready")

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self._files.cleanup()

    def start(self, *jobs: Job) -> list[int]:
        """Process ids of drivers that have begun."""
        self._requests += 1
        self._outputs = [Path(self._files.name, f"{self._requests}-{n}") for n in range(len(jobs))]
        assert self.process.stdin is not None
        for path in self._outputs:
            path.touch()  # a driver may be killed before it opens its own
        told = [[dict(job), str(path)] for job, path in zip(jobs, self._outputs, strict=True)]
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        pids = self._read("pids")
        assert min(pids) > 1, pids  # 0 and below would signal a whole group
        return pids

    def wait(self) -> list[Ended]:
        """How the drivers of the last `start` ended."""
        codes = self._read("codes")
        texts = [path.read_text() for path in self._outputs]
        return [Ended(code, text) for code, text in zip(codes, texts, strict=True)]

    def run(self, job: str, **arguments: Any) -> Ended:
        """One driver from its beginning to its end."""
        self.start({"job": job, **arguments})
        return self.wait()[0]

    def _read(self, kind: str) -> list[int]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())[kind]


def live(job: dict[str, Any], output: str) -> int:
    """Run a job in this process, as the command line would, and return its exit status."""
    import drivers

    from stepsearch.core.errors import StepsearchError

    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        return getattr(drivers, job.pop("job"))(**job) or 0
    except StepsearchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return 1


def serve() -> None:
    import drivers

    drivers.warm_up()
    gc.collect()
    gc.freeze()  # else every child copies what its collector looks at
    print(json.dumps({"ready": []}), flush=True)
    for line in sys.stdin:
        pids = []
        for job, output in json.loads(line):
            pid = os.fork()
            if not pid:
                code = live(job, output)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            pids.append(pid)
        print(json.dumps({"pids": pids}), flush=True)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps({"codes": codes}), flush=True)


if __name__ == "__main__":
    serve()
