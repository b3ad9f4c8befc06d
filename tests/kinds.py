"""The kinds of artefacts by name."""

from ldm.autoencoder import latents, network
from ldm.denoiser import unet
from ldm.evaluation import report
from ldm.sampling import samples
from ldm.text import clip, embeddings

KINDS = {module.KIND.name: module.KIND for module in (network, latents, clip, embeddings, unet, samples, report)}
