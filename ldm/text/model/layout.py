"""Which CLIPs are accepted: those whose parts are all built by open_clip itself.

A configuration can name models of other libraries, which would be downloaded and built by code that nobody here has
reviewed. A checkpoint can be in the layout of another library.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pickle import PickleError
from typing import Any

_MODEL = {"embed_dim", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"}
_TOKENIZER = {"clean", "reduction_mask", "strip_sep_token"}
_TOKENIZER_NAME = "hf_tokenizer_name"
_FOREIGN = ("hf_", "timm_")
_NUM_SHOWN = 3


def foreign_key(model_cfg: Any) -> str | None:
    """The first key of a model configuration, with its value, that names a part of another library or that open_clip's
    own towers and tokenizer do not know; None if there is no such key.

    A tokenizer of transformers may be named: its files are read, and the name is not. An image tower of the package
    timm is accepted if open_clip itself has the same configuration, since its name is then one of timm's own models.
    """
    if not isinstance(model_cfg, Mapping):
        return f"{model_cfg!r}, which is not a mapping"
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    known = {
        "": {*_MODEL, "vision_cfg", "text_cfg"},
        "vision_cfg.": _own(CLIPVisionCfg),
        "text_cfg.": _own(CLIPTextCfg) - {"tokenizer_mode"} | {_TOKENIZER_NAME},
        "text_cfg.tokenizer_kwargs.": _TOKENIZER,
    }
    vision = model_cfg.get("vision_cfg")
    if isinstance(vision, Mapping) and "timm_model_name" in vision and _is_of_open_clip(model_cfg):
        known["vision_cfg."] |= {key for key in vision if key.startswith("timm_")}
    for place, keys in known.items():
        part: Any = model_cfg
        for name in place.split(".")[:-1]:
            part = part.get(name) or {}
        if not isinstance(part, Mapping):
            return f"{place[:-1]}: {part!r}, which is not a mapping"
        if strangers := sorted(f"{place}{key}: {value!r}" for key, value in part.items() if key not in keys):
            return strangers[0]
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(model_cfg)
    return f"no {min(missing)}" if missing else None


def has_other_tokenizer(model_cfg: Mapping[str, Any]) -> bool:
    """Whether a model was trained with a tokenizer of transformers."""
    return bool(model_cfg["text_cfg"].get(_TOKENIZER_NAME))


def otherwise_prepared(architecture: str, quick_gelu: bool, mean: Sequence[float], std: Sequence[float]) -> str:
    """Weights of open_clip that may be those of a file, as far as its activation tells, and whose images have another
    mean or deviation than these, on one line; empty if there are none."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    cfgs = {tag: get_pretrained_cfg(architecture, tag) for tag in list_pretrained_tags_by_model(architecture)}
    others = [
        tag
        for tag, cfg in cfgs.items()
        if bool(cfg.get("quick_gelu")) == quick_gelu
        and (tuple(cfg.get("mean") or mean), tuple(cfg.get("std") or std)) != (tuple(mean), tuple(std))
    ]
    taken = f"mean {_numbers(mean)} and deviation {_numbers(std)} are taken"
    return f"{taken}, and {_few(others)} of {architecture} need others" if others else ""


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _own(cfg: type) -> set[str]:
    return {field.name for field in fields(cfg) if not field.name.startswith(_FOREIGN)}


def _is_of_open_clip(model_cfg: Mapping[str, Any]) -> bool:
    import open_clip

    def comparable(cfg: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in cfg.items() if key != "quick_gelu"}

    names = open_clip.list_models()
    return any(comparable(open_clip.get_model_config(name) or {}) == comparable(model_cfg) for name in names)


def why_not_loaded(error: Exception) -> str:
    """The first reasons in an error of `load_state_dict`, on one line; any other error in short."""
    text = str(error)
    parts: list[str] = []
    for kind in ("Missing", "Unexpected"):
        if match := re.search(rf"{kind} key\(s\) in state_dict: (.*?)\. ?$", text, re.MULTILINE):
            keys = re.findall('"([^"]+)"', match[1])
            parts.append(f"{kind.lower()} keys: {_few(keys)}")
    sizes = re.findall(r"size mismatch for (\S+): .*?torch\.Size\((.*?)\).*?torch\.Size\((.*?)\)", text)
    if sizes:
        parts.append(f"shapes: {_few([f'{key} {found} instead of {expected}' for key, found, expected in sizes])}")
    if parts:
        return "; ".join(parts)
    if isinstance(error, PickleError) or "TorchScript" in text:
        return "it holds objects or code instead of tensors alone, which are never loaded, or is not an archive"
    reason = " ".join(text.split())[:200]
    return f"{type(error).__name__}: {reason}" if reason else "there is nothing in it"


def is_of_transformers(error: Exception) -> bool:
    """Whether an error of `load_state_dict` names keys of a CLIP in the layout of transformers."""
    return re.search(r'"(text_model|vision_model)\.(encoder|embeddings)\.', str(error)) is not None


def _few(names: Sequence[str]) -> str:
    rest = len(names) - _NUM_SHOWN
    return ", ".join(names[:_NUM_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
