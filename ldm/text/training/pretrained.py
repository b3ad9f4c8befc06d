"""A pretrained CLIP: an open_clip tag, a checkpoint file, a folder in open_clip's layout, or an artefact of this
project.

Weights do not record whether they were trained with QuickGELU, nor how their images were prepared. With the wrong
activation everything still runs, with slightly worse results. The setting is therefore compared with every source that
knows it, and must be given if none does. Images are prepared as a tag or a folder says; for a file as OpenAI did, with
a warning where open_clip knows weights that need another preparation.
"""

import difflib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import PickleError
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast
from weakref import finalize

from ldm.core import artifact, workspace
from ldm.core.errors import ConfigError
from ldm.text.model import layout
from ldm.text.model.clip import HALF_OF, KIND, Clip, Preprocess, load, open_tokenizer
from ldm.text.model.tokenizer import Tokenizer
from ldm.text.training.params import ClipFileParams, ClipFolderParams, OpenClipParams

_WHERE = "params.yaml: train_clip.source"
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
"""What open_clip, torch and safetensors raise for a file that is empty, or holds no weights or the wrong ones."""


def from_tag(source: OpenClipParams) -> Clip:
    """The model that open_clip has under this name and tag, downloaded on first use.

    ConfigError: open_clip has no such architecture or weights, the weights were trained with another QuickGELU setting
    than the one that is stated, or the text tower is not open_clip's own.
    """
    name = source.architecture
    cfg = _architecture_cfg(name)
    trained_with = _tag_quick_gelu(name, source.tag)
    stated = trained_with if source.quick_gelu is None else source.quick_gelu
    _check_quick_gelu(stated, trained_with, f"{source.tag} was trained with")
    cfg["quick_gelu"] = trained_with
    _check_parts(cfg, name, f"{_WHERE}.architecture")
    fix = "check the connection, or bring the weights as a file and set kind: file"
    tokenizer = _fetched_tokenizer(name, cfg) if layout.has_other_tokenizer(cfg) else None
    return _create(name, source.tag, cfg, tokenizer, weights=source.tag, key="tag", fix=fix)


def from_file(source: ClipFileParams) -> Clip:
    """The model of a checkpoint file.

    ConfigError: the file is missing or does not hold weights of the architecture, the architecture has another
    QuickGELU setting, or its text tower is not open_clip's own. Warns if open_clip knows weights of the
    architecture whose images are prepared otherwise.
    """
    _check_path(Path(source.path), "file")
    name = source.architecture
    cfg = _architecture_cfg(name)
    if cfg["quick_gelu"]:
        _check_quick_gelu(source.quick_gelu, True, f"{name} says")
    cfg["quick_gelu"] = source.quick_gelu
    _check_parts(cfg, name, f"{_WHERE}.architecture")
    if layout.has_other_tokenizer(cfg):
        found, fix = f"{name} has a tokenizer of its own", f"bring its files, the weights and {_CONFIG} in one folder"
        raise ConfigError(f"{_WHERE}.kind", f"file, and {found}", "folder", f"{fix}, and set kind: folder")
    fix = "name the architecture that they belong to, or bring a state dict that open_clip has saved"
    clip = _create(name, source.path, cfg, None, weights=source.path, key="path", fix=fix)
    if others := layout.otherwise_prepared(name, source.quick_gelu, clip.preprocess.mean, clip.preprocess.std):
        fix = (
            f"if it is one of these, set kind: open_clip with its tag, or bring it with {_CONFIG} and set kind: folder"
        )
        warnings.warn(
            f"{_WHERE}.path: {source.path} does not say how its images are prepared: {others}; {fix}", stacklevel=2
        )
    return clip


def from_folder(source: ClipFolderParams) -> Clip:
    """The model of a folder in open_clip's layout, or of an artefact of this project. ConfigError: as for a file.
    IntegrityError: the artefact is corrupt."""
    path = Path(source.path)
    _check_path(path, "folder")
    if (path / artifact.PASSPORT).is_file():
        _check_whole(path)
        clip, _ = load(path)
        _check_quick_gelu(source.quick_gelu, bool(clip.model_cfg.get("quick_gelu")), f"{path} says")
        return clip
    name, cfg = f"local-dir:{path}", _folder_cfg(path)
    _check_quick_gelu(source.quick_gelu, bool(cfg.get("quick_gelu")), f"{path} says")
    _check_parts(cfg, name, str(path / _CONFIG))
    tokenizer = open_tokenizer(path, cfg) if layout.has_other_tokenizer(cfg) else None
    fix = "bring a folder that open_clip has saved"
    return _create(name, None, cfg, tokenizer, weights=source.path, key="path", fix=fix)


def source_sha256(source: OpenClipParams | ClipFileParams | ClipFolderParams) -> dict[str, str]:
    """Name -> SHA-256 of the file of weights that the CLIP of this source was read from."""
    from open_clip import factory, pretrained

    match source:
        case OpenClipParams():
            cfg = pretrained.get_pretrained_cfg(source.architecture, source.tag)
            path = Path(pretrained.download_pretrained(cfg))  # it is there: `from_tag` has read it
        case ClipFileParams():
            path = Path(source.path)
        case ClipFolderParams() if (Path(source.path) / artifact.PASSPORT).is_file():
            path = Path(source.path) / artifact.WEIGHTS
        case ClipFolderParams():
            found = factory._find_checkpoint_in_dir(Path(source.path))  # pyright: ignore[reportPrivateUsage]
            assert found is not None, "`from_folder` has read it"
            path = Path(found)
    return {path.name: artifact.sha256_file(path)}


def _check_whole(path: Path) -> None:
    """ConfigError: an artefact of ours is the half of a CLIP that reads text alone, as it is in a model folder."""
    whole = artifact.read_passport(path, KIND).facts.get(HALF_OF)
    if whole is not None:
        found, fix = f"{path} is the text half of a CLIP", "name the folder `data/clip` of the repository that made it"
        raise ConfigError(f"{_WHERE}.path", found, f"the whole CLIP, of SHA-256 {whole}", fix)


def _fetched_tokenizer(name: str, cfg: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of an architecture, downloaded on first use. ConfigError: it cannot be."""
    import open_clip

    folder = TemporaryDirectory(prefix="ldm-tokenizer-")
    try:
        fetched: Any = open_clip.get_tokenizer(name)
        fetched.save_pretrained(folder.name)
    except _UNREADABLE as error:
        found = f"open_clip cannot fetch the tokenizer of {name} ({' '.join(str(error).split())[:200]})"
        fix = "check the connection, or bring a folder and set kind: folder"
        raise ConfigError(f"{_WHERE}.architecture", found, "a tokenizer that can be opened", fix) from error
    tokenizer = open_tokenizer(Path(folder.name), cfg)
    finalize(tokenizer, folder.cleanup)  # its files are copied when it is saved
    return tokenizer


def _check_path(path: Path, kind: Literal["file", "folder"]) -> None:
    """ConfigError unless the path exists and is of this kind."""
    where = f"{_WHERE}.path"
    if not path.exists():
        fix = workspace.left_behind(path) or "correct the path"
        raise ConfigError(where, f"no {kind} {path}", f"an existing {kind}", fix)
    found = "folder" if path.is_dir() else "file"
    if found != kind:
        raise ConfigError(where, f"{path} is a {found}", f"a {kind}", f"name a {kind}, or set kind: {found}")


def _check_parts(cfg: Mapping[str, Any], name: str, where: str) -> None:
    """ConfigError unless open_clip itself builds every part, and the text tower is causal or has its own tokenizer."""
    key = layout.foreign_key(cfg)
    if key is None and cfg["text_cfg"].get("no_causal_mask") and not layout.has_other_tokenizer(cfg):
        key = "text_cfg.no_causal_mask: True"
    if key is not None:
        expected = "a CLIP with open_clip's own text tower and tokenizer"
        raise ConfigError(where, f"{name} has {key}", expected, "choose another, e.g. ViT-L-14")


def _create(
    name: str,
    pretrained: str | None,
    cfg: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    *,
    weights: str,
    key: str,
    fix: str,
) -> Clip:
    """open_clip's model of this name with these weights, frozen. tokenizer: None = open_clip's own.

    weights, key: how the params name the weights, and in which field. ConfigError: open_clip cannot load them; `fix` is
    the advice, unless the reason suggests a better one.
    """
    import open_clip

    try:
        model = open_clip.create_model(name, pretrained=pretrained, force_quick_gelu=bool(cfg.get("quick_gelu")))
    except _UNREADABLE as error:
        found = f"open_clip cannot load {weights} ({layout.why_not_loaded(error)})"
        if layout.is_of_transformers(error):
            found = f"{weights} is in the layout of transformers ({layout.why_not_loaded(error)})"
            fix = (
                "bring the same weights in open_clip's layout: open_clip_model.safetensors beside them where they are "
                "published, or a tag of open_clip"
            )
        raise ConfigError(f"{_WHERE}.{key}", found, f"weights of {name} as open_clip saves them", fix) from error
    return Clip(model, cfg, _preprocess_of(model), None, tokenizer).eval().requires_grad_(False)


def _folder_cfg(path: Path) -> dict[str, Any]:
    config = path / _CONFIG
    where, expected = f"{_WHERE}.path", "open_clip's layout, or a folder this stage wrote"
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
        raise ConfigError(f"{_WHERE}.tag", tag, f"a tag of {architecture}: {', '.join(tags)}", "correct the tag")
    return bool(cfg.get("quick_gelu", False))


def _check_quick_gelu(stated: bool, truth: bool, who: str) -> None:
    if stated != truth:
        right = str(truth).lower()
        raise ConfigError(
            f"{_WHERE}.quick_gelu", str(stated).lower(), f"{right} ({who} so)", f"set quick_gelu: {right}"
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
