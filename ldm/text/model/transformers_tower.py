"""Text encoders of the package transformers: T5, CLIP, SigLIP and decoder language models, of which only what makes
token states is kept.

Classes are named here and built from a configuration of plain values, so that code that a configuration names is never
run, and nothing is downloaded.
"""

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ldm.core import artifact
from ldm.core.errors import IntegrityError
from ldm.text.model import tokenizer
from ldm.text.model.encoder import Layer
from ldm.text.model.params import MAX_TOKENS
from ldm.text.model.tokenizer import Tokenizer, is_text, package

KIND = artifact.Kind("text_encoder")


@dataclass(frozen=True)
class _Family:
    """A kind of text encoder: its class in transformers, and the names of its blocks and of the norm after them."""

    model: str
    blocks: str
    norm: str
    reads_padding: bool = False
    """Whether it is given whole contexts without a mask, as it was trained; padding then has a part in its states."""


_CLIP = _Family("CLIPTextModel", "encoder.layers", "final_layer_norm", reads_padding=True)
_SIGLIP = _Family("SiglipTextModel", "encoder.layers", "final_layer_norm", reads_padding=True)
_SIGLIP2 = _Family("Siglip2TextModel", "encoder.layers", "final_layer_norm", reads_padding=True)
_FAMILIES = {
    "clip_text_model": _CLIP,
    "siglip_text_model": _SIGLIP,
    "siglip2_text_model": _SIGLIP2,
    "t5": _Family("T5EncoderModel", "encoder.block", "encoder.final_layer_norm"),
    "mt5": _Family("MT5EncoderModel", "encoder.block", "encoder.final_layer_norm"),
    "umt5": _Family("UMT5EncoderModel", "encoder.block", "encoder.final_layer_norm"),
    "gemma": _Family("GemmaModel", "layers", "norm"),
    "gemma2": _Family("Gemma2Model", "layers", "norm"),
    "gemma3_text": _Family("Gemma3TextModel", "layers", "norm"),
    "gpt2": _Family("GPT2Model", "h", "ln_f"),
    "llama": _Family("LlamaModel", "layers", "norm"),
    "mistral": _Family("MistralModel", "layers", "norm"),
    "phi3": _Family("Phi3Model", "layers", "norm"),
    "qwen2": _Family("Qwen2Model", "layers", "norm"),
    "qwen3": _Family("Qwen3Model", "layers", "norm"),
}
"""By `model_type` of a configuration."""
_WITH_IMAGES = ("clip", "siglip", "siglip2")
"""Models of images and text; their configuration holds that of the text."""
MODEL_TYPES = (*_WITH_IMAGES, *_FAMILIES)
"""What a config.json may name as its `model_type`."""


class TransformersTower(nn.Module):
    """A text encoder of transformers with its tokenizer."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, dtype: torch.dtype) -> None:
        """dtype: number type that weights are saved in."""
        super().__init__()
        self.model: Any = model
        self.tokenizer, self._dtype = tokenizer, dtype
        self._family = _FAMILIES[self.model.config.model_type]

    @property
    def kind(self) -> artifact.Kind:
        """The kind of artefact that `save` writes."""
        return KIND

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration as plain values; `model_type` names its family."""
        return json.loads(self.model.config.to_json_string(use_diff=False))

    @property
    def context_length(self) -> int:
        """As of `TextModel`: what the tokenizer and the positions allow, at most `MAX_TOKENS`."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or MAX_TOKENS
        return int(min(positions, self.tokenizer.max_tokens, MAX_TOKENS))

    @property
    def context_width(self) -> int:
        """Width of a token state."""
        return int(self.model.config.hidden_size)

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.model.get_submodule(self._family.blocks))

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id that the model knows."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def num_tokens(self, captions: Sequence[str]) -> Int[np.ndarray, " b"]:
        """As of `TextModel`."""
        return np.array([len(ids) for ids in self.tokenizer.ids(captions)], dtype=np.int64)

    def tokenise(self, captions: Sequence[str], num_tokens: int | None = None) -> Int[Tensor, "b m"]:
        """As of `TextModel`. m is `num_tokens`, or the whole context for a model that reads padding."""
        kept = num_tokens or self.context_length
        return self.tokenizer.padded(captions, kept, self.context_length if self._family.reads_padding else kept)

    def mask(self, ids: Int[Tensor, "b m"]) -> Bool[Tensor, "b m"]:
        """As of `TextModel`."""
        return is_text(ids)

    def encode_text(
        self, ids: Int[Tensor, "b m"], layer: Layer, norm: bool
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b f"]]:
        """As of `TextModel`. Pooled features are those of the model; of one that has none, the mean of the last states
        of a caption."""
        mask = self.mask(ids)
        masked = {} if self._family.reads_padding else {"attention_mask": mask.long()}
        last_norm = self.model.get_submodule(self._family.norm)
        with _inputs(self.model.get_submodule(self._family.blocks)[-1], last_norm) as (penultimate, last):
            out = self.model(input_ids=self.tokenizer.for_model(ids), **masked)
        if layer == "last" and norm:
            states = out.last_hidden_state
        else:
            states = (last if layer == "last" else penultimate)[0]
            states = last_norm(states) if norm else states
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            pooled = (out.last_hidden_state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return states, F.normalize(pooled.float(), dim=-1)

    def save(self, directory: Path, facts: Mapping[str, Any]) -> artifact.Passport:
        """Write an artefact of kind `text_encoder`; `load` rebuilds the encoder from it alone."""
        tied = self.model.all_tied_weights_keys
        tensors = {name: tensor.to(self._dtype) for name, tensor in self.model.state_dict().items() if name not in tied}
        directory.mkdir(parents=True, exist_ok=True)
        artifact.write_tensors(directory / artifact.WEIGHTS, tensors)
        sha256 = {
            artifact.WEIGHTS: artifact.sha256_file(directory / artifact.WEIGHTS),
            **self.tokenizer.save(directory),
        }
        config = {"model": self.config, "dtype": str(self._dtype).removeprefix("torch."), "files": sha256}
        return artifact.write_passport(directory, KIND, config, {}, facts, artifact.sha256_json(sha256))


def verify(directory: Path) -> artifact.Passport:
    """The passport of an artefact whose files are all as it says. IntegrityError: one is missing or damaged."""
    passport = artifact.read_passport(directory, KIND)
    with artifact.fitting(directory):
        for name, sha256 in passport.config["files"].items():
            artifact.check_file(directory / name, sha256)
    return passport


def load(directory: Path) -> tuple[TransformersTower, artifact.Passport]:
    """The artefact that `TransformersTower.save` wrote, frozen, in evaluation mode, in float32, and its passport.

    IntegrityError: missing, corrupt, or no text encoder. MachineError: the package transformers is not there.
    """
    passport = verify(directory)
    with artifact.fitting(directory):
        model, wrong = build(passport.config["model"], artifact.open_tensors(directory / artifact.WEIGHTS))
        if wrong is not None:
            fix = "make it again with `dvc repro train_clip`"
            raise IntegrityError(str(directory / artifact.WEIGHTS), wrong, "weights of its configuration", fix)
        dtype = getattr(torch, passport.config["dtype"])
        return TransformersTower(model, Tokenizer(directory / tokenizer.FOLDER), dtype), passport


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[nn.Module, str | None]:
    """The text model of a configuration with these weights, frozen, in evaluation mode, in float32; and what is wrong
    with the weights, or None.

    config: content of a config.json, whose `model_type` is one of `MODEL_TYPES`. tensors: under the names of
    transformers; those of other parts of the model are left out. ValueError and the like: the values of the
    configuration do not make a model.
    """
    transformers = package()
    values = {name: value for name, value in config.items() if name not in ("model_type", "auto_map")}
    built = transformers.AutoConfig.for_model(config["model_type"], **values)
    if config["model_type"] in _WITH_IMAGES:
        built = built.text_config
    family = _FAMILIES[built.model_type]
    model, found = getattr(transformers, family.model).from_pretrained(
        None,
        config=built,
        state_dict=dict(tensors),
        dtype=torch.float32,
        attn_implementation="eager",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    if found["missing_keys"]:
        names = sorted(found["missing_keys"])
        return model, f"no weights for {names[0]} and {len(names) - 1} more"
    if found["mismatched_keys"]:
        name, there, expected = min(found["mismatched_keys"])
        return model, f"{name} has shape {tuple(there)} instead of {tuple(expected)}"
    return model.eval().requires_grad_(False), None


@contextmanager
def _inputs(*modules: nn.Module) -> Generator[list[list[Tensor]]]:
    """A block in which modules are called once each; gives the states that each is called with."""
    taken: list[list[Tensor]] = [[] for _ in modules]

    def hook(place: int) -> Any:
        return lambda _, args, kwargs: taken[place].append(args[0] if args else kwargs["hidden_states"])

    hooks = [module.register_forward_pre_hook(hook(i), with_kwargs=True) for i, module in enumerate(modules)]
    try:
        yield taken
    finally:
        for each in hooks:
            each.remove()
