"""A noise-aware classifier of latents: which caption does a noisy latent belong to?

It is a small CLIP whose image tower reads (z_t, t) (Nichol et al. 2021, GLIDE, section 3.2), so its classes are all
captions that a text encoder can read. `studies/classifier.py` trains one.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ldm.autoencoder.model.blocks import ResBlock
from ldm.core import artifact
from ldm.denoiser.model.diffusion import Schedule
from ldm.denoiser.model.unet import NORM_EPS, Downsample, TimeEmbedding
from ldm.sampling.guidance.params import NoisyClassifierParams
from ldm.sampling.guidance.rules import LogProbability

KIND = artifact.Kind("classifier")


class NoisyClassifier(nn.Module):
    """Logits of captions, given by their pooled features, for noisy latents.

    `references` are captions drawn as they occur. With the loss of `studies/classifier.py`, the logit of a caption
    minus the logarithm of the mean exponential of theirs tends to log p(caption | z_t) - log p(caption).
    """

    references: Float[Tensor, "r f"]

    def __init__(self, params: NoisyClassifierParams) -> None:
        super().__init__()
        widths = params.channels
        self.time_embedding = TimeEmbedding(widths[0], 4 * widths[0])
        self.conv_in = nn.Conv2d(params.latent_channels, widths[0], 3, padding=1)
        before = [widths[0], *widths[:-1]]
        self.blocks = nn.ModuleList(
            ResBlock(narrow, width, params.norm_groups, NORM_EPS, 4 * widths[0])
            for narrow, width in zip(before, widths, strict=True)
        )
        self.downsamplers = nn.ModuleList(Downsample(width) for width in widths[:-1])
        self.norm_out = nn.GroupNorm(params.norm_groups, widths[-1], NORM_EPS)
        size = params.latent_size
        for _ in self.downsamplers:
            size = (size + 1) // 2
        self.hidden = nn.Linear(size * size * widths[-1], 4 * widths[-1])
        self.linear_out = nn.Linear(4 * widths[-1], params.num_features)
        self.register_buffer("references", torch.zeros(params.num_references, params.num_features))

    def forward(
        self, z: Float[Tensor, "b c h w"], time: Float[Tensor, " b"], pooled: Float[Tensor, "n f"]
    ) -> Float[Tensor, "b n"]:
        """The logit of every caption for every latent at `time` (0..1000)."""
        activated_time = functional.silu(self.time_embedding(time))
        h = self.conv_in(z)
        for number, block in enumerate(self.blocks):
            h = block(h, activated_time)
            if number < len(self.downsamplers):
                h = self.downsamplers[number](h)
        h = functional.silu(self.norm_out(h)).flatten(1)  # not averaged: places of objects count
        # Not normalised, unlike CLIP's: their length says how much the latent tells at this noise.
        features = self.linear_out(functional.silu(self.hidden(h)))
        return features @ functional.normalize(pooled).T

    def log_probability(self, pooled: Float[Tensor, "b f"], schedule: Schedule) -> LogProbability:
        """log p(caption | z_t) for one caption per row, up to a constant that does not depend on z."""

        def of(z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
            with torch.autocast(z.device.type, enabled=False):
                logits = self(z, schedule.condition(t), torch.cat([pooled, self.references]))
                own, others = logits[:, : len(pooled)].diagonal(), logits[:, len(pooled) :]
                return own - others.logsumexp(1)

        return of


def load(directory: Path, device: torch.device) -> tuple[NoisyClassifier, artifact.Passport]:
    """A trained classifier, frozen, with its passport. IntegrityError: missing, corrupt or of another kind."""
    passport, tensors = artifact.read(directory, KIND)
    with artifact.fitting(directory):
        classifier = NoisyClassifier(NoisyClassifierParams.model_validate(passport.config["network"]))
        classifier.load_state_dict(tensors)
    return classifier.eval().requires_grad_(False).to(device), passport
