"""Training a CLIP: the pairs of a batch, the contrastive loss over all processes, and metrics of how well a CLIP
matches images and captions."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm import randomness
from ldm.compute import attention
from ldm.core.errors import ConfigError
from ldm.text.model.clip import Clip

_MAX_LOGIT_SCALE = math.log(100.0)


class ContrastiveObjective(nn.Module):
    """The symmetric contrastive loss of CLIP (Radford et al. 2021, figure 3) as open_clip computes it, over the whole
    batch of all processes.

    If captions repeat in a batch, equal captions have equal features. Over the whole batch, the loss is then that of
    UniCL (Yang et al. 2022, equations 1 to 3), in which a caption belongs to all images that have it, so an image never
    counts as a negative of its own caption. As images with the same caption cannot be distinguished, the loss then does
    not reach 0.
    """

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns `loss`, a mean over the rows of this process, and `logit_scale`.

        batch: `image` uint8 [b, 3, h, w] and `ids` int [b, n], the rows of this process.

        Features are gathered from all processes with their gradients. The mean of the losses over processes and its
        gradient are therefore those of one process with the whole batch. As in open_clip, the scale is kept within
        [1, 100]. Loss and scale are float32 even under autocast.
        """
        model = self.clip.model
        with torch.no_grad():
            model.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
        with attention.sdpa_as_attend():
            images = model.encode_image(self.clip.preprocess(batch["image"])).float()
            texts = model.encode_text(batch["ids"]).float()
        with torch.autocast(images.device.type, enabled=False):
            scale = model.logit_scale.float().exp()
            loss = _clip_loss()(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), scale)
        return {"loss": loss, "logit_scale": scale.detach()}


def _clip_loss() -> Any:
    from open_clip.loss import ClipLoss

    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return ClipLoss()
    return ClipLoss(local_loss=True, gather_with_grad=True, rank=dist.get_rank(), world_size=dist.get_world_size())


class Batches:
    """Which pairs the batch of a step holds: a pure function of the step.

    A batch holds every sample and every caption text at most once, since equal captions cannot be distinguished. A
    sample whose caption is in the batch already is replaced by the next sample number that has another caption. If a
    corpus has fewer distinct captions than a batch has pairs (such as one captioned by class), captions repeat within
    a batch, but samples do not.
    """

    def __init__(self, captions: Sequence[list[str]], batch_size: int, seed: int, twins_together: bool) -> None:
        """captions: the captions of every sample. twins_together: samples 2i and 2i + 1 always share a batch, with
        captions of the same rank, as each other's hard negatives; an odd last sample is never used.

        ConfigError: there are fewer samples than a batch needs, or all have the same caption.
        """
        self._captions, self._batch_size, self._seed = captions, batch_size, seed
        self._group_size = 2 if twins_together else 1
        self._num_groups = len(captions) // self._group_size
        num_distinct = _num_distinct(captions, max(2, batch_size))
        if num_distinct < 2:
            fix = "write captions that differ, or take a trained CLIP by another kind of train_clip.source"
            raise ConfigError("train_clip", f"{num_distinct} distinct caption in all", "at least 2", fix)
        most = self._num_groups * self._group_size
        if batch_size > most:
            where = "params.yaml: train_clip.source.training.batch_size"
            fix = f"lower batch_size to {most} or less, or add images"
            raise ConfigError(where, f"{batch_size}", f"at most {most}, the samples to train on", fix)
        self._can_differ = num_distinct >= batch_size

    def at_step(self, step: int) -> tuple[list[int], list[str]]:
        """Sample numbers and one caption of each, for the whole batch of a step."""
        groups = self._draw(step, distinct=True) if self._can_differ else None
        if groups is None:  # also if samples with several captions happen to draw too few distinct ones
            groups = self._draw(step, distinct=False)
        assert groups is not None, "there are enough samples"
        samples = [group * self._group_size + i for group in groups for i in range(self._group_size)]
        return samples, [text for texts in groups.values() for text in texts]

    def _draw(self, step: int, distinct: bool) -> dict[int, list[str]] | None:
        """Groups of samples that share a batch, with their captions; None if too few have distinct captions."""
        count, size = self._num_groups, self._group_size
        positions = np.arange(step * self._batch_size // size, (step + 1) * self._batch_size // size)
        groups: dict[int, list[str]] = {}
        used: set[str] = set()
        passed: dict[int, int] = {}  # group that was tried -> the group to try next; no group is tried twice
        # A group per position of the shuffled epoch; with `distinct`, the next one whose captions are not used yet.
        for first in randomness.order(positions, count, self._seed).tolist():
            while len(passed) < count:
                group = _follow(passed, first)
                passed[group] = (group + 1) % count
                texts = self._texts(step, group)
                if not distinct or (used.isdisjoint(texts) and len(set(texts)) == size):
                    break
            else:
                return None
            groups[group] = texts
            used.update(texts)
        return groups

    def _texts(self, step: int, group: int) -> list[str]:
        choices = self._captions[group * self._group_size : (group + 1) * self._group_size]
        if all(len(texts) == 1 for texts in choices):
            return [texts[0] for texts in choices]
        rank = randomness.key(self._seed, "caption", step, group)
        return [texts[rank % len(texts)] for texts in choices]


def _num_distinct(captions: Iterable[Iterable[str]], most: int) -> int:
    """How many different captions there are, or `most`, which is told without reading the others."""
    found: set[str] = set()
    for texts in captions:
        found.update(texts)
        if len(found) >= most:
            return most
    return len(found)


def _follow(passed: dict[int, int], first: int) -> int:
    """The first group from `first` on, cyclically, that was not tried yet; compresses the paths to it."""
    way, group = list[int](), first
    while group in passed:
        way.append(group)
        group = passed[group]
    for step in way:
        passed[step] = group
    return group


def retrieval(images: Float[Tensor, "b f"], texts: Float[Tensor, "b f"]) -> dict[str, float]:
    """How well features of length 1 match the images and captions of b pairs.

    `retrieval_images` and `retrieval_captions`: share of captions whose nearest image, and of images whose nearest
    caption, is their own (recall at 1; chance is 1 / b). `cosine_matched`: mean cosine of matching pairs;
    `cosine_margin`: the same minus that of pairs shifted by one.
    """
    similarity = images.double() @ texts.double().T
    own = torch.arange(len(images), device=images.device)
    matched = similarity.diagonal().mean()
    return {
        "retrieval_images": float((similarity.argmax(0) == own).double().mean()),
        "retrieval_captions": float((similarity.argmax(1) == own).double().mean()),
        "cosine_matched": float(matched),
        "cosine_margin": float(matched - similarity[own, own.roll(1)].mean()),
    }


def caption_accuracy(images: Float[Tensor, "b f"], texts: Float[Tensor, "k f"], own: Sequence[set[int]]) -> float:
    """Share of images whose nearest caption is one of their own; `own` has the rows of `texts` that belong to each."""
    nearest: list[int] = (images.double() @ texts.double().T).argmax(1).tolist()
    return sum(row in rows for row, rows in zip(nearest, own, strict=True)) / len(own)


def twin_accuracy(images: Float[Tensor, "b f"], texts: Float[Tensor, "b f"]) -> float:
    """Share of images that are nearer to their own caption than to that of their twin. Rows 2i and 2i + 1 are twins;
    chance is 0.5."""
    own = (images * texts).sum(-1)
    other = (images * texts.reshape(-1, 2, texts.shape[-1]).flip(1).reshape(texts.shape)).sum(-1)
    return float((own > other).double().mean())
