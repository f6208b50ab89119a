"""Reference statistics as a file: what generated images are compared with, and how it was made."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stepsearch.core.errors import ConfigError
from stepsearch.core.files import write_atomic
from stepsearch.core.protocols import FeatureExtractor
from stepsearch.objectives.fid import Reference

FORMAT = 1
TEXTS = ("extractor", "extractor_sha256", "data", "data_sha256")


@dataclass(frozen=True)
class Statistics:
    """Statistics of real images, with all that a number measured against them must name."""

    reference: Reference
    extractor: str
    extractor_sha256: str
    data: str
    data_sha256: str
    images: int
    shape: tuple[int, ...]  # of an image, (C, H, W)
    real_vs_real: float | None  # distance of two halves of the images; None where not measurable

    def save(self, path: Path) -> None:
        """Write an npz; mean and covariance also under the names of pytorch-fid and EDM."""
        mean, cov, features = self.reference.mean, self.reference.cov, self.reference.features
        about = {k: v for k, v in vars(self).items() if k != "reference"} | {"format": FORMAT}
        buffer = io.BytesIO()
        arrays = {"mean": mean, "cov": cov, "mu": mean, "sigma": cov}
        if features is not None:
            arrays["features"] = features
        np.savez(buffer, metadata=json.dumps(about), **arrays)
        write_atomic(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what `save` wrote; ConfigError for anything else, and nothing is run."""
        try:
            with np.load(path, allow_pickle=False) as file:
                missing = [name for name in ("mean", "cov", "metadata") if name not in file]
                if missing:
                    raise ConfigError(
                        f"{path}: has no '{missing[0]}', so nobody knows which extractor made it; "
                        f"write statistics with `stepsearch stats`"
                    )
                mean, cov = file["mean"], file["cov"]
                features = file.get("features")
                about = json.loads(file["metadata"].item())
            _check(mean, cov, about)
            _check_features(features, len(mean))
            del about["format"]
            return cls(Reference(mean, cov, features), **about | {"shape": tuple(about["shape"])})
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"{path}: no readable statistics ({type(error).__name__}: {error}); write them "
                f"again with `stepsearch stats`"
            ) from None

    def check_kid(self, path: str) -> None:
        """ConfigError unless there are features of real images, which KID compares with."""
        if self.reference.features is None:
            raise ConfigError(
                f"evaluation.reference: {path}: has no features of real images, which kid needs; "
                f"write statistics again with `stepsearch stats`, or leave out kid"
            )

    def check_extractor(self, path: str, extractor: FeatureExtractor) -> None:
        """ConfigError unless `extractor` is the one that these statistics were made with."""
        made = f"{self.extractor}@{self.extractor_sha256[:8]}"
        given = f"{extractor.name}@{extractor.sha256[:8]}"
        if (self.extractor, self.extractor_sha256) != (extractor.name, extractor.sha256):
            raise ConfigError(
                f"evaluation.reference: {path}: made with extractor {made}, this run has {given}; "
                f"write statistics with `stepsearch stats --features {extractor.name}` and the "
                f"same data and weights"
            )


def _check(mean: np.ndarray, cov: np.ndarray, about: dict[str, object]) -> None:
    """ValueError where statistics cannot be what `save` wrote."""
    if about["format"] != FORMAT:
        raise ValueError(f"format {about['format']}, this stepsearch reads {FORMAT}")
    if mean.ndim != 1 or cov.shape != 2 * mean.shape or {mean.dtype, cov.dtype} != {np.dtype("f8")}:
        raise ValueError(f"mean {mean.dtype}{mean.shape} and cov {cov.dtype}{cov.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(cov).all() and np.allclose(cov, cov.T)):
        raise ValueError("cov is not finite and symmetric")
    if not all(isinstance(about[k], str) for k in TEXTS) or type(about["images"]) is not int:
        raise ValueError("metadata of other types")


def _check_features(features: np.ndarray | None, dim: int) -> None:
    """ValueError for features of real images that cannot be what `save` wrote."""
    if features is None:
        return
    if features.ndim != 2 or features.shape[1] != dim or features.dtype != np.dtype("f4"):
        raise ValueError(f"features {features.dtype}{features.shape} of dimension {dim}")
    if len(features) < 2 or not np.isfinite(features).all():
        raise ValueError("features are not finite, or of a single image")
