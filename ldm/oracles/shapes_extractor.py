"""A fixed feature space for images of the corpus `shapes`, so that distances can be compared between runs.

The features are those of a small network that reads scenes. `studies/shapes_extractor.py` trained it once, and its
weights are stored beside this file. It is only a measuring instrument: it was trained on every composition, including
held-out ones, and on no output of a run. Only stage `evaluate` needs it.
"""

from pathlib import Path
from typing import cast

from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from ldm.core import artifact
from ldm.corpora.shapes_vocabulary import ANCHORS, AXES, BACKGROUNDS, COLOURS, RADII, SHAPES

WEIGHTS = Path(__file__).with_suffix(".safetensors")
WEIGHTS_SHA256 = "288a3e83790abd8ce2e5b40a24b9a46f21d75ccb9f81c9cb05e1e7c094ff7458"
SIZE_PX = 64
NUM_FEATURES = 96
MAX_OBJECTS = 3
LAYOUTS = (*((1, place) for place in ANCHORS), *((n, axis) for n in range(2, MAX_OBJECTS + 1) for axis in AXES))
"""Layouts of a scene: (number of objects, their place or axis)."""
DAMAGES = ("blur", "noise", "deformation")
LOOKS = {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(RADII)}
OUTPUTS = {
    "layout": len(LAYOUTS),
    "background": len(BACKGROUNDS),
    **{f"{look}_{i}": len(names) for i in range(MAX_OBJECTS) for look, names in LOOKS.items()},
    "damage": len(DAMAGES),
}
"""Outputs -> number of values: class scores (objects in reading order), and amounts of damage."""


class Extractor(nn.Module):
    """Five convolutions and a linear layer compute features; a second linear layer maps features to `OUTPUTS`."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 64, 64)
        strides = (2, 2, 2, 1, 2)
        layers: list[nn.Module] = []
        for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * 16, NUM_FEATURES), nn.SiLU())
        self.heads = nn.Linear(NUM_FEATURES, sum(OUTPUTS.values()))

    def forward(self, image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        """Features of square RGB images of any size."""
        x = image.float()
        if x.shape[-1] != SIZE_PX:
            size = (SIZE_PX, SIZE_PX)
            x = functional.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
        return self.layers(x / 127.5 - 1)

    def read(self, features: Float[Tensor, "b f"]) -> dict[str, Float[Tensor, "b n"]]:
        """Outputs of the network from features, by name (see `OUTPUTS`)."""
        values = self.heads(features).split(list(OUTPUTS.values()), dim=1)
        return dict(zip(OUTPUTS, cast("tuple[Tensor, ...]", values), strict=True))


def load() -> Extractor:
    """Load the trained network, on the CPU. IntegrityError: its file is missing or was changed."""
    artifact.check_file(WEIGHTS, WEIGHTS_SHA256)
    net = Extractor()
    net.load_state_dict(artifact.open_tensors(WEIGHTS))
    return net.eval().requires_grad_(False)
