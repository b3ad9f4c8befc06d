"""The kinds of artefacts by name."""

from ldm.autoencoder.encoding import latents
from ldm.autoencoder.model import networks as autoencoder
from ldm.denoiser import adapters
from ldm.denoiser.model import networks as denoiser
from ldm.evaluation import metrics
from ldm.sampling import samples
from ldm.text.embedding import embeddings
from ldm.text.model import clip, transformers_tower
from ldm.training import averages

MODULES = (autoencoder, latents, clip, transformers_tower, embeddings, denoiser, adapters, averages, samples, metrics)
KINDS = {module.KIND.name: module.KIND for module in MODULES}
