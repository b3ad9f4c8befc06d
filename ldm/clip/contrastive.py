"""Training a CLIP: which pairs a batch holds, the contrastive loss over all processes, and how well pairs are told
apart."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldm import attention, randomness
from ldm.clip import Clip
from ldm.errors import ConfigError

_MAX_LOGIT_SCALE = math.log(100.0)


class ContrastiveObjective(nn.Module):
    """The symmetric contrastive loss of CLIP (Radford et al. 2021, figure 3), open_clip's own, over the whole batch of
    all processes."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """batch: `image` uint8 [b, 3, h, w] and `ids` int [b, n], this process's rows. Returns `loss` (a mean over
        these rows) and `logit_scale`.

        Features are gathered from all processes with their gradients, so the mean of the losses over processes and its
        gradient are those of one process with the whole batch. As in open_clip the scale is kept within [1, 100]; loss
        and scale are float32 under autocast.
        """
        model = self.clip.model
        with torch.no_grad():
            model.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
        with attention.kernels_of_others():
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


def pairs_at_step(
    step: int, captions: Sequence[list[str]], batch_size: int, seed: int, twins_together: bool
) -> tuple[Int[np.ndarray, " b"], list[str]]:
    """Sample numbers and one caption of each, for the whole batch of a step: a pure function of its arguments.

    captions: those of every sample. A batch holds a sample and a caption text once, since a second one would be a false
    negative: a duplicate is replaced by the next sample numbers. With `twins_together` samples 2i and 2i + 1 enter
    together, with captions of the same rank, as each other's hard negatives (an odd last sample never enters).
    ConfigError: the corpus has too few distinct captions for the batch.
    """
    size = 2 if twins_together else 1
    count = len(captions) // size
    positions = np.arange(step * batch_size // size, (step + 1) * batch_size // size)
    used: set[str] = set()
    groups: dict[int, list[str]] = {}
    for first in randomness.order(positions, count, seed).tolist():
        for offset in range(count):
            group = (first + offset) % count
            rank = randomness.key(seed, "caption", step, group)
            texts = [captions[group * size + i][rank % len(captions[group * size + i])] for i in range(size)]
            if group not in groups and len(used.union(texts)) == len(used) + size:
                break
        else:
            raise _too_few_captions(batch_size, len(captions))
        groups[group] = texts
        used.update(texts)
    samples = [group * size + i for group in groups for i in range(size)]
    return np.array(samples, dtype=np.int64), [text for texts in groups.values() for text in texts]


def _too_few_captions(batch_size: int, num_samples: int) -> ConfigError:
    where, fix = "params.yaml: train_clip.training.batch_size", "lower batch_size or add captions"
    return ConfigError(where, f"{batch_size} of {num_samples} samples", "distinct captions in a batch", fix)


def retrieval(images: Float[Tensor, "b f"], texts: Float[Tensor, "b f"]) -> dict[str, float]:
    """How well features of length 1 tell b matching pairs apart.

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


def twin_accuracy(images: Float[Tensor, "b f"], texts: Float[Tensor, "b f"]) -> float:
    """Share of images that are nearer to their own caption than to their twin's, where rows 2i and 2i + 1 are twins;
    chance is 0.5."""
    own = (images * texts).sum(-1)
    other = (images * texts.reshape(-1, 2, texts.shape[-1]).flip(1).reshape(texts.shape)).sum(-1)
    return float((own > other).double().mean())
