"""Fixtures shared by all tests."""

import json
import os
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"  # read once, when ray is imported

import numpy as np
import pytest
import torch
from hypothesis import settings

from stepsearch.nets.gaussian import GaussianMixture

settings.register_profile("stepsearch", deadline=None, derandomize=True)
settings.load_profile("stepsearch")


def data_folder():
    """Where CIFAR-10 lies, the golden files in the folder beside it."""
    default = Path(__file__).parents[2] / "shared" / "data"
    return Path(os.environ.get("STEPSEARCH_DATA", default)).absolute()


@pytest.fixture(scope="session")
def data():
    return data_folder()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Sums in one order, and no more cores than were asked for."""
    torch.set_num_threads(1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def golden():
    """Loads a golden JSON by name, from the folder beside STEPSEARCH_DATA."""

    def load(name):
        file = data_folder().parent / "golden" / f"{name}.json"
        if not file.is_file():
            pytest.skip(f"{file}: no such file")
        return json.loads(file.read_text())

    return load


@pytest.fixture(scope="session")
def mixture_net(golden):
    """Builds the 4-component mixture in R^8 of the golden files, for a process."""

    def build(process="vp-linear-1000"):
        gmm = golden("pfdiff")["meta"]["gmm"]
        return GaussianMixture(gmm["weights"], gmm["means"], gmm["variances_isotropic"], process)

    return build
