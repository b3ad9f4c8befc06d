"""Whether ComfyUI draws our images: python -m tests.comfyui DIR, where DIR holds its repository (12 GB of memory).

Untrained models of Stable Diffusion's own widths, since ComfyUI builds no others, are exported to a single file. Its
loader opens that, its nodes set what a file does not say, and its Euler sampler draws from our noise at our times.
Its packages (DIR/requirements.txt) are to be installed beside ours.
"""

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.page import markdown
from ldm.sampling import trajectory
from ldm.tools.export import write
from ldm.tools.pipeline import Pipeline
from tests import exported_data

PROMPT, SCALE, TOLERANCE = "a small red circle above a large blue square", 2.5, 1e-3
FLAGS = ("--cpu", "--force-fp32", "--fp32-vae", "--fp32-text-enc", "--use-pytorch-cross-attention")
NUM_TOKENS = 77
VAE = {"channels": [128, 256, 512, 512], "norm_groups": 32}
UNET = {"channels": [320, 640, 1280, 1280], "norm_groups": 32, "max_context_tokens": NUM_TOKENS}
OWN_TEXT = {"context_length": NUM_TOKENS, "num_merges": 48894}


@dataclass(frozen=True)
class Case:
    """A kind of model."""

    shape: dict[str, Any]
    unet: dict[str, Any]
    text: dict[str, Any] | None
    """The text tower of our CLIP; None = one of transformers with Stable Diffusion 1's tokenizer."""
    layer: str
    node: tuple[str, tuple[Any, ...]] | None
    """The node of ComfyUI that says how the model was trained, and what is set there."""
    agrees: bool = True


_SD_1 = {"head_width": [40, 80, 160, 160], "context_width": 768}
_SD_2 = {"head_width": 64, "context_width": 1024}
_CLIP_L = {"width": 768, "heads": 12, "layers": 12, **OWN_TEXT}
_CLIP_H = {"width": 1024, "heads": 16, "layers": 24, **OWN_TEXT}
CASES = {
    "eps, Stable Diffusion 1's text encoder": Case(exported_data.SD_1, _SD_1, None, "last", None),
    "flow, Stable Diffusion 1's text encoder": Case(
        exported_data.FLOW, _SD_1, None, "last", ("ModelSamplingSD3", (2.0,))
    ),
    "v, zero terminal SNR, our CLIP's last layer but one": Case(
        exported_data.SD_2, _SD_2, _CLIP_H, "penultimate", ("ModelSamplingDiscrete", ("v_prediction", True))
    ),
    "eps, our CLIP's last layer, whose padding is another": Case(
        exported_data.SD_1, _SD_1, _CLIP_L, "last", None, agrees=False
    ),
}


def model(case: Case, folder: Path, tokenizer: Path) -> Pipeline:
    """An untrained model of ours."""
    changes = dict(case.shape)
    changes["train_autoencoder.source.network"] = changes["train_autoencoder.source.network"] | VAE
    changes["train_unet.network"] = changes["train_unet.network"] | UNET | case.unet
    changes["embed_text"] = {"layer": case.layer, "context_tokens": NUM_TOKENS}
    if case.text is None:
        _write_text_encoder(folder / "text", tokenizer)
        own = {"path": str(folder / "text/text_encoder"), "tokenizer": str(folder / "text/tokenizer")}
        changes["train_clip"] = {"text_encoder": {"kind": "transformers", **own}}
    else:
        changes["train_clip.source.network.text"] = case.text
    return exported_data.made(folder / "ours", "default", changes, NUM_TOKENS)


def _write_text_encoder(folder: Path, tokenizer: Path) -> None:
    """One of the shape of Stable Diffusion 1's, with its tokenizer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    tokens = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    tower: Any = transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes, **tokens, projection_dim=768))
    for parameter in tower.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    tower.save_pretrained(folder / "text_encoder")
    vocabulary = (str(tokenizer / "vocab.json"), str(tokenizer / "merges.txt"))
    words: Any = transformers.CLIPTokenizer(*vocabulary, model_max_length=NUM_TOKENS)
    words.save_pretrained(folder / "tokenizer")


def ours(pipeline: Pipeline) -> Tensor:
    """The image of the prompt in 0..1, before it is rounded to pixels."""
    drawing, generator = pipeline.drawing.changed({"guidance_scale": SCALE}), pipeline.generator
    with torch.no_grad():
        guided = generator.guided(generator.condition([PROMPT]), drawing)
        return ((generator.signals_of(generator.latents(guided, [0], drawing)) + 1) / 2).clamp(0, 1)


@torch.no_grad()
def theirs(case: Case, file: Path, noise: Tensor, num_steps: int) -> Tensor:
    """The same by ComfyUI."""
    module: Callable[[str], Any] = importlib.import_module
    samplers = module("comfy.samplers")
    network, text, vae, _ = module("comfy.sd").load_checkpoint_guess_config(str(file))
    if case.node is not None:
        name, settings = case.node
        (network,) = getattr(module("comfy_extras.nodes_model_advanced"), name)().patch(network, *settings)
    conditions = [text.encode_from_tokens_scheduled(text.tokenize(prompt)) for prompt in (PROMPT, "")]
    times = network.get_model_object("model_sampling")
    # From noise in equal steps; the last ends without any. Of 1000 times of a table, these are whole ones.
    shares = [1 - step / num_steps for step in range(num_steps)]
    is_flow = case.shape is exported_data.FLOW
    asked = [share * 1000 if is_flow else share * 1000 - 1 for share in shares]
    sigmas = torch.tensor([*(float(times.sigma(torch.tensor(time))) for time in asked), 0.0])
    drawn = module("comfy.sample").sample_custom(
        network, noise, SCALE, samplers.sampler_object("euler"), sigmas, *conditions, torch.zeros_like(noise), seed=0
    )
    return vae.decode(drawn).permute(0, 3, 1, 2)


def difference(case: Case, tokenizer: Path) -> float:
    """The largest one of any value of the image, which is in 0..1."""
    with TemporaryDirectory() as folder:
        pipeline, file = model(case, Path(folder), tokenizer), Path(folder, "model.safetensors")
        write.export(pipeline, file, "single-file")
        noise = trajectory.prompt_noise(0, [0], pipeline.generator.unet.latent_shape)
        expected, num_steps = ours(pipeline), pipeline.drawing.num_steps
        del pipeline
        return float((theirs(case, file, noise, num_steps) - expected).abs().max())


def main() -> None:
    """Exit code 1: an image differs that should not."""
    comfyui = Path(sys.argv[1])
    # Behind ours: its folders are called tests and utils, too.
    sys.path.append(str(comfyui))
    sys.argv[1:] = FLAGS
    importlib.import_module("comfy.options").enable_args_parsing()
    found = {name: difference(case, comfyui / "comfy/sd1_tokenizer") for name, case in CASES.items()}
    rows = [{"model": name, "largest difference": f"{value:.1e}"} for name, value in found.items()]
    print(f"ComfyUI {importlib.import_module('comfyui_version').__version__}\n\n{markdown(rows)}", flush=True)
    failed = any((found[name] > TOLERANCE) == case.agrees for name, case in CASES.items())
    os._exit(failed)  # its models complain when Python ends


if __name__ == "__main__":
    main()
