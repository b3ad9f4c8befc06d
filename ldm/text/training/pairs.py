"""Images and captions of a split for training a CLIP, and its validation metrics."""

from collections.abc import Callable, Sequence
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.compute.process import Accelerator
from ldm.compute.state import Run
from ldm.core import images
from ldm.core.shards import Shards
from ldm.text.model import clip
from ldm.text.model.captions import Captions
from ldm.text.training import contrastive
from ldm.text.training.params import TrainClipParams, TrainedClipParams
from ldm.training.history import History
from ldm.training.loop import train

_BATCH_SIZE = 256


class ImagesAndCaptions:
    """Images of one split and its captions, both read when they are asked for."""

    def __init__(self, image_shards: Path, captions: Path) -> None:
        self.images = Shards(image_shards)
        self.captions = Captions(captions)
        self.captions.check_keys(self.images)

    @property
    def files(self) -> list[tuple[Path, str]]:
        """Every shard with its SHA-256."""
        return [*self.images.files, *self.captions.shards.files]

    def pixels(self, samples: Sequence[int], size_px: int) -> Tensor:
        """Images of samples, uint8 [b, 3, h, w]. If the split has several sizes, their centre squares of `size_px`
        pixels, since a CLIP sees squares."""
        if len(self.images.buckets) == 1:
            return self.images.images(samples)
        return images.to_squares([self.images.image(sample) for sample in samples], size_px)

    def distinct(self, count: int) -> tuple[list[int], list[str]]:
        """At most `count` samples with distinct first captions, each the first of its caption, and these captions."""
        first: dict[str, int] = {}
        for sample, texts in enumerate(self.captions.texts):
            if len(first) == count:
                break
            first.setdefault(texts[0], sample)
        return list(first.values()), list(first)

    def twins(self, count: int) -> tuple[list[int], list[str]]:
        """The first pairs 2i, 2i + 1 with different first captions, at most `count` samples, and these captions."""
        texts = enumerate(texts[0] for texts in self.captions.texts)
        pairs = zip(texts, texts, strict=False)
        differ = islice((pair for pair in pairs if pair[0][1] != pair[1][1]), count // 2)
        found = list(chain.from_iterable(differ))
        return [sample for sample, _ in found], [text for _, text in found]


def measure(
    model: clip.Clip, val: ImagesAndCaptions, params: TrainClipParams, device: torch.device
) -> dict[str, float]:
    """Retrieval among distinct captions of the validation split; also `caption_accuracy` if captions repeat, and
    `twin_accuracy` if there are twins."""
    samples, texts = val.distinct(params.num_validation_pairs)
    metrics = {**contrastive.retrieval(*features(model, val, samples, texts, device)), "num_pairs": len(samples)}
    num_images = min(params.num_validation_pairs, len(val.captions))
    if len(samples) < num_images:  # captions repeat, so these pairs are few: also measure all images
        places = {text: place for place, text in enumerate(texts)}
        own = [{places[text] for text in val.captions.texts[i] if text in places} for i in range(num_images)]
        found = image_features(model, val, range(num_images), device), text_features(model, texts, device)
        metrics["caption_accuracy"] = contrastive.caption_accuracy(*found, own)
    twins_together = isinstance(params.source, TrainedClipParams) and params.source.twins_together
    if twins_together and (twins := val.twins(params.num_validation_pairs))[0]:
        metrics["twin_accuracy"] = contrastive.twin_accuracy(*features(model, val, *twins, device))
    return metrics


def features(
    model: clip.Clip, pairs: ImagesAndCaptions, samples: Sequence[int], texts: Sequence[str], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Image and text features of pairs, of length 1."""
    return image_features(model, pairs, samples, device), text_features(model, texts, device)


def image_features(model: clip.Clip, pairs: ImagesAndCaptions, samples: Sequence[int], device: torch.device) -> Tensor:
    """Features of the images of samples, of length 1."""
    starts = range(0, len(samples), _BATCH_SIZE)
    size_px = model.preprocess.size_px
    batches = (pairs.pixels(samples[start : start + _BATCH_SIZE], size_px) for start in starts)
    return torch.cat([model.image_features(pixels.to(device)).float() for pixels in batches])


def text_features(model: clip.Clip, texts: Sequence[str], device: torch.device) -> Tensor:
    """Features of captions, of length 1."""
    starts = range(0, len(texts), _BATCH_SIZE)
    batches = (model.tokenise(texts[start : start + _BATCH_SIZE]) for start in starts)
    return torch.cat([model.text_features(ids.to(device)).float() for ids in batches])


def train_new(
    source: TrainedClipParams,
    pairs: ImagesAndCaptions,
    validate: Callable[[clip.Clip], dict[str, float]],
    accelerator: Accelerator,
    run: Run,
) -> tuple[clip.Clip, History]:
    """Build a new model and train it on `pairs`; returns it with the history of its training."""
    training = source.training
    model = clip.build(source.network, training.seed).to(accelerator.device)
    batches = contrastive.Batches(pairs.captions.texts, training.batch_size, training.seed, source.twins_together)

    def batch_at_step(step: int, rows: slice) -> dict[str, Tensor]:
        samples, texts = batches.at_step(step)
        return {"image": pairs.pixels(samples[rows], model.preprocess.size_px), "ids": model.tokenise(texts[rows])}

    def keys_at_step(step: int) -> list[str]:
        return [pairs.captions.keys[sample] for sample in batches.at_step(step)[0]]

    def validate_model(_: nn.Module) -> dict[str, float]:
        return validate(model)

    objective = contrastive.ContrastiveObjective(model)
    history = train(
        objective, batch_at_step, keys_at_step, training, accelerator, run, validate=validate_model, name="train_clip"
    )
    return model, history
