"""A text encoder that the package transformers has saved, from the folder in which it is published."""

from pathlib import Path

import torch

from ldm.core import workspace
from ldm.core.errors import ConfigError
from ldm.exchange import files
from ldm.text.model import transformers_tower
from ldm.text.model.tokenizer import Tokenizer, package
from ldm.text.model.transformers_tower import MODEL_TYPES, TransformersTower
from ldm.text.training.params import TransformersParams

_WHERE = "params.yaml: train_clip.text_encoder"
_MODEL_TYPE = "model_type"


def from_transformers(source: TransformersParams) -> tuple[TransformersTower, dict[str, str]]:
    """The text encoder of a folder, and the SHA-256 of each file of weights that it was read from.

    Raises:
        ConfigError: the folder is missing, the model is of no kind that is known here, or weights or tokenizer do not
            belong to its configuration.
        IntegrityError: its files are missing, cut, damaged or hold more than tensors.
        MachineError: the package transformers is not there.
    """
    folder = _folder(source.path, "path")
    config = files.read_json(folder / files.CONFIG)
    _check_config(folder, config)
    tensors = files.read(folder)
    tokenizer = folder if source.tokenizer is None else _folder(source.tokenizer, "tokenizer")
    package()
    try:
        model, wrong = transformers_tower.build(config, tensors.tensors)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError) as error:
        model, wrong = None, " ".join(str(error).split())[:200]
    if model is None or wrong is not None:
        expected = f"the weights of a {config[_MODEL_TYPE]} as its config.json describes it"
        fix = "fetch config.json and weights of one model"
        raise ConfigError(f"{_WHERE}.path", f"{folder}: {wrong}", expected, fix)
    return _with_tokenizer(model, tokenizer, _dtype(tensors)), tensors.files


def _folder(path: str, key: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        found = f"{folder} is a file" if folder.exists() else f"no folder {folder}"
        fix = workspace.left_behind(folder) or "name the folder that holds config.json"
        raise ConfigError(f"{_WHERE}.{key}", found, "a folder as transformers saves it", fix)
    return folder


def _check_config(folder: Path, config: dict[str, object]) -> None:
    kind = config.get(_MODEL_TYPE)
    if kind not in MODEL_TYPES:
        found = f"{folder / files.CONFIG} has {_MODEL_TYPE} {kind!r}"
        raise ConfigError(f"{_WHERE}.path", found, f"one of {', '.join(MODEL_TYPES)}", "choose such a text encoder")
    if "quantization_config" in config:
        found = f"the weights of {folder} are quantised"
        fix = "fetch the model that they were made of"
        raise ConfigError(f"{_WHERE}.path", found, "weights as they were trained", fix)


def _dtype(source: files.Source) -> torch.dtype:
    """The number type of all weights, if it is one."""
    found = {tensor.dtype for tensor in source.tensors.values() if tensor.is_floating_point()}
    return found.pop() if len(found) == 1 else torch.float32


def _with_tokenizer(model: torch.nn.Module, folder: Path, dtype: torch.dtype) -> TransformersTower:
    tower = TransformersTower(model, Tokenizer(folder), dtype)
    if tower.tokenizer.largest_id >= tower.vocab_size:
        found = f"the tokenizer of {folder} gives ids up to {tower.tokenizer.largest_id}"
        expected = f"less than {tower.vocab_size}, the vocabulary of the weights"
        raise ConfigError(f"{_WHERE}.tokenizer", found, expected, "name the tokenizer of this model")
    return tower
