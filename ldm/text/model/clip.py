"""CLIP through open_clip: build, save, load, and turn captions and images into features.

A caption becomes token ids `[start, ..., end, 0, ...]`. These become one state per token, which the UNet attends to,
and one pooled feature, which is compared with images.

States after the end token are padding. They never influence the states of the caption: a causal tower does not let
earlier tokens see them, and a bidirectional tower masks them out of every attention. They do depend on the caption,
and the UNet sees them, as in Stable Diffusion. open_clip recognises padding by id 0, which is also the token of a "!"
inside a run of punctuation, so a bidirectional tower does not attend to that one. Models that were trained with a
tokenizer of transformers, such as SigLIP, attend to their padding, which has id -1 here.

Only modules of `ldm.text` import open_clip.
"""

import gzip
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor, nn

from ldm import randomness
from ldm.core import artifact
from ldm.core.errors import IntegrityError
from ldm.text.model import layout, tokenizer
from ldm.text.model.encoder import Layer
from ldm.text.model.params import ClipParams
from ldm.text.model.tokenizer import Tokenizer, is_text


def _with_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    """Format 1 had open_clip's own tokenizer alone."""
    return {**config, "tokenizer_sha256": None}


KIND = artifact.Kind("clip", (_with_tokenizer,))
MERGES = "merges.txt.gz"
HALF_OF = "half_of"
"""Fact of the text half of a CLIP: the SHA-256 of the whole."""
_FULL_VOCABULARY = 49408
_BYTES_AND_ENDS = 514


@dataclass(frozen=True)
class Preprocess:
    """How a model needs its images: side in pixels, mean and standard deviation per channel for values in [0, 1], and
    how to resize."""

    size_px: int
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: Literal["bicubic", "bilinear"]
    resize: Literal["shortest", "squash"]
    __pydantic_config__ = ConfigDict(extra="forbid")  # where a passport is read

    def __call__(self, image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """Resize (shortest side and centre crop, or squash), scale to [0, 1], normalise."""
        x = self._resized(image.float() / 255)
        mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (self.mean, self.std))
        return (x - mean) / std

    def _resized(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        height, width = x.shape[-2:]
        size = self.size_px
        if (height, width) == (size, size):
            return x
        shortest = min(height, width)
        squash = self.resize == "squash"
        target = (size, size) if squash else (size * height // shortest, size * width // shortest)
        x = F.interpolate(x, size=target, mode=self.interpolation, antialias=True, align_corners=False).clamp(0, 1)
        top, left = (round((side - size) / 2) for side in target)
        return x[..., top : top + size, left : left + size]


class Clip(nn.Module):
    """An open_clip model with its tokenizer and its preprocessing."""

    def __init__(
        self,
        model: nn.Module,
        model_cfg: Mapping[str, Any],
        preprocess: Preprocess,
        merges: bytes | None,
        other_tokenizer: Tokenizer | None = None,
    ) -> None:
        """model_cfg: open_clip's model configuration. merges: the gzipped byte-pair merges of a reduced vocabulary, or
        None for open_clip's whole vocabulary. other_tokenizer: one of transformers instead of open_clip's own."""
        super().__init__()
        self.model: Any = model
        self.model_cfg = dict(model_cfg)
        self.preprocess = preprocess
        self.merges = merges
        self.other_tokenizer = other_tokenizer
        self.tokenizer: Any = None if other_tokenizer is not None else _tokenizer(self.model_cfg["text_cfg"], merges)

    @property
    def kind(self) -> artifact.Kind:
        """The kind of artefact that `save` writes."""
        return KIND

    @property
    def context_length(self) -> int:
        """Tokens per caption, start and end included."""
        return int(self.model.context_length)

    @property
    def context_width(self) -> int:
        """Width of a token state."""
        return int(self._text_tower.ln_final.normalized_shape[0])

    @property
    def num_layers(self) -> int:
        """Number of blocks of the text tower."""
        return int(self.model_cfg["text_cfg"]["layers"])

    @property
    def feature_width(self) -> int:
        """Width of the feature space that images and captions share."""
        return int(self.model_cfg["embed_dim"])

    @property
    def _text_tower(self) -> Any:
        return self.model.text if hasattr(self.model, "text") else self.model

    def num_tokens(self, captions: Sequence[str]) -> Int[np.ndarray, " b"]:
        """Number of tokens of each caption before it is cut, start and end included."""
        if self.other_tokenizer is not None:
            return np.array([len(ids) for ids in self.other_tokenizer.ids(captions)], dtype=np.int64)
        return np.array([len(self.tokenizer.encode(caption)) + 2 for caption in captions], dtype=np.int64)

    def tokenise(self, captions: Sequence[str], num_tokens: int | None = None) -> Int[Tensor, "b n"]:
        """Token ids [start, ..., end, 0, ...], padded to `context_length`, or to `num_tokens` for a tower that takes
        fewer. A caption of more than `num_tokens` (None = `context_length`) is cut and still ends in the end token."""
        kept = num_tokens or self.context_length
        if self.other_tokenizer is not None:
            return self.other_tokenizer.padded(captions, kept, self.context_length)
        ids = self.tokenizer(list(captions), context_length=kept)
        # No token of a causal tower sees those behind it: what would be cut off is not computed.
        length = kept if getattr(self.model, "takes_fewer_tokens", False) else self.context_length
        return F.pad(ids, (0, length - ids.shape[1]))

    def _for_model(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        """Ids that the model knows; for one that was trained so, such as CLIPA, with 0 instead of separators."""
        if self.other_tokenizer is None:
            return ids
        ids, separator = self.other_tokenizer.for_model(ids), self.other_tokenizer.separator_id
        is_stripped = separator is not None and _options(self.model_cfg).get("strip_sep_token", False)
        return ids.where(ids != separator, 0) if is_stripped else ids

    def mask(self, ids: Int[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
        """True up to the end token, which has the largest id. Id 0 is also that of a "!"."""
        if self.other_tokenizer is not None:
            return is_text(ids)
        return torch.arange(ids.shape[1], device=ids.device) <= ids.argmax(1, keepdim=True)

    def encode_text(
        self, ids: Int[Tensor, "b n"], layer: Layer, norm: bool
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b f"]]:
        """States of every token after the last or penultimate block, with or without the final layer norm, and pooled
        features of length 1.

        Stable Diffusion 1 uses the last block with norm, Stable Diffusion 2 the penultimate block with norm.
        """
        blocks = -1 if layer == "last" else -2
        ids = self._for_model(ids)
        out = self.model.forward_intermediates(text=ids, text_indices=-blocks, normalize_intermediates=norm)
        return out["text_intermediates"][blocks], out["text_features"]

    def text_features(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b f"]:
        """Pooled features of captions, of length 1."""
        return self.model.encode_text(self._for_model(ids), normalize=True)

    def image_features(self, image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        """Features of images of any size, of length 1."""
        return self.model.encode_image(self.preprocess(image), normalize=True)

    def save(self, directory: Path, inputs: Mapping[str, str], facts: Mapping[str, Any]) -> artifact.Passport:
        """Write an artefact of kind `clip`; `load` rebuilds the model from it alone."""
        directory.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "model_cfg": self.model_cfg,
            "preprocess": asdict(self.preprocess),
            "merges_sha256": None,
            "tokenizer_sha256": None if self.other_tokenizer is None else self.other_tokenizer.save(directory),
        }
        if self.merges is not None:
            (directory / MERGES).write_bytes(self.merges)
            config["merges_sha256"] = artifact.sha256_file(directory / MERGES)
        return artifact.write(directory, KIND, config, self.model.state_dict(), inputs, facts)


def load(directory: Path) -> tuple[Clip, artifact.Passport]:
    """Load the artefact that `Clip.save` wrote: the model, frozen, in evaluation mode, and its passport. Nothing is
    downloaded. IntegrityError: missing, corrupt, not a CLIP, or a CLIP with parts of other libraries."""
    passport, tensors = artifact.read(directory, KIND)
    fix = "take a CLIP of open_clip's own parts, or make this one again with `dvc repro train_clip`"
    with artifact.fitting(directory):
        cfg = passport.config["model_cfg"]
        if (key := layout.foreign_key(cfg)) is not None:
            where, expected = str(directory / artifact.PASSPORT), "parts that open_clip builds by itself"
            raise IntegrityError(where, f"model_cfg has {key}", expected, fix)
        merges, other_tokenizer = merges_of(directory, passport), _other_tokenizer(directory, passport)
        clip = Clip(_model(cfg), cfg, preprocess_of(passport), merges, other_tokenizer)
    try:
        clip.model.load_state_dict(tensors)
    except RuntimeError as error:
        found = layout.why_not_loaded(error)
        raise IntegrityError(str(directory / artifact.WEIGHTS), found, "weights of its model_cfg", fix) from None
    return clip.eval().requires_grad_(False), passport


def verify(directory: Path) -> artifact.Passport:
    """The passport of an artefact whose files are all as it says. IntegrityError: one is missing or damaged."""
    passport = artifact.read_passport(directory, KIND)
    artifact.check_file(directory / artifact.WEIGHTS, passport.content_sha256)
    with artifact.fitting(directory):
        merges_of(directory, passport)
        _check_tokenizer(directory, passport)
    return passport


def identity(passport: artifact.Passport) -> str:
    """SHA-256 by which others name a CLIP, and also its text half."""
    return str(passport.facts.get(HALF_OF, passport.content_sha256))


def preprocess_of(passport: artifact.Passport) -> Preprocess:
    """How the model of an artefact needs its images. ValidationError: the passport does not describe it."""
    return TypeAdapter(Preprocess).validate_python(passport.config["preprocess"])


def merges_of(directory: Path, passport: artifact.Passport) -> bytes | None:
    """The gzipped merges of an artefact with a reduced vocabulary, else None. IntegrityError: missing or corrupt."""
    if passport.config["merges_sha256"] is None:
        return None
    artifact.check_file(directory / MERGES, passport.config["merges_sha256"])
    return (directory / MERGES).read_bytes()


def open_tokenizer(folder: Path, model_cfg: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of transformers in a folder, with what open_clip's configuration says of it. Errors: as
    `Tokenizer`."""
    return Tokenizer(folder, _open_clip_tokenizer().get_clean_fn(_options(model_cfg).get("clean", "whitespace")))


def _other_tokenizer(directory: Path, passport: artifact.Passport) -> Tokenizer | None:
    if passport.config["tokenizer_sha256"] is None:
        return None
    _check_tokenizer(directory, passport)
    return open_tokenizer(directory / tokenizer.FOLDER, passport.config["model_cfg"])


def _check_tokenizer(directory: Path, passport: artifact.Passport) -> None:
    for name, sha256 in (passport.config["tokenizer_sha256"] or {}).items():
        artifact.check_file(directory / name, sha256)


def _options(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration says of the tokenizer."""
    return dict(model_cfg["text_cfg"].get("tokenizer_kwargs") or {})


def build(params: ClipParams, seed: int) -> Clip:
    """Build a new model, with weights drawn from `seed`."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    cfg = _model_cfg(params)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.key(seed, "clip weights"))
        model = _model(cfg)
        text = model.text if hasattr(model, "text") else model
        nn.init.normal_(text.token_embedding.weight, std=params.text.embedding_std)
    preprocess = Preprocess(
        params.vision.image_size_px, tuple(OPENAI_DATASET_MEAN), tuple(OPENAI_DATASET_STD), "bicubic", "shortest"
    )
    return Clip(model, cfg, preprocess, None if params.text.num_merges is None else _cut_merges(params.text.num_merges))


def _model_cfg(params: ClipParams) -> dict[str, Any]:
    """open_clip's configuration of a new model. A bidirectional tower needs `custom_text`, since open_clip masks
    padding only there."""
    vision, text = params.vision, params.text
    vocab_size = _FULL_VOCABULARY if text.num_merges is None else _BYTES_AND_ENDS + text.num_merges
    return {
        "embed_dim": params.embed_dim,
        "quick_gelu": False,
        "custom_text": not text.causal,
        "vision_cfg": {
            "image_size": vision.image_size_px,
            "patch_size": vision.patch_size_px,
            "width": vision.width,
            "layers": vision.layers,
            "head_width": vision.head_width,
        },
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "no_causal_mask": not text.causal,
        },
    }


def _model(cfg: Mapping[str, Any]) -> Any:
    from open_clip.model import CLIP, CustomTextCLIP

    arguments = {name: value for name, value in cfg.items() if name != "custom_text"}
    arguments["vision_cfg"] = {**cfg["vision_cfg"], "timm_model_pretrained": False}
    if not cfg.get("custom_text", False):
        return CLIP(**arguments)
    model: Any = CustomTextCLIP(**arguments)
    is_bidirectional = bool(cfg["text_cfg"].get("no_causal_mask", False))
    model.text.use_pad_mask = is_bidirectional and not layout.has_other_tokenizer(cfg)
    return model


@cache
def _open_clip_tokenizer() -> Any:
    """The module `open_clip/tokenizer.py` alone; the package would also import torchvision, timm and transformers."""
    package = find_spec("open_clip")
    assert package is not None and package.origin is not None, "open_clip is a dependency"
    spec = spec_from_file_location("open_clip_tokenizer", Path(package.origin).with_name("tokenizer.py"))
    assert spec is not None and spec.loader is not None, "a Python file"
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _cut_merges(num_merges: int) -> bytes:
    """The first merges of open_clip's vocabulary, gzipped in open_clip's format; the bytes are the same every time."""
    with gzip.open(_open_clip_tokenizer().default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[: num_merges + 1]
    return gzip.compress("\n".join(lines).encode(), mtime=0)


def _tokenizer(text_cfg: Mapping[str, Any], merges: bytes | None) -> Any:
    options = dict(text_cfg.get("tokenizer_kwargs") or {})
    if merges is not None:
        options["bpe_path"] = io.BytesIO(merges)
    made = _open_clip_tokenizer().SimpleTokenizer(context_length=text_cfg.get("context_length", 77), **options)
    vocab_size = text_cfg.get("vocab_size", _FULL_VOCABULARY)
    if made.vocab_size != vocab_size:
        raise IntegrityError(
            "CLIP tokenizer", f"{made.vocab_size} tokens", f"{vocab_size} tokens", "make the CLIP artefact again"
        )
    return made
