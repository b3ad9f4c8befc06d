"""Datasets of labelled images that the package torchvision knows by name; captions are the names of their classes."""

import inspect
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.core.errors import ConfigError, MachineError
from ldm.corpora import framing, spelling
from ldm.corpora.pairs import Pair, class_claim, key_of, split_of
from ldm.corpora.params import Arguments, TorchvisionParams

_WHERE = "prepare.corpus"


def pairs(params: TorchvisionParams, size_px: int, source: Path) -> Iterator[Pair]:
    """Every image, in the order of the dataset, downloaded to a folder of its name in `source` if it is not there yet.

    Raises:
        ConfigError: torchvision has no such dataset, it takes other arguments, or it has no labelled images.
        MachineError: the download failed.
    """
    parts = {"train": _open(params, params.arguments, source)}
    if params.held_out_arguments is not None:
        parts["held-out"] = _open(params, params.held_out_arguments, source)
    return _all_pairs(params, parts, size_px)


def _all_pairs(params: TorchvisionParams, parts: dict[str, Any], size_px: int) -> Iterator[Pair]:
    for part, dataset in parts.items():
        names = _class_names(dataset)
        for number in range(len(dataset)):
            image, label = _labelled(dataset[number], params)
            key = key_of(f"{params.dataset}-{part}-{number:07d}")
            name = names[label] if names else str(label)
            yield Pair(
                key=key,
                image=framing.resized(np.asarray(image.convert("RGB")), params.resampling, (size_px, size_px)),
                captions=[spelling.clean(params.caption.format(name))],
                claims=[class_claim(name)],
                scene=None,
                split="held_out" if part == "held-out" else split_of(key, params.val_fraction, params.seed),
                source={"corpus": "torchvision", "dataset": params.dataset, "part": part, "number": number},
            )


def _open(params: TorchvisionParams, arguments: Arguments, source: Path) -> Any:
    build = _dataset_class(params.dataset)
    taken = _arguments_of(build)
    unknown = [name for name in arguments if name not in taken or name in ("root", "download")]
    if unknown or "root" not in taken:
        legal = ", ".join(name for name in taken if name not in ("root", "download"))
        found = f"{params.dataset} with {', '.join(unknown)}" if unknown else f"{params.dataset}, which has no folder"
        raise ConfigError(f"{_WHERE}.arguments", found, f"arguments among {legal}", "change dataset or arguments")
    root = source / params.dataset
    download = {"download": True} if "download" in taken else {}
    try:
        return build(root=root, **arguments, **download)
    except (OSError, RuntimeError) as error:
        found = f"torchvision could not get {params.dataset}: {_line(error)}"
        fix = f"connect this machine, or put the files that torchvision expects into {root}"
        raise MachineError(_WHERE, found, f"its files in {root}, or a download", fix) from None
    except (TypeError, ValueError) as error:
        found = f"{arguments}, which {params.dataset} refuses: {_line(error)}"
        fix = "write them as torchvision's documentation has them"
        raise ConfigError(f"{_WHERE}.arguments", found, "arguments that it takes", fix) from None


def _arguments_of(build: Any) -> list[str]:
    """What a class can be called with; one that takes any keyword passes it on to the class that it extends."""
    names: list[str] = []
    for cls in build.__mro__:
        parameters = inspect.signature(cls.__init__).parameters.values()
        names += [parameter.name for parameter in parameters if parameter.kind == parameter.POSITIONAL_OR_KEYWORD]
        if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters):
            break
    return [name for name in dict.fromkeys(names) if name != "self"]


def _dataset_class(name: str) -> Any:
    from torchvision import datasets

    names: Sequence[str] = datasets.__all__
    if name not in names:
        near = get_close_matches(name, names, 1)
        fix = f"write {near[0]}, if that is meant" if near else "write one, such as FashionMNIST"
        expected = "the name of a class in torchvision.datasets"
        raise ConfigError(f"{_WHERE}.dataset", name, expected, fix)
    return getattr(datasets, name)


def _class_names(dataset: Any) -> list[str] | None:
    """Names of the classes by label, as words; None for a dataset without names."""
    names: Sequence[str | Sequence[str]] | None
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    if names is None:
        return None
    firsts = [name if isinstance(name, str) else name[0] for name in names]  # ImageNet's have synonyms
    return [name.replace("_", " ") for name in firsts]


def _labelled(sample: Any, params: TorchvisionParams) -> tuple[Image.Image, int]:
    if isinstance(sample, tuple) and len(sample) == 2 and isinstance(sample[0], Image.Image):  # pyright: ignore[reportUnknownArgumentType]
        image, label = sample  # pyright: ignore[reportUnknownVariableType]
        if isinstance(label, int):
            return image, label
    expected = "images with a class each"
    raise ConfigError(f"{_WHERE}.dataset", params.dataset, expected, "choose a dataset of labelled images")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
