"""Which extractor a name means: one of our own, or one that torch-fidelity registers."""

from __future__ import annotations

from stepsearch.core.protocols import FeatureExtractor
from stepsearch.objectives.fidelity import fidelity_features
from stepsearch.objectives.registry import EXTRACTORS, FeatureRequest


def make_extractor(request: FeatureRequest) -> FeatureExtractor:
    """The extractor called `request.name`, ours first; ConfigError where it cannot be built."""
    if request.name in list(EXTRACTORS):  # `in` on a Registry raises for names it does not know
        return EXTRACTORS[request.name](request)
    return fidelity_features(request)
