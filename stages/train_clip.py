"""Stage `train_clip`: a CLIP for this corpus, trained on it, loaded by an open_clip name or copied; and how well it
tells pairs apart."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm import stage  # before torch, whose MKL reads once how it is to multiply

# isort: split

import torch
from torch import Tensor, nn

from ldm import artifact, clip, config, fingerprint, images, state, workspace
from ldm.captions import Captions
from ldm.clip import contrastive
from ldm.clip.pretrained import pretrained
from ldm.history import History
from ldm.params.machine import MachineParams
from ldm.params.paths import PathsParams
from ldm.params.train_clip import TrainClipParams
from ldm.shards import Shards
from ldm.training import train

if TYPE_CHECKING:
    from accelerate import Accelerator

BATCH_SIZE = 256


class Pairs:
    """Images and captions of one split, in memory and on the disk."""

    def __init__(self, paths: PathsParams, split: str) -> None:
        self.images = Shards(Path(paths.images) / split)
        self.captions = Captions(Path(paths.captions) / split)
        self.captions.check_keys(self.images)

    def pixels(self, samples: Sequence[int]) -> Tensor:
        """Images of samples."""
        return images.to_tensor([self.images[sample]["png"] for sample in samples])

    def distinct(self, count: int) -> tuple[list[int], list[str]]:
        """The first samples whose first captions differ from all before, at most `count`, and those captions."""
        first = {texts[0]: sample for sample, texts in reversed(list(enumerate(self.captions.texts)))}
        samples = sorted(first.values())[:count]
        return samples, [self.captions.texts[sample][0] for sample in samples]

    def twins(self, count: int) -> tuple[list[int], list[str]]:
        """The first pairs 2i, 2i + 1 with different first captions, at most `count` samples, and those captions."""
        texts = [texts[0] for texts in self.captions.texts]
        firsts = [i for i in range(0, len(texts) - 1, 2) if texts[i] != texts[i + 1]][: count // 2]
        samples = [sample for i in firsts for sample in (i, i + 1)]
        return samples, [texts[sample] for sample in samples]


def measure(model: clip.Clip, val: Pairs, params: TrainClipParams, device: torch.device) -> dict[str, float]:
    """Retrieval among distinct captions of the validation split and, where there are twins, how well those are told
    apart."""
    samples, texts = val.distinct(params.num_validation_pairs)
    metrics = {**contrastive.retrieval(*features(model, val, samples, texts, device)), "num_pairs": len(samples)}
    num_images = min(params.num_validation_pairs, len(val.captions))
    if len(samples) < num_images:  # captions repeat, so these pairs are few: all images are asked for their caption too
        places = {text: place for place, text in enumerate(texts)}
        own = [{places[text] for text in val.captions.texts[i] if text in places} for i in range(num_images)]
        found = image_features(model, val, range(num_images), device), text_features(model, texts, device)
        metrics["caption_accuracy"] = contrastive.caption_accuracy(*found, own)
    if params.twins_together and (twins := val.twins(params.num_validation_pairs))[0]:
        metrics["twin_accuracy"] = contrastive.twin_accuracy(*features(model, val, *twins, device))
    return metrics


def features(
    model: clip.Clip, pairs: Pairs, samples: Sequence[int], texts: Sequence[str], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Image and text features of pairs, of length 1."""
    return image_features(model, pairs, samples, device), text_features(model, texts, device)


def image_features(model: clip.Clip, pairs: Pairs, samples: Sequence[int], device: torch.device) -> Tensor:
    """Features of samples' images, of length 1."""
    starts = range(0, len(samples), BATCH_SIZE)
    batches = (pairs.pixels(samples[start : start + BATCH_SIZE]) for start in starts)
    return torch.cat([model.image_features(pixels.to(device)).float() for pixels in batches])


def text_features(model: clip.Clip, texts: Sequence[str], device: torch.device) -> Tensor:
    """Features of captions, of length 1."""
    starts = range(0, len(texts), BATCH_SIZE)
    batches = (model.tokenise(texts[start : start + BATCH_SIZE]) for start in starts)
    return torch.cat([model.text_features(ids.to(device)).float() for ids in batches])


def train_new(
    params: TrainClipParams, pairs: Pairs, val: Pairs, accelerator: "Accelerator", run: state.Run
) -> tuple[clip.Clip, History]:
    """A new model, trained on `pairs`."""
    assert params.network is not None and params.training is not None, "params without pretrained have both"
    training = params.training
    model = clip.build(params.network, training.seed).to(accelerator.device)

    batches = contrastive.Batches(pairs.captions.texts, training.batch_size, training.seed, params.twins_together)

    def batch_at_step(step: int, rows: slice) -> dict[str, Tensor]:
        samples, texts = batches.at_step(step)
        return {"image": pairs.pixels(samples[rows]), "ids": model.tokenise(texts[rows])}

    def keys_at_step(step: int) -> list[str]:
        return [pairs.captions.keys[sample] for sample in batches.at_step(step)[0]]

    def validate(_: nn.Module) -> dict[str, float]:
        return measure(model, val, params, accelerator.device)

    objective = contrastive.ContrastiveObjective(model)
    history = train(
        objective, batch_at_step, keys_at_step, training, accelerator, run, validate=validate, name="train_clip"
    )
    return model, history


def main() -> str:
    params = config.read(TrainClipParams, "train_clip")
    paths = config.read(PathsParams, "paths")
    machine = config.read(MachineParams, "machine")
    accelerator = stage.start(params.training.precision if params.training else "fp32", machine)
    pairs, val = Pairs(paths, "train"), Pairs(paths, "val")
    inputs = {"images": pairs.images.sha256, "captions": pairs.captions.sha256}
    run = state.Run(workspace.runs(paths.runs), "train_clip", fingerprint.of(params, inputs), machine)
    if params.pretrained is None:
        model, history = train_new(params, pairs, val, accelerator, run)
    else:
        model, history, inputs = pretrained(params).to(accelerator.device), None, dict[str, str]()
    with stage.outputs(accelerator, Path(paths.clip), Path(paths.clip_results)) as (folder, results):
        metrics: dict[str, float] = {}
        if accelerator.is_main_process:
            with torch.no_grad():
                metrics = measure(model.eval(), val, params, accelerator.device)
            model.save(folder, inputs, {"pretrained": params.pretrained} | (history.facts if history else {}))
            artifact.write_json(results / "metrics.json", metrics)
            if history is not None:
                history.write(results)
    run.remove()
    accuracies = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if name != "num_pairs")
    return f"train_clip: {accuracies} among {metrics.get('num_pairs', 0)} pairs -> {paths.clip}"


if __name__ == "__main__":
    stage.run(main)
