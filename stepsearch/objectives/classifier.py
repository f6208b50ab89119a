"""Features of a small classifier trained on the data set itself, for images that ImageNet networks
were never shown. Trained once per data set, deterministic on a CPU, cached by content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from stepsearch.core.errors import ConfigError
from stepsearch.core.files import write_atomic
from stepsearch.core.noise import generator
from stepsearch.objectives.registry import EXTRACTORS, FeatureRequest

SETTINGS = {"channels": 32, "dim": 64, "epochs": 12, "batch": 64, "rate": 2e-3, "seed": 0, "v": 1}


class Classifier(nn.Module):
    """Three convolutions, average pooling, a feature layer of `dim` and a linear head."""

    def __init__(self, image_channels: int, classes: int) -> None:
        super().__init__()
        c, dim = int(SETTINGS["channels"]), int(SETTINGS["dim"])
        self.conv1 = nn.Conv2d(image_channels, c, 3, padding=1)
        self.conv2 = nn.Conv2d(c, 2 * c, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * c, 2 * c, 3, padding=1)
        self.hidden = nn.Linear(2 * c * 4, dim)
        self.head = nn.Linear(dim, classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, dim)."""
        x = images.float() / 127.5 - 1
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.silu(conv(x))
        return F.silu(self.hidden(F.adaptive_avg_pool2d(x, 2).flatten(1)))


class ClassifierFeatures:
    """The penultimate layer of a trained `Classifier`."""

    name = "classifier"
    dim = int(SETTINGS["dim"])

    def __init__(
        self,
        model: Classifier,
        sha256: str,
        accuracy: float,
        device: str,
        files: tuple[Path, ...] = (),
    ) -> None:
        self.files = files  # of the cache that it was read from
        self.model = model.eval().requires_grad_(False).to(device)
        self.sha256, self.accuracy, self.device = sha256, accuracy, device

    def __call__(self, images: Tensor) -> np.ndarray:
        """(B, C, H, W) uint8 -> (B, dim) float32."""
        with torch.no_grad():
            return self.model.features(images.to(self.device)).cpu().numpy()


@EXTRACTORS.register("classifier")
def classifier_features(request: FeatureRequest) -> ClassifierFeatures:
    """Load the data set's classifier from the cache, or train it; ConfigError without labels.

    Once cached, the images themselves are not needed.
    """
    identity = json.dumps({"data": request.data_sha256, **SETTINGS}, sort_keys=True)
    stem = hashlib.sha256(identity.encode()).hexdigest()[:12]
    path = request.cache / f"classifier-{stem}.safetensors"
    card_path = path.with_suffix(".json")
    if not path.is_file():
        if request.labels is None:
            raise ConfigError(
                "evaluation.features: 'classifier' needs labelled images and the data set has no "
                "labels; use a pretrained extractor, e.g. inception-v3-compat"
            )
        classes = int(request.labels.max()) + 1
        model = Classifier(request.images.shape[1], classes)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums in one order: the same metric on machines of any size
        try:
            accuracy = _train(model, request)
        finally:
            torch.set_num_threads(threads)
        card = {"accuracy": accuracy, "classes": classes, "data_sha256": request.data_sha256}
        write_atomic(card_path, (json.dumps(card | {"settings": SETTINGS}) + "\n").encode())
        write_atomic(path, save(model.state_dict()))
    card, data = json.loads(card_path.read_text()), path.read_bytes()
    model = Classifier(request.images.shape[1], card["classes"])
    model.load_state_dict(load(data))
    sha256 = hashlib.sha256(data).hexdigest()
    return ClassifierFeatures(model, sha256, card["accuracy"], request.device, (path, card_path))


def _train(model: Classifier, request: FeatureRequest) -> float:
    """Train on four fifths of the images; returns the accuracy on the last fifth."""
    assert request.labels is not None
    rng = generator(int(SETTINGS["seed"]))
    images, labels = torch.from_numpy(request.images), torch.from_numpy(request.labels).long()
    order = torch.from_numpy(rng.permutation(len(images)))
    cut = len(order) * 4 // 5
    train, held_out = order[:cut], order[cut:]
    torch_rng = torch.Generator().manual_seed(int(SETTINGS["seed"]))
    with torch.no_grad():
        for p in model.parameters():
            bound = p[0].numel() ** -0.5 if p.ndim > 1 else 0.0
            p.uniform_(-bound, bound, generator=torch_rng)
    optimizer = torch.optim.Adam(model.parameters(), lr=float(SETTINGS["rate"]))
    batch, epochs = int(SETTINGS["batch"]), int(SETTINGS["epochs"])
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = float(SETTINGS["rate"]) * (1 - epoch / epochs)
        for rows in torch.from_numpy(rng.permutation(cut)).split(batch):
            chosen = train[rows]
            loss = F.cross_entropy(model.head(model.features(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        guess = torch.cat(
            [model.head(model.features(images[rows])).argmax(1) for rows in held_out.split(500)]
        )
    return float((guess == labels[held_out]).float().mean())
