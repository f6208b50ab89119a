"""Job files and jobs for clusters: one command, which continues a run that is there already."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from stepsearch.core.errors import ConfigError
from stepsearch.remote import is_uri

WARNING_SECONDS = 300  # between SLURM's warning and the end of a job's time
RETRIES = 3  # of a RayJob
KEEP_SECONDS = 600  # a finished RayJob's cluster, for its logs
MOUNT = "/etc/stepsearch"  # of the command in pods
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@,+=-]*")  # what needs no quotes in a comment line
POD_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,45}[a-z0-9])?")
MEMORY = re.compile(r"[0-9]+(\.[0-9]+)?([EPTGMk]i?)?")


@dataclass(frozen=True, slots=True)
class Nodes:
    """Machines of a job, all alike."""

    count: int = 1
    cpus: int = 1  # of each
    gpus: int = 0  # of each


@dataclass(frozen=True, slots=True)
class Search:
    """A search as `stepsearch run` is told of it."""

    space: str
    output: str
    workers: int
    gpus_per_worker: float | None = None
    overrides: tuple[str, ...] = ()
    allow_code: bool = False

    def command(self, address: str) -> list[str]:
        """The words of the command, which may be run any number of times."""
        words = ["stepsearch", "run", self.space, "--resume", "-o", self.output]
        words += ["--address", address, "--workers", str(self.workers)]
        if self.gpus_per_worker is not None:
            words += ["--gpus-per-worker", f"{self.gpus_per_worker:g}"]
        return [*words, *(["--allow-code"] if self.allow_code else []), *self.overrides]


def check_output(output: str | None) -> str:
    """ConfigError for results that would be lost with a job's temporary folder."""
    if output is None or not (is_uri(output) or Path(output).is_absolute()):
        raise ConfigError(
            f"-o: {output or 'missing'}: a job runs in a temporary folder; give an absolute path "
            f"that all nodes see, or a URI as s3://bucket/run"
        )
    return output


def check_words(words: Sequence[str]) -> None:
    """ConfigError for what no command line can hold."""
    for word in words:
        if "\0" in word or any("\ud800" <= c <= "\udfff" for c in word):
            raise ConfigError(f"{word!r}: holds a character that no command can; remove it")


def slurm_script(
    search: Search, name: str, nodes: Nodes, time: str, options: Sequence[str] = ()
) -> str:
    """A batch script: Ray on all nodes of the job, the search on the first.

    Before its time is up SLURM warns the batch shell, which tells the search alone: of the signal
    that would reach all processes of the job Ray's own would die. The search ends what is running
    and exits with 75, and the job is put back into the queue, where it continues.

    Args:
        time: as sbatch takes it, e.g. 24:00:00.
        options: further ones of sbatch, e.g. --partition=gpu.

    Raises:
        ConfigError: an option that is none, or a value that no comment line can hold.
    """
    before, _, after = (shlex.join(part) for part in _parts(search.command("ADDRESS")))
    given = [
        f"--job-name={name}",
        f"--nodes={nodes.count}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={nodes.cpus}",
        *([f"--gpus-per-node={nodes.gpus}"] if nodes.gpus else []),
        "--exclusive",
        f"--time={time}",
        f"--signal=B:USR1@{WARNING_SECONDS}",
        "--requeue",
        "--open-mode=append",
        *options,
    ]
    for option in given:
        if not (option.startswith("--") and WORD.fullmatch(option[2:])):
            raise ConfigError(f"sbatch option '{option}': expected --name or --name=value")
    lines = "\n".join(f"#SBATCH {option}" for option in given)
    ray = f"--num-cpus={nodes.cpus} --num-gpus={nodes.gpus}"
    return f"""#!/bin/bash
{lines}
# Nodes are this job's own (--exclusive): symmetric-run ends by stopping every Ray of the user.
set -u

# Ray asks everyone for a token, which is made for this job and leaves it in no file. The dashboard
# listens on the first node's localhost alone.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))') || exit 1
export RAY_AUTH_MODE RAY_AUTH_TOKEN

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address="$head:$((20000 + SLURM_JOB_ID % 10000))"
driver=$(mktemp) || exit 1

# One signal to the search; Ray's processes know nothing of it.
trap 'warned=yes; [ -s "$driver" ] && kill -USR1 "$(cat "$driver")"' USR1

srun --export=ALL \\
  ray symmetric-run --address "$address" --min-nodes {nodes.count} {ray} -- \\
  bash -c 'echo "$$" > "$0"; exec "$@"' "$driver" \\
  {before} "$address" {after} &
step=$!
warned=yes
while [ -n "$warned" ]; do  # a signal ends `wait` early
  warned=
  wait "$step"
  code=$?
done
rm -f "$driver"
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def _parts(words: list[str]) -> tuple[list[str], list[str], list[str]]:
    """What is before the address, the address, and what is behind it."""
    at = words.index("--address") + 1
    return words[:at], words[at : at + 1], words[at + 1 :]


@dataclass(frozen=True, slots=True)
class Pods:
    """What a RayJob's pods are made from."""

    image: str  # with Ray and stepsearch
    memory: str = "8Gi"  # of each
    claim: str | None = None  # a PersistentVolumeClaim that all of them mount ...
    mount: str | None = None  # ... at this absolute path


def kuberay_manifest(search: Search, name: str, nodes: Nodes, pods: Pods) -> str:
    """A RayJob and the script that it runs.

    The script lies in a ConfigMap, so that its words pass through no shell but its own. KubeRay
    from 1.5.1 makes a token for the cluster and gives it to all of its pods; its dashboard must be
    reached by the operator, and answers to that token alone.

    Raises:
        ConfigError: a name that Kubernetes does not take, or a volume without its path.
    """
    if not POD_NAME.fullmatch(name):
        raise ConfigError(
            f"--run-id: '{name}' cannot name a RayJob; use up to 47 lower-case letters, digits "
            f"and '-'"
        )
    if not MEMORY.fullmatch(pods.memory):
        raise ConfigError(f"--memory: '{pods.memory}': expected a number with a unit, as 16Gi")
    if (pods.claim is None) != (pods.mount is None) or not (pods.mount or "/").startswith("/"):
        raise ConfigError("--volume: expected CLAIM:/absolute/path")
    script = f"#!/bin/bash\nexec {shlex.join(search.command('auto'))}\n"
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-command"},
        "data": {"run.sh": script},
    }
    head, worker = (_template(kind, name, nodes, pods) for kind in ("ray-head", "ray-worker"))
    group = {"groupName": "workers", "replicas": nodes.count, "minReplicas": nodes.count}
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": f"bash {MOUNT}/run.sh",
            "backoffLimit": RETRIES,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": KEEP_SECONDS,
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                "authOptions": {"mode": "token"},
                # a search's workers stay off the head, whose memory is the cluster's own
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": head},
                "workerGroupSpecs": [
                    group | {"maxReplicas": nodes.count, "rayStartParams": {}, "template": worker}
                ],
            },
        },
    }
    return str(yaml.safe_dump_all([config, job], sort_keys=False, width=100))


def _template(kind: str, name: str, nodes: Nodes, pods: Pods) -> dict[str, Any]:
    """A pod of the head or of a worker, asking for as much as it may use."""
    resources: dict[str, Any] = {"cpu": nodes.cpus, "memory": pods.memory}
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    if kind == "ray-head":
        resources["cpu"] = 2
        volumes.append({"name": "command", "configMap": {"name": f"{name}-command"}})
        mounts.append({"name": "command", "mountPath": MOUNT, "readOnly": True})
    elif nodes.gpus:
        resources["nvidia.com/gpu"] = nodes.gpus
    if pods.claim is not None:
        volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": pods.claim}})
        mounts.append({"name": "runs", "mountPath": pods.mount})
    container: dict[str, Any] = {
        "name": kind,
        "image": pods.image,
        "resources": {"requests": dict(resources), "limits": dict(resources)},
    }
    if mounts:
        container["volumeMounts"] = mounts
    return {"spec": {"containers": [container]} | ({"volumes": volumes} if volumes else {})}
