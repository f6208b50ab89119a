"""Which extractor a name means: one of our own, or one that torch-fidelity registers."""

from __future__ import annotations

from stepsearch.core.protocols import FeatureExtractor
from stepsearch.objectives.fidelity import fidelity_features, find_extractor
from stepsearch.objectives.registry import EXTRACTORS, FeatureRequest


def make_extractor(request: FeatureRequest) -> FeatureExtractor:
    """The extractor called `request.name`, ours first; ConfigError where it cannot be built."""
    if request.name in EXTRACTORS:
        return EXTRACTORS[request.name](request)
    return fidelity_features(request)


def check_extractor(name: str) -> None:
    """ConfigError for a name that neither we nor an installed torch-fidelity know."""
    if name not in EXTRACTORS:
        find_extractor(name)
