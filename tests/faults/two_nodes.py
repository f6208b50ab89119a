"""By hand: a head and two nodes as a user starts them, one node killed while a search runs there.

`python tests/faults/two_nodes.py` prints what happened; it needs some three minutes, and is no test
of the suite. Every node is a `ray start` of its own in a group of its own, with token
authentication and a home folder of its own; nothing else on the machine is touched.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
from support import copy_toy, quiet_environment, timeless

BIN = Path(sys.executable).parent
SETTINGS = ["search.population=8", "search.generations=5", "evaluation.images=2500"]
LONG = ["search.generations=200"]
KILL_AT = 12
STORE = "--object-store-memory=100000000"


class Node:
    """A `ray start --block` and all that it starts."""

    def __init__(self, log, arguments, environment):
        self.log, self.began = log, time.monotonic()
        command = [BIN / "ray", "start", "--block", "--disable-usage-stats", STORE, *arguments]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*map(str, command)],
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def wait_started(self):
        """Return when Ray says so."""
        while "Ray runtime started" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() - self.began < 90, "a node does not start"
            time.sleep(0.1)

    def family(self):
        try:
            own = psutil.Process(self.process.pid)
        except psutil.NoSuchProcess:
            return []
        return [own, *own.children(recursive=True)]

    def kill(self):
        """SIGKILL to raylet, workers and the rest at once."""
        family = self.family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(timeout=30)
        return family

    def stop(self):
        family = self.family()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=20)
        for process in psutil.wait_procs(family, timeout=5)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def own_environment(folder, cache):
    """A home with a token of its own, and no setting of Ray from outside."""
    home = folder / "home"
    (home / ".ray").mkdir(parents=True)
    token = home / ".ray" / "auth_token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    kept = {k: v for k, v in quiet_environment(cache).items() if not k.startswith("RAY_")}
    return kept | {"HOME": str(home)}


def start_nodes(stack, folder, environment):
    """Address of the head, and the head and two nodes of one CPU."""
    address = f"127.0.0.1:{free_port()}"
    token = environment | {"RAY_AUTH_MODE": "token"}
    head = ["--head", f"--port={address.rpartition(':')[2]}", "--num-cpus=0"]
    head += ["--include-dashboard=false", f"--temp-dir={folder / 'h'}"]
    nodes = []
    for name, arguments in (
        ("head", head),
        ("a", [f"--address={address}", "--num-cpus=1"]),
        ("b", [f"--address={address}", "--num-cpus=1"]),
    ):
        nodes.append(Node(folder / f"{name}.log", arguments, token))
        stack.callback(nodes[-1].stop)
        nodes[-1].wait_started()
    return address, nodes


@contextlib.contextmanager
def stepsearch(environment, *arguments):
    """A `stepsearch` that is ended if the caller leaves early."""
    process = subprocess.Popen(
        [str(BIN / "stepsearch"), *map(str, arguments)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()


def finished(folder):
    journal = folder / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def wait_for(process, folder, count):
    deadline = time.monotonic() + 180
    while finished(folder) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the search stands still"
        time.sleep(0.05)


def main():
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="ss-", dir="/tmp"))
        folder = Path(place)
        space = copy_toy(folder)
        environment = own_environment(folder, folder / "cache")
        began = time.monotonic()
        with stepsearch(environment, "run", space, "-o", folder / "alone", *SETTINGS) as alone:
            _, err = alone.communicate()
            assert alone.returncode == 0, err
        show("one worker", seconds=round(time.monotonic() - began, 1))
        address, nodes = start_nodes(stack, folder, environment)
        common = [environment, "run", space, *SETTINGS, "--address", address, "--workers"]
        node_lost([*common, 2, "-o"], folder / "two", folder / "alone", nodes[2])
        head_lost([*common, 1, *LONG, "-o"], folder / "three", nodes[0])


def show(what, **facts):
    print(json.dumps({"": what, **facts}), flush=True)


def node_lost(command, out, alone, node):
    """Two workers on two nodes, one of which is killed: the tables of one worker."""
    began = time.monotonic()
    with stepsearch(*command, out) as search:
        wait_for(search, out, KILL_AT)
        at, killed = finished(out), node.kill()
        _, err = search.communicate(timeout=400)
        assert search.returncode == 0, err
    for name in ("trials.csv", "pareto.csv"):
        assert timeless(out / name) == timeless(alone / name), name
    show(
        "node killed",
        exit_status=search.returncode,
        seconds=round(time.monotonic() - began, 1),
        after_trials=at,
        processes_killed=len(killed),
        trials=finished(out),
        attempts_lost=(out / "log.txt").read_text().count("attempt "),
        pareto_rows_like_one_worker=len(timeless(out / "pareto.csv")),
    )


def head_lost(command, out, head):
    """A longer search, whose head is killed: exit status 75 and one line, nothing lost."""
    with stepsearch(*command, out) as search:
        wait_for(search, out, KILL_AT)
        head.kill()
        began = time.monotonic()
        _, err = search.communicate(timeout=200)
        assert search.returncode == 75, err
    assert "Traceback" not in err, err
    keys = [row["key"] for row in timeless(out / "trials.csv")]
    assert len(set(keys)) == len(keys) == finished(out) >= KILL_AT
    show(
        "head killed",
        exit_status=search.returncode,
        seconds=round(time.monotonic() - began, 1),
        trials_kept=len(keys),
        last_line=err.strip().splitlines()[-1],
    )


if __name__ == "__main__":
    os.umask(0o077)
    main()
