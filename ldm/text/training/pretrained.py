"""A CLIP that somebody else trained: an open_clip tag, a checkpoint file, a folder in open_clip's layout or an artefact
of ours.

Weights do not say whether they were trained with QuickGELU, and with the wrong activation everything runs and is
slightly bad, so that setting is compared with every source that knows it and must be stated where none does.
"""

import difflib
import json
from pathlib import Path
from pickle import PickleError
from typing import Any, cast

from ldm.core import artifact, workspace
from ldm.core.errors import ConfigError
from ldm.text.model import layout
from ldm.text.model.clip import Clip, Preprocess, load
from ldm.text.training.params import TrainClipParams

_WHERE = "params.yaml: train_clip"
_CONFIG = "open_clip_config.json"
_UNREADABLE = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    StopIteration,
    EOFError,
    OSError,
    PickleError,
    artifact.SafetensorError,
)
"""What open_clip, torch and safetensors raise for a file that holds no weights, other weights, or nothing."""


def pretrained(params: TrainClipParams) -> Clip:
    """The model that `params.pretrained` names: an open_clip tag, a checkpoint file, a folder in open_clip's layout or
    an artefact of ours.

    ConfigError: nothing has that name, or its QuickGELU setting is not the stated one. IntegrityError: the artefact is
    corrupt.
    """
    assert params.pretrained is not None, "nothing to load"
    path = Path(params.pretrained)
    if params.pretrained_is_path and not path.exists():
        raise ConfigError(
            f"{_WHERE}.pretrained",
            f"no file or folder {path}",
            "an existing path, or a tag (no `/` in it)",
            workspace.left_behind(path) or "correct the path",
        )
    if params.pretrained_is_path and (path / artifact.PASSPORT).is_file():
        clip, _ = load(path)
        _check_quick_gelu(params, bool(clip.model_cfg.get("quick_gelu")), f"{path} says")
        return clip
    if params.pretrained_is_path and path.is_file() and params.architecture is None:
        raise ConfigError(
            f"{_WHERE}.architecture", "null", f"the open_clip architecture of {path}", "name it, e.g. ViT-L-14"
        )
    return _from_open_clip(params, path)


def _from_open_clip(params: TrainClipParams, path: Path) -> Clip:
    import open_clip

    cfg, name, source = _pretrained_cfg(params, path)
    key = layout.foreign_key(cfg)
    if key is None and cfg["text_cfg"].get("no_causal_mask"):
        key = "text_cfg.no_causal_mask: True"
    if key is not None:
        where = f"{path / _CONFIG}" if params.pretrained_is_path and path.is_dir() else f"{_WHERE}.architecture"
        expected = "a CLIP with open_clip's own text tower and tokenizer"
        raise ConfigError(where, f"{name} has {key}", expected, "choose another, e.g. ViT-L-14")
    try:
        model = open_clip.create_model(name, pretrained=source, force_quick_gelu=bool(cfg.get("quick_gelu")))
    except _UNREADABLE as error:
        raise _not_loaded(error, params, name) from error
    return Clip(model, cfg, _preprocess_of(model), None).eval().requires_grad_(False)


def _not_loaded(error: Exception, params: TrainClipParams, name: str) -> ConfigError:
    """What is wrong with weights that open_clip does not load, and what to bring instead."""
    found = f"open_clip cannot load {params.pretrained} ({layout.why_not_loaded(error)})"
    if not params.pretrained_is_path:
        fix = "look at the network, or bring the weights as a file and name its path"
    elif layout.is_of_transformers(error):
        found = f"{params.pretrained} is in the layout of transformers ({layout.why_not_loaded(error)})"
        fix = "bring the same weights in open_clip's layout: open_clip_model.safetensors beside them where they are \
published, or a tag of open_clip"
    else:
        fix = "name the architecture that they belong to, or bring a state dict that open_clip has saved"
    return ConfigError(f"{_WHERE}.pretrained", found, f"weights of {name} as open_clip saves them", fix)


def _pretrained_cfg(params: TrainClipParams, path: Path) -> tuple[dict[str, Any], str, str | None]:
    """open_clip's model configuration, model name and `pretrained` argument, once the activation is checked."""
    if params.pretrained_is_path and path.is_dir():
        cfg = _folder_cfg(path)
        _check_quick_gelu(params, bool(cfg.get("quick_gelu")), f"{path} says")
        return cfg, f"local-dir:{path}", None
    name = params.architecture or ""
    cfg = _architecture_cfg(name)
    if params.pretrained_is_path:
        if cfg["quick_gelu"]:
            _check_quick_gelu(params, True, f"{name} says")
        return {**cfg, "quick_gelu": bool(params.quick_gelu)}, name, str(path)
    trained_with = _tag_quick_gelu(name, params.pretrained or "")
    stated = params if params.quick_gelu is not None else params.model_copy(update={"quick_gelu": cfg["quick_gelu"]})
    _check_quick_gelu(stated, trained_with, f"{params.pretrained} was trained with")
    return {**cfg, "quick_gelu": trained_with}, name, params.pretrained


def _folder_cfg(path: Path) -> dict[str, Any]:
    config = path / _CONFIG
    where, expected = f"{_WHERE}.pretrained", "open_clip's layout, or a folder this stage wrote"
    if not config.is_file():
        if (path / "config.json").is_file():
            fix = f"bring the same model with {_CONFIG} and open_clip_model.safetensors, or name a tag of open_clip"
            raise ConfigError(where, f"{path} is in the layout of transformers: no {_CONFIG}", expected, fix)
        raise ConfigError(where, f"no {_CONFIG} in {path}", expected, "correct the path")
    try:
        whole = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(str(config), f"no JSON ({error})", "JSON as open_clip saves it", "fetch it again") from None
    cfg: Any = whole.get("model_cfg") if isinstance(whole, dict) else None  # pyright: ignore[reportUnknownMemberType]
    if not isinstance(cfg, dict):
        raise ConfigError(str(config), "no model_cfg", "JSON as open_clip saves it", "fetch it again")
    return cast(dict[str, Any], cfg)


def _architecture_cfg(name: str) -> dict[str, Any]:
    import open_clip

    cfg = open_clip.get_model_config(name)
    if cfg is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), 3)
        raise ConfigError(f"{_WHERE}.architecture", name, "an architecture of open_clip", f"perhaps one of {near}")
    return {**cfg, "quick_gelu": bool(cfg.get("quick_gelu", False))}


def _tag_quick_gelu(architecture: str, tag: str) -> bool:
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    cfg = get_pretrained_cfg(architecture, tag)
    if not cfg:
        tags = list_pretrained_tags_by_model(architecture)
        raise ConfigError(
            f"{_WHERE}.pretrained",
            tag,
            f"a tag of {architecture}: {', '.join(tags)}",
            "correct the tag; a path needs a `/`",
        )
    return bool(cfg.get("quick_gelu", False))


def _check_quick_gelu(params: TrainClipParams, truth: bool, who: str) -> None:
    if params.quick_gelu is not None and params.quick_gelu != truth:
        right = str(truth).lower()
        raise ConfigError(
            f"{_WHERE}.quick_gelu", str(params.quick_gelu).lower(), f"{right} ({who} so)", f"set quick_gelu: {right}"
        )


def _preprocess_of(model: Any) -> Preprocess:
    cfg = model.visual.preprocess_cfg
    size = cfg["size"]
    size_px = size if isinstance(size, int) else size[0]
    if cfg["interpolation"] not in ("bicubic", "bilinear") or cfg["resize_mode"] not in ("shortest", "squash"):
        found = f"resizing {cfg['interpolation']}, {cfg['resize_mode']}"
        raise ConfigError(
            f"{_WHERE}.architecture", found, "bicubic or bilinear, shortest or squash", "choose another architecture"
        )
    return Preprocess(size_px, tuple(cfg["mean"]), tuple(cfg["std"]), cfg["interpolation"], cfg["resize_mode"])
