"""The text tower of a CLIP artefact, without open_clip, for users that only encode captions.

The package open_clip imports torchvision, timm and transformers. That took half of the CPU time to a first image.
"""

import shutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldm.core import artifact
from ldm.text.model import encoders
from ldm.text.model.clip import HALF_OF, KIND, Clip, merges_of, preprocess_of
from ldm.text.model.encoder import TextModel

_OPTIONS = {"context_length", "vocab_size", "width", "heads", "layers", "no_causal_mask", "tokenizer_kwargs"}
"""Options of open_clip's `text_cfg` that `TextTower` knows: all that open_clip's own architectures of this kind use."""


def load_text(directory: Path) -> tuple[TextModel, artifact.Passport]:
    """Like `ldm.text.model.encoders.load`, but of a CLIP without the image tower, unless the text tower has options
    that only open_clip knows. States and features of a caption are equal up to rounding.

    IntegrityError, MachineError: as there.
    """
    if encoders.is_other(encoders.folder_of(directory)):
        return encoders.load(directory)
    passport, tensors = artifact.read(directory, KIND)
    with artifact.fitting(directory):
        cfg: dict[str, Any] = passport.config["model_cfg"]
        if set(cfg["text_cfg"]) - _OPTIONS:
            return encoders.load(directory)
        tower = TextTower(cfg)
        # With `custom_text`, open_clip puts the tower under the name `text`.
        named = {name.removeprefix("text."): tensor for name, tensor in tensors.items()}
        tower.load_state_dict({name: named[name] for name in tower.state_dict() if name in named})
        clip = Clip(tower, cfg, preprocess_of(passport), merges_of(directory, passport))
    return clip.eval().requires_grad_(False), passport


def copy_text(directory: Path, target: Path) -> artifact.Passport:
    """Write the text encoder of a run: of a CLIP the text half, which `load_text` opens like the whole, and whose fact
    `half_of` is the hash of the whole. Another encoder, or a CLIP whose text tower only open_clip knows, is copied as
    it is. IntegrityError: as of `load_text`."""
    folder = encoders.folder_of(directory)
    if not encoders.is_other(folder):
        clip, whole = load_text(folder)
        if isinstance(clip, Clip) and isinstance(clip.model, TextTower):
            return clip.save(target, whole.inputs, whole.facts | {HALF_OF: whole.content_sha256})
    shutil.copytree(folder, target, copy_function=shutil.copyfile)
    return encoders.verify(target)


class TextTower(nn.Module):
    """open_clip's text transformer under its own names (Radford et al. 2021, section 2.4): causal, or bidirectional
    with padding masked out of every attention."""

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        """cfg: open_clip's configuration of the whole model."""
        super().__init__()
        text = cfg["text_cfg"]
        width, self.heads = text.get("width", 512), text.get("heads", 8)
        self.context_length = int(text.get("context_length", 77))
        self.is_causal = not text.get("no_causal_mask", False)
        self.takes_fewer_tokens = self.is_causal
        self.masks_padding = not self.is_causal and bool(cfg.get("custom_text", False))
        activation = _QuickGelu if cfg.get("quick_gelu", False) else nn.GELU
        self.token_embedding = nn.Embedding(text.get("vocab_size", 49408), width)
        self.positional_embedding = nn.Parameter(torch.empty(self.context_length, width))
        blocks = [_Block(width, self.heads, activation()) for _ in range(text.get("layers", 12))]
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, cfg["embed_dim"]))

    def forward_intermediates(
        self, text: Int[Tensor, "b n"], text_indices: int, normalize_intermediates: bool
    ) -> dict[str, Any]:
        """Like open_clip's method: `text_intermediates`, states [b, n, d] after each of the last `text_indices` blocks,
        and `text_features` [b, f] of length 1. A causal tower takes fewer tokens than its `context_length` too."""
        mask = self._mask(text)
        x = self.token_embedding(text) + self.positional_embedding[: text.shape[1]]
        states: list[Tensor] = []
        for block in self.transformer["resblocks"].children():
            x = block(x, mask)
            states.append(x)
        taken = states[-text_indices:]
        # The end token has the largest id; its final state is the pooled feature before projection.
        ends = self.ln_final(x)[torch.arange(len(x), device=x.device), text.argmax(dim=-1)]
        return {
            "text_intermediates": [self.ln_final(state) for state in taken] if normalize_intermediates else taken,
            "text_features": F.normalize(ends @ self.text_projection, dim=-1),
        }

    def _mask(self, text: Int[Tensor, "b n"]) -> Tensor | None:
        """-inf where attention is not allowed, else 0: [n, n], or [b heads, n, n] if it depends on the caption."""
        if self.is_causal:
            size = (text.shape[1], text.shape[1])
            return torch.full(size, -torch.inf, device=text.device).triu(1)
        if not self.masks_padding:
            return None
        padding = (text == 0)[:, None].expand(-1, text.shape[1], -1).repeat_interleave(self.heads, 0)
        return torch.zeros(padding.shape, device=text.device).masked_fill(padding, -torch.inf)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, activation: nn.Module) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = {"c_fc": nn.Linear(width, 4 * width), "gelu": activation, "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Float[Tensor, "b n d"], mask: Tensor | None) -> Float[Tensor, "b n d"]:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class _QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)
