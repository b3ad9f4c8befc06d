"""Trains the network of `ldm/oracles/shapes_extractor.py` once: scenes of all compositions, lightly damaged.

`python -m studies.shapes_extractor` takes about four minutes on one core; it writes the weights beside that file and
prints accuracies and the hash that belongs into it. Other kinds of CPU give other bits, hence the committed weights.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from ldm.core import artifact, config
from ldm.core.shards import Split
from ldm.corpora import shapes_scenes
from ldm.corpora import shapes_vocabulary as vocabulary
from ldm.corpora.params import PrepareParams, ShapesParams
from ldm.oracles import shapes_extractor as design
from studies import outlines

SEED = 0
NUM_SCENES = 20000
NUM_STEPS = 2500
BATCH_SIZE = 96
LEARNING_RATE = 2e-3
COUNT_WEIGHTS = (0.3, 0.5, 0.2)
ABSENT = -100
"""Label of objects that a scene lacks: the cross entropy's word for "do not count"."""
MAX_BLUR_PX, MAX_NOISE, MAX_DEFORMATION = 1.0, 0.08, 0.1
"""Deviation of the blur, of the noise as a fraction of white, and wobble as a fraction of the radius."""
COLOUR_JITTER = 0.02
"""Deviation of the gain and of the offset, as a fraction of white, of each channel."""


@dataclass(frozen=True)
class Scenes:
    """Rendered scenes, what they show (class numbers by head), and how much of each of `design.DAMAGES` they took."""

    image: UInt8[Tensor, "b 3 64 64"]
    labels: dict[str, Int64[Tensor, "b"]]
    damage: Float[Tensor, "b 3"]


def labels(scenes: list[shapes_scenes.Scene]) -> dict[str, Int64[Tensor, "b"]]:
    """Class numbers by head; objects in reading order."""
    rows = [_labels(scene) for scene in scenes]
    return {name: torch.tensor([row.get(name, ABSENT) for row in rows]) for name in design.OUTPUTS if name != "damage"}


def _labels(scene: shapes_scenes.Scene) -> dict[str, int]:
    row = {
        "layout": design.LAYOUTS.index((len(scene.objects), scene.arrangement)),
        "background": list(vocabulary.BACKGROUNDS).index(scene.background),
    }
    for i, o in enumerate(scene.objects):
        row |= {f"{look}_{i}": names.index(getattr(o, look)) for look, names in design.LOOKS.items()}
    return row


def draw(num_scenes: int, seed: int) -> Scenes:
    """Scenes of all compositions; half of them are unhurt in each way, and one in four has been a JPEG."""
    rng, noise = random.Random(f"{seed}/extractor"), np.random.default_rng(seed)
    scenes: list[shapes_scenes.Scene] = []
    rendered: list[UInt8[np.ndarray, "h w 3"]] = []
    amounts: list[list[float]] = []
    for _ in range(num_scenes):
        count = rng.choices(range(1, len(COUNT_WEIGHTS) + 1), COUNT_WEIGHTS)[0]
        scene = outlines.random_scene(rng, vocabulary.SHAPES, tuple(vocabulary.RADII), count)
        amount = [rng.choice((0.0, rng.uniform(0, 1))) for _ in design.DAMAGES]
        image = damaged(scene, amount, rng, noise)
        scenes.append(scene)
        rendered.append(outlines.jpeg(image) if rng.random() < 0.25 else image)
        amounts.append(amount)
    return Scenes(stacked(rendered), labels(scenes), torch.tensor(amounts))


def damaged(
    scene: shapes_scenes.Scene, amount: list[float], rng: random.Random, noise: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """A render with each of `design.DAMAGES` from 0 to 1, and with gain and offset of each channel a little off."""
    blur, grain, deformation = amount
    image = outlines.render(scene, design.SIZE_PX, outlines.wobbly(deformation * MAX_DEFORMATION), rng) / 255
    soft = ndimage.gaussian_filter(image, (blur * MAX_BLUR_PX, blur * MAX_BLUR_PX, 0))
    gain, offset = noise.normal(0, COLOUR_JITTER, (2, 3))
    values = soft * (1 + gain) + offset + grain * MAX_NOISE * noise.standard_normal(soft.shape)
    return (255 * values).round().clip(0, 255).astype(np.uint8)


def stacked(rendered: list[UInt8[np.ndarray, "h w 3"]]) -> UInt8[Tensor, "b 3 h w"]:
    """One batch of images."""
    return torch.from_numpy(np.stack(rendered)).permute(0, 3, 1, 2).contiguous()


def loss_of(net: design.Extractor, scenes: Scenes, rows: Int64[Tensor, "r"]) -> Float[Tensor, ""]:
    """Mean cross entropy of the heads, plus the squared error of the damage that is read, over some scenes."""
    found = net.read(net(scenes.image[rows]))
    entropies = [functional.cross_entropy(found[name], wanted[rows]) for name, wanted in scenes.labels.items()]
    return torch.stack(entropies).mean() + functional.mse_loss(found["damage"], scenes.damage[rows])


def train(num_scenes: int, num_steps: int, seed: int) -> tuple[design.Extractor, list[float]]:
    """The network after `num_steps` of AdamW with a one-cycle rate, and the loss of every step."""
    torch.manual_seed(seed)
    scenes, net = draw(num_scenes, seed), design.Extractor()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps)
    losses: list[float] = []
    for step in range(num_steps):
        loss = loss_of(net, scenes, torch.randint(num_scenes, (BATCH_SIZE,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 0:
            print(f"step {step}: {np.mean(losses[-100:]):.4f}", flush=True)
    return net.eval().requires_grad_(False), losses


def accuracy(
    net: design.Extractor, scenes: list[shapes_scenes.Scene], image: UInt8[Tensor, "b 3 h w"]
) -> dict[str, float]:
    """Share of right answers by kind, and of scenes in which everything is right."""
    found, wanted = net.read(net(image)), labels(scenes)
    right = {name: (found[name].argmax(1) == values) | (values == ABSENT) for name, values in wanted.items()}
    kinds = {"layout": ["layout"], "background": ["background"]}
    kinds |= {look: [f"{look}_{i}" for i in range(design.MAX_OBJECTS)] for look in design.LOOKS}
    kinds["scene"] = list(wanted)
    return {kind: torch.stack([right[n] for n in names]).all(0).float().mean().item() for kind, names in kinds.items()}


def corpus_scenes(split: Split, count: int, params: ShapesParams) -> list[shapes_scenes.Scene]:
    """Scenes of the corpus itself."""
    return [shapes_scenes.scene_at(number, split, params) for number in range(count)]


def main() -> None:
    """Train, write the weights, print their hash and the accuracies."""
    torch.set_num_threads(1)
    net, _ = train(NUM_SCENES, NUM_STEPS, SEED)
    artifact.write_tensors(design.WEIGHTS, net.state_dict())
    print(f"SHA-256 {artifact.sha256_file(design.WEIGHTS)}, {design.WEIGHTS.stat().st_size} bytes")
    corpus = config.read(PrepareParams, "prepare", Path(__file__).resolve().parents[1] / "params.yaml").corpus
    assert isinstance(corpus, ShapesParams)
    for split in ("val", "held_out"):
        scenes = corpus_scenes(split, 1000, corpus)
        image = stacked([shapes_scenes.render(scene, design.SIZE_PX) for scene in scenes])
        words = ", ".join(f"{kind} {share:.3f}" for kind, share in accuracy(net, scenes, image).items())
        print(f"{split}: {words}")


if __name__ == "__main__":
    main()
