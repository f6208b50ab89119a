"""How a recipe is trained: its images, network, batches and loss; trunks and workers."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn

from stepsearch.core.distill_settings import DistillConfig
from stepsearch.core.errors import ConfigError, Interrupted
from stepsearch.core.files import write_atomic
from stepsearch.core.process import TRAINED, get_process
from stepsearch.core.protocols import NoisyBatch
from stepsearch.core.settings import Recipe, TrainConfig
from stepsearch.nets.families import FAMILIES
from stepsearch.nets.start import start_from
from stepsearch.training.batches import Batches
from stepsearch.training.data import Dataset, OnProgress, load_dataset
from stepsearch.training.loop import ALONE, Loss, OnStep, Team, train_supernet
from stepsearch.training.losses import LossLog, recent_losses
from stepsearch.training.noising import AddNoise, BlurAndNoise

WINDOW = 200  # last steps that the card's loss per width is averaged over


def recipe_data(
    recipe: Recipe,
    *,
    allow_code: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> Dataset:
    """The images that a recipe names; arguments as of `load_dataset`."""
    return load_dataset(**asdict(recipe.data), allow_code=allow_code, on_progress=on_progress)


def build_network(recipe: Recipe, data: Dataset, device: str) -> nn.Module:
    """Fresh weights drawn from the recipe's seed, or those of its `init`."""
    seed = 0 if recipe.train is None else recipe.train.seed
    # torch's initialisers know no generator argument: seed the global one inside a fork of it
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.random.default_generator.manual_seed(seed)
        try:
            shape = data.images.shape[1:]
            module = FAMILIES[recipe.family].build(recipe.net, shape, recipe.widths)
        except ConfigError as error:
            raise ConfigError(f"{recipe.file}: net: {error}") from None
    if recipe.init:
        start_from(Path(recipe.init), recipe.init_sha256, module)
    return module


def checkpoint_path(path: Path) -> Path:
    """Where training in progress lies, beside the weights that it will be."""
    return path.with_suffix(".training")


def losses_path(path: Path) -> Path:
    """Where the losses of the steps of a checkpoint, or of weights, are kept."""
    return path.with_name(f"{path.stem}-losses.csv")


def trunk_path(recipe: Recipe, data: Dataset) -> Path:
    """Where the first steps lie that all networks of a bank share, beside the recipe."""
    name = f"{Path(recipe.file).stem}-{recipe.trunk_sha256(data.sha256)[:8]}.trunk"
    return Path(recipe.file).with_name(name)


def recipe_batches(recipe: Recipe, data: Dataset) -> Batches:
    """What each step of a trained recipe sees."""
    assert recipe.train is not None
    return Batches(
        data.images,
        recipe.widths,
        AddNoise(get_process(TRAINED)) if recipe.relay is None else BlurAndNoise(recipe.relay),
        recipe.train,
        labels=data.labels if FAMILIES[recipe.family].classes(recipe.net) else None,
        groups=data.labels if noise_scope(recipe) == "within_class" else None,
    )


def noise_scope(recipe: Recipe) -> str | None:
    """Among which images noise is assigned: None where each image keeps what it drew."""
    immiscible = None if recipe.train is None else recipe.train.immiscible
    if immiscible is None or recipe.train.pool == 1 or immiscible.method != "assignment":
        return None
    reads_labels = FAMILIES[recipe.family].classes(recipe.net) > 0
    return immiscible.scope or ("within_class" if reads_labels else "global")


def recipe_loss(recipe: Recipe) -> Loss:
    """The family's loss; with `distill` narrower widths also learn what the widest answers."""
    family, config = FAMILIES[recipe.family], recipe.train
    assert config is not None
    if not config.distill:
        return family.loss
    part, widest = config.distill, max(recipe.widths)

    def loss(module: nn.Module, batch: NoisyBatch, width: float) -> Tensor:
        if width < widest:
            with torch.no_grad():
                answer = family.answer(module, batch, widest)
            batch = replace(batch, target=torch.lerp(batch.target, answer.float(), part))
        return family.loss(module, batch, width)

    return loss


def train_recipe(
    recipe: Recipe,
    config: TrainConfig,
    module: nn.Module,
    data: Dataset,
    path: Path,
    device: str,
    on_step: OnStep | None,
    together: Together | None,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """EMA weights, and the mean loss of each width over the last steps."""
    checkpoint = checkpoint_path(path)
    with torch_threads(config.threads):
        if config.trunk is not None and not checkpoint.is_file():
            trunk = _ensure_trunk(recipe, module, data, device, on_step, together)
            write_atomic(checkpoint, trunk.read_bytes())
        weights = _steps(recipe, module, data, checkpoint, device, on_step, together)
    return weights, recent_losses(losses_path(checkpoint), WINDOW)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads of torch, until the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _ensure_trunk(
    recipe: Recipe,
    module: nn.Module,
    data: Dataset,
    device: str,
    on_step: OnStep | None,
    together: Together | None,
) -> Path:
    """The checkpoint that the networks of a bank branch off from, trained unless it is there."""
    trunk, common = trunk_path(recipe, data), replace(recipe, train=recipe.plain or recipe.train)
    assert common.train is not None
    with FileLock(trunk.with_suffix(".lock")):
        if not trunk.is_file():
            started = checkpoint_path(trunk)
            how = (device, on_step, together)
            _steps(common, module, data, started, *how, stop=common.train.trunk)
            started.rename(trunk)
    return trunk


def _steps(
    recipe: Recipe,
    module: nn.Module,
    data: Dataset,
    checkpoint: Path,
    device: str,
    on_step: OnStep | None,
    together: Together | None = None,
    *,
    stop: int | None = None,
    team: Team = ALONE,
) -> dict[str, Tensor]:
    """Train to step `stop`, or the last; what workers have done `together` is not done again."""
    assert recipe.train is not None
    on_step = on_step or (lambda step, losses: None)
    if together is not None:
        with _marked(checkpoint) as mark:
            end = stop or recipe.train.steps
            together(Member(recipe, checkpoint.absolute(), data.sha256, mark, end), on_step)
    if team.rank == 0:
        on_step = logged(on_step, LossLog(losses_path(checkpoint)), stop, recipe.train)
    return train_supernet(
        module,
        recipe_batches(recipe, data),
        recipe.train,
        loss=recipe_loss(recipe),
        checkpoint=checkpoint,
        on_step=on_step,
        device=device,
        team=team,
        stop=stop,
    )


def logged(
    on_step: OnStep, log: LossLog, stop: int | None, config: TrainConfig | DistillConfig
) -> OnStep:
    """Keeps the losses too; they are written before every checkpoint, and at the end."""
    last = stop or config.steps

    def watch(step: int, losses: Mapping[float, float]) -> None:
        log.add(step, losses)
        try:
            on_step(step, losses)
        except Interrupted:
            log.write()
            raise
        if step % config.checkpoint_every == 0 or step == last:
            log.write()

    return watch


@dataclass(frozen=True, slots=True)
class Member:
    """What one of many workers needs to take its part in training; called there, it loads that.

    Dropout is drawn by each for its own rows: networks that have it are trained a little
    differently by every number of workers, all others alike.
    """

    recipe: Recipe
    checkpoint: Path
    data_sha256: str
    mark: str  # what the file beside the checkpoint holds
    stop: int
    allow_code: bool = False

    def __call__(self) -> Callable[[Team, str, OnStep], None]:
        """Images and network; ConfigError where this worker does not see what the driver sees."""
        mark = _mark_path(self.checkpoint)
        if not mark.is_file() or mark.read_text() != self.mark:
            raise ConfigError(
                f"{self.checkpoint.parent}: is not the folder that the driver sees; put the "
                f"recipe on a file system that all nodes share"
            )
        data = recipe_data(self.recipe, allow_code=self.allow_code)
        if data.sha256 != self.data_sha256:
            raise ConfigError(
                f"{self.recipe.file}: data: '{data.name}' holds other images here than where the "
                f"driver runs; use the same on all nodes"
            )
        return partial(self._train, data)

    def _train(self, data: Dataset, team: Team, device: str, on_step: OnStep) -> None:
        assert self.recipe.train is not None
        torch.set_num_threads(self.recipe.train.threads)
        module = build_network(self.recipe, data, "cpu")
        where = (self.checkpoint, device, on_step)
        _steps(self.recipe, module, data, *where, stop=self.stop, team=team)


Together = Callable[[Member, OnStep], None]


@contextlib.contextmanager
def _marked(checkpoint: Path) -> Iterator[str]:
    """A file by which workers know the folder, and what it holds."""
    mark, text = _mark_path(checkpoint), secrets.token_hex(16)
    write_atomic(mark, text.encode())
    try:
        yield text
    finally:
        mark.unlink(missing_ok=True)


def _mark_path(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".team")
