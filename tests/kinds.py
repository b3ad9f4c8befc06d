"""The kinds of artefacts by name."""

from ldm.autoencoder.encoding import latents
from ldm.autoencoder.model import network
from ldm.denoiser.model import unet
from ldm.evaluation import report
from ldm.sampling import samples
from ldm.text.embedding import embeddings
from ldm.text.model import clip

KINDS = {module.KIND.name: module.KIND for module in (network, latents, clip, embeddings, unet, samples, report)}
