"""`stepsearch submit`: a search as a job of a cluster."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from stepsearch.core.errors import ConfigError

if TYPE_CHECKING:
    from stepsearch.submission import Nodes, Search

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def submit_arguments(parser: argparse.ArgumentParser) -> None:
    """What `submit` is told."""
    parser.description = (
        "ray: submit to the cluster at --address; submitting the same run again attaches to it, or "
        "continues it where it ended unfinished. slurm, kuberay: print a job file."
    )
    parser.add_argument("where", choices=("ray", "slurm", "kuberay"))
    parser.add_argument("words", nargs="*", metavar="FILE|key=value")
    text = "absolute path that all nodes see, or a URI as s3://bucket/run"
    parser.add_argument("-o", "--output", metavar="PLACE", help=text)
    parser.add_argument("--run-id", metavar="ID", help="name of the job (default: of the search)")
    parser.add_argument("--workers", type=int, metavar="N", help="concurrent trials")
    parser.add_argument("--gpus-per-worker", type=float, metavar="F", help="fractions allowed")
    text = "import the code that a recipe names under data: {dataset: ...}"
    parser.add_argument("--allow-code", action="store_true", help=text)
    ray = parser.add_argument_group("ray")
    ray.add_argument("--address", metavar="URL", help="of the dashboard, http://HOST:8265")
    text = "send nothing: FILE, its recipes and weights lie where all nodes see them"
    ray.add_argument("--in-place", action="store_true", help=text)
    text = "until the job has ended, and exit with its status"
    ray.add_argument("--wait", action="store_true", help=text)
    files = parser.add_argument_group("slurm and kuberay")
    files.add_argument("--nodes", type=int, default=1, metavar="N", help="(default 1)")
    files.add_argument("--cpus-per-node", type=int, default=1, metavar="N", help="(default 1)")
    files.add_argument("--gpus-per-node", type=int, default=0, metavar="N", help="(default 0)")
    slurm = parser.add_argument_group("slurm")
    slurm.add_argument("--time", default="24:00:00", help="of the job (default 24:00:00)")
    text = "further option of sbatch, e.g. --sbatch=--partition=gpu; may be repeated"
    slurm.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help=text)
    pods = parser.add_argument_group("kuberay")
    pods.add_argument("--image", help="with Ray and stepsearch")
    pods.add_argument("--memory", default="8Gi", help="of a pod (default 8Gi)")
    text = "a PersistentVolumeClaim that all pods mount"
    pods.add_argument("--volume", metavar="CLAIM:PATH", help=text)


def submit(args: argparse.Namespace) -> int:
    """Submit, or print the job file; of a Ray job the id is printed."""
    from stepsearch.submission import check_words

    _check(args)
    check_words([str(args.file), args.output or "", *args.overrides])
    return {"ray": _ray, "slurm": _slurm, "kuberay": _kuberay}[args.where](args)


def _check(args: argparse.Namespace) -> None:
    for name in ("workers", "nodes", "cpus_per_node"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: must be at least 1, got {value}")
    for name in ("gpus_per_worker", "gpus_per_node"):
        value = getattr(args, name)
        if value is not None and value < 0:
            raise ConfigError(f"--{name.replace('_', '-')}: must not be negative, got {value:g}")
    if args.run_id is not None and not RUN_ID.fullmatch(args.run_id):
        raise ConfigError(
            f"--run-id: '{args.run_id}': use up to 64 letters, digits, '.', '_' and '-'"
        )


def _search(args: argparse.Namespace, space: str, workers: int) -> Search:
    from stepsearch.submission import Search, check_output

    return Search(
        space=space,
        output=check_output(args.output),
        workers=args.workers or workers,
        gpus_per_worker=args.gpus_per_worker,
        overrides=tuple(args.overrides),
        allow_code=args.allow_code,
    )


def _nodes(args: argparse.Namespace) -> Nodes:
    from stepsearch.submission import Nodes

    return Nodes(args.nodes, args.cpus_per_node, args.gpus_per_node)


def _slurm(args: argparse.Namespace) -> int:
    from stepsearch.config import read_space
    from stepsearch.submission import slurm_script

    name = args.run_id or read_space(args.file, args.overrides).name
    nodes = _nodes(args)
    search = _search(args, str(args.file.resolve()), nodes.count * nodes.cpus)
    print(slurm_script(search, name, nodes, args.time, args.sbatch), end="")
    return 0


def _kuberay(args: argparse.Namespace) -> int:
    from stepsearch.submission import Pods, kuberay_manifest

    if args.image is None:
        raise ConfigError("submit kuberay: --image is missing; name one with Ray and stepsearch")
    if not args.file.is_absolute():
        raise ConfigError(
            f"{args.file}: give the absolute path of the file in the pods, on --volume or in the "
            f"image"
        )
    nodes = _nodes(args)
    search = _search(args, str(args.file), nodes.count * nodes.cpus)
    claim, _, mount = (args.volume or "").partition(":")
    pods = Pods(args.image, args.memory, claim or None, mount or None)
    name = args.run_id or re.sub("[^a-z0-9-]+", "-", args.file.stem.lower()).strip("-")
    print(kuberay_manifest(search, name, nodes, pods), end="")
    return 0


def _ray(args: argparse.Namespace) -> int:
    from stepsearch.bundle import SPACE, write_bundle
    from stepsearch.config import read_space
    from stepsearch.core.settings import content_hash
    from stepsearch.executors.ray_jobs import open_client, submit_once, wait_for
    from stepsearch.signals import Signals

    if args.address is None:
        raise ConfigError("submit ray: --address is missing; give http://HOST:8265 of the cluster")
    settings = read_space(args.file, args.overrides)
    in_place = _search(args, str(args.file.resolve()), 1)
    search = in_place
    if not args.in_place:  # overrides are in the space that is sent
        search = type(in_place)(
            SPACE, in_place.output, in_place.workers, in_place.gpus_per_worker, (), args.allow_code
        )
    identity = content_hash({"space": settings.content(), "output": search.output})
    job_id = args.run_id or f"{settings.name}-{identity[:8]}"
    with tempfile.TemporaryDirectory() as folder, Signals("the same command") as signals:
        environment = {}
        if not args.in_place:
            write_bundle(settings, Path(folder))
            environment["working_dir"] = folder
        client = open_client(args.address)
        command = shlex.join(search.command("auto"))
        job = submit_once(client, job_id, command, environment)
        print(f"{job.job_id}: {'submitted' if job.submitted else job.status}", file=sys.stderr)
        print(job.job_id, flush=True)
        if not args.wait:
            return 0
        job = wait_for(client, job, signals.check)
    print(f"{job.job_id}: {job.status}", file=sys.stderr)
    if job.exit_code:
        print(client.get_job_logs(job.job_id)[-2000:], file=sys.stderr)
    if job.exit_code is None:  # stopped, or lost with its node
        return 0 if job.status == "SUCCEEDED" else 1
    return job.exit_code
