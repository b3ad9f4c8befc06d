"""Adapters as users bring them, added to the UNet of a pipeline: of `train_unet`, or of peft, diffusers and kohya."""

import copy
import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError
from ldm.denoiser import adapters
from ldm.denoiser.adapters import Adapter
from ldm.exchange import files
from ldm.sampling.generator import Generator
from ldm.tools.pipeline import Pipeline

_OF_PEFT = ("adapter_model.safetensors", "adapter_model.bin")
"""Names of the weights in a folder as peft writes it."""
_OF_TEXT = ("text_encoder", "lora_te")
_PREFIXES = ("unet.", "base_model.model.", "lora_unet_")
_ENDS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
}
_FORMER = {
    r"\.processor\.to_(q|k|v)_lora\.(down|up)\.weight$": r".to_\1.lora.\2.weight",
    r"\.processor\.to_out_lora\.(down|up)\.weight$": r".to_out.0.lora.\1.weight",
}
"""Names that diffusers gave before its LoRAs were those of peft, and the later ones."""
_FIX = "name a LoRA of a UNet, as `train_unet`, peft, diffusers or kohya's scripts save it"


def adapted(pipeline: Pipeline, chosen: Mapping[str | Path, float]) -> Pipeline:
    """A pipeline with adapters in its UNet: `adapted(Pipeline.load(), {"data/unet/adapter": 1})`. They are added to
    the weights of a copy of the UNet, so that an image takes no more time, and the pipeline given stays as it is.

    chosen: a folder that `train_unet` or peft wrote, or a file of others -> its scale; 1 = as trained, 0 = without
    effect.

    Warns if one was trained on another UNet, or has layers for a text encoder too, which are left out. ConfigError: one
    does not fit the UNet. IntegrityError: one is missing, damaged or no LoRA.
    """
    generator, found = pipeline.generator, dict(pipeline.generator.adapters)
    unet = copy.deepcopy(generator.unet)
    for name, scale in chosen.items():
        sha256, adapter = _read(Path(name), generator)
        adapter.add_to(unet, scale, str(name))
        found[sha256] = found.get(sha256, 0.0) + scale
    return replace(pipeline, generator=replace(generator, unet=unet, adapters=found))


def _read(path: Path, generator: Generator) -> tuple[str, Adapter]:
    """An adapter with its SHA-256."""
    if not (path / artifact.PASSPORT).is_file():
        source = files.read(_file(path))
        return source.sha256, _foreign(source, generator.unet)
    adapter, passport = adapters.load(path)
    base, ours = passport.inputs["init_from"], generator.passport.content_sha256
    if base != ours:
        warnings.warn(f"{path} was trained on UNet {base[:12]}, and this is {ours[:12]}", stacklevel=3)
    return passport.content_sha256, adapter


def _modern(name: str) -> str:
    for former, later in _FORMER.items():
        name = re.sub(former, later, name)
    return name


def _file(path: Path) -> Path:
    """The file of weights in a folder of peft; else the path itself."""
    return next((path / name for name in _OF_PEFT if (path / name).is_file()), path)


def _foreign(source: files.Source, network: nn.Module) -> Adapter:
    """The adapter of a file that others wrote. Layers have diffusers' names; kohya writes "_" for each dot in them."""
    of_text = [name for name in source.tensors if name.startswith(_OF_TEXT)]
    if of_text:
        warnings.warn(f"{source.path}: {len(of_text)} tensors of a text encoder are left out", stacklevel=3)
    names = {name.replace(".", "_"): name for name, _ in network.named_modules()}
    parts: dict[str, dict[str, Tensor]] = {}
    for name in sorted(source.tensors.keys() - of_text):
        modern = _modern(name)
        end = next((end for end in _ENDS if modern.endswith(end)), None)
        if end is None:
            raise IntegrityError(str(source.path), f"a tensor {name}", f"names that end in {', '.join(_ENDS)}", _FIX)
        layer = reduce(str.removeprefix, _PREFIXES, modern.removesuffix(end))
        parts.setdefault(names.get(layer, layer), {})[_ENDS[end]] = source.tensors[name]
    if not parts:
        raise IntegrityError(str(source.path), "no layer of a UNet", "at least one", _FIX)
    alpha = _alpha(source.path)
    return Adapter({layer: _pair(layer, found, alpha, source.path) for layer, found in parts.items()})


def _pair(layer: str, found: Mapping[str, Tensor], alpha: float | None, path: Path) -> tuple[Tensor, Tensor]:
    """Both matrices of a layer; the second is scaled by alpha / rank, which is 1 where no alpha is stated.
    IntegrityError: one is missing or is no matrix, or its own alpha is not one number."""
    if not {"down", "up"} <= found.keys():
        raise IntegrityError(str(path), f"{layer} with {', '.join(sorted(found))} alone", "down and up", _FIX)
    down, up = found["down"], found["up"]
    if not adapters.is_pair(down, up):
        shapes = f"{layer} of {list(up.shape)} times {list(down.shape)}"
        raise IntegrityError(str(path), shapes, "two matrices, of a rank of at least 1", _FIX)
    if "alpha" in found and found["alpha"].numel() != 1:
        raise IntegrityError(str(path), f"{layer} with an alpha of {found['alpha'].numel()} numbers", "one", _FIX)
    own = float(found["alpha"]) if "alpha" in found else alpha
    return down, (1.0 if own is None else own / len(down)) * up.float()


def _alpha(path: Path) -> float | None:
    """The alpha that diffusers writes into the header of a file, or peft into a file beside it, for all layers; None
    if there is none. ConfigError: it is not one number, or the adapter is of a kind that is more than a product.
    IntegrityError: what should state it is no JSON object."""
    beside = path.with_name("adapter_config.json")
    where = beside if path.name.startswith("adapter_model") and beside.is_file() else path
    settings = files.read_json(beside) if where == beside else _metadata(path)
    unknown = [name for name in ("alpha_pattern", "use_rslora", "use_dora") if settings.get(name)]
    if unknown:
        found = f"{', '.join(f'{name} {settings[name]}' for name in unknown)}"
        raise ConfigError(str(where), found, "products with one alpha for all", "merge it by peft, and save the UNet")
    alpha: object = settings.get("lora_alpha")
    if alpha is None or _is_number(alpha):
        return cast(float | None, alpha)
    raise ConfigError(str(where), f"lora_alpha {json.dumps(alpha)}", "a number, or none at all", "write the number")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _metadata(path: Path) -> dict[str, Any]:
    """What diffusers writes into the header of a file about its UNet; empty if nothing is there."""
    text = files.header(path).get("lora_adapter_metadata", "{}")
    try:
        settings: object = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise IntegrityError(str(path), f"lora_adapter_metadata {text[:60]!r} in its header", "a JSON object", _FIX)
    return {name.removeprefix("unet."): value for name, value in cast(dict[str, Any], settings).items()}
