"""By hand: a head and two nodes as a user starts them, one node killed while a search runs there.

`python tests/faults/two_nodes.py` prints what happened; it needs some three minutes, and is no test
of the suite. Every node is a `ray start` of its own in a group of its own, with token authentication
and a home folder of its own; nothing else on the machine is touched.
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


def stepsearch(environment, *arguments):
    return subprocess.Popen(
        [str(BIN / "stepsearch"), *map(str, arguments)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


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
        alone = stepsearch(environment, "run", space, "-o", folder / "alone", *SETTINGS)
        assert alone.wait() == 0, alone.stderr.read()
        facts = {"one_worker_seconds": round(time.monotonic() - began, 1)}
        address, nodes = start_nodes(stack, folder, environment)
        began = time.monotonic()
        run = ["run", space, "-o", folder / "two", "--workers", 2, "--address", address, *SETTINGS]
        search = stepsearch(environment, *run)
        wait_for(search, folder / "two", KILL_AT)
        killed, at = nodes[2].kill(), finished(folder / "two")
        _, err = search.communicate(timeout=300)
        facts |= {
            "exit_status": search.returncode,
            "cluster_seconds": round(time.monotonic() - began, 1),
            "killed_after_trials": at,
            "processes_killed": len(killed),
            "trials": finished(folder / "two"),
            "attempts_lost": (folder / "two" / "log.txt").read_text().count("attempt "),
        }
        assert search.returncode == 0, err
        for name in ("trials.csv", "pareto.csv"):
            assert timeless(folder / "two" / name) == timeless(folder / "alone" / name), name
        facts["pareto_rows"] = len(timeless(folder / "two" / "pareto.csv"))
        facts["same_tables_as_one_worker"] = True
        facts |= head_lost(environment, space, folder, address, nodes[0])
    print(json.dumps(facts, indent=2))


def head_lost(environment, space, folder, address, head):
    """A longer search, whose head is killed: exit status 75 and one line, nothing lost."""
    out = folder / "three"
    run = ["run", space, "-o", out, "--workers", 1, "--address", address, *SETTINGS, *LONG]
    search = stepsearch(environment, *run)
    wait_for(search, out, KILL_AT)
    head.kill()
    began = time.monotonic()
    _, err = search.communicate(timeout=120)
    seconds = round(time.monotonic() - began, 1)
    assert search.returncode == 75, err
    assert "Traceback" not in err, err
    keys = [row["key"] for row in timeless(out / "trials.csv")]
    assert len(set(keys)) == len(keys) == finished(out) >= KILL_AT
    return {
        "head_lost_exit_status": 75,
        "head_lost_seconds": seconds,
        "head_lost_last_line": err.strip().splitlines()[-1].replace(str(out), "RUN"),
        "head_lost_trials_kept": len(keys),
    }


if __name__ == "__main__":
    os.umask(0o077)
    main()
