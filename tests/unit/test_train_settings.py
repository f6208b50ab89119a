"""What the train section of a recipe means for the identity of its weights."""

from dataclasses import asdict, fields, replace

import pytest

from stepsearch.core.settings import DataSettings, Immiscible, Recipe, TrainConfig

CONFIG = TrainConfig(steps=10)
RECIPE = Recipe("net", DataSettings("digits"), "unet", {"base": 8}, (1.0,), CONFIG)
OTHERS = {
    "between": 2,
    "width_weight": 1.0,
    "distill": 0.5,
    "flip": True,
    "accumulate": 2,
    "precision": "bf16",
    "compile": True,
    "immiscible": Immiscible(64),
}


def identity(**train):
    return replace(RECIPE, train=replace(CONFIG, **train)).sha256("0" * 64)


def test_recipes_of_the_first_version_keep_their_identity():
    """Their weights lie on disk under this name."""
    first = ("steps", "batch", "learning_rate", "warmup", "ema", "grad_clip", "seed")
    assert list(CONFIG.content()) == [*first, "checkpoint_every", "threads"]
    assert RECIPE.content()["train"] == {k: asdict(CONFIG)[k] for k in CONFIG.content()}


@pytest.mark.parametrize("name", OTHERS)
def test_every_way_to_train_is_an_identity_of_its_own(name):
    assert identity(**{name: OTHERS[name]}) != identity()


def test_no_way_to_train_is_forgotten_here():
    later = {f.name for f in fields(TrainConfig)} - set(CONFIG.content())
    assert later == OTHERS.keys() | {"trunk"}  # which says where a bank branches, and no more


def test_a_pool_of_one_is_plain_training():
    assert identity(immiscible=Immiscible(1)) == identity()
    assert identity(immiscible=Immiscible(2)) != identity(immiscible=Immiscible(3))
    assert identity(immiscible=Immiscible(2, "knn")) != identity(immiscible=Immiscible(2))
