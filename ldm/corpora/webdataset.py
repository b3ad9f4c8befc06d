"""A user's tars in the layout that img2dataset writes: KEY.jpg (jpeg, png, webp), KEY.txt, KEY.json side by side.

Captions are where the params say, such as KEY.txt, or "caption" in KEY.json. Other parts, and files that are not
tars, are not read. Nothing is extracted: members are read by offset, and their names become keys, never paths.
"""

import re
import tarfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ldm.core import workspace
from ldm.core.errors import ConfigError, IntegrityError
from ldm.corpora import captions, cleaning
from ldm.corpora.files import Files
from ldm.corpora.pairs import ByContent, Pair, Rejected, Rejection, Unit, key_of
from ldm.corpora.user_params import WebdatasetParams

_NAME = re.compile(r"((?:[^/]+/)*[^./][^./]*)\.([^/]+)")
_BLOCK = 512

Parts = dict[str, tarfile.TarInfo]


def units(params: WebdatasetParams, size_px: int, files: Files, is_captioned: bool = True) -> list[Unit]:
    """Every tar, ordered by name, with its samples by first appearance. Captions are not read if the corpus is not
    captioned.

    Reasons of rejections, besides those of `ldm.corpora.cleaning`: MISSING_IMAGE, MISSING_CAPTION, DUPLICATE_MEMBER
    (the first one counts), TWO_IMAGES, BAD_JSON, and for members BAD_NAME, BAD_TYPE (a link or device), UNSAFE_PATH.

    Raises:
        ConfigError: there is no tar in the folder.
        IntegrityError: a tar is damaged or cut short.
    """
    names = [file.name for file in files.list() if file.name.endswith(".tar")]
    if not names:
        fix = workspace.left_behind(files.root) or "put img2dataset's tars there, or name another folder"
        raise ConfigError(f"prepare.corpus.directory: {files.root}", "no *.tar in it", "a folder of tars", fix)
    return [
        Unit(name, files.sha256_of([name]), partial(_items, name, params, size_px, files, is_captioned))
        for name in names
    ]


def _items(
    name: str, params: WebdatasetParams, size_px: int, files: Files, is_captioned: bool
) -> Iterator[Pair | Rejection]:
    tar = files.root / name
    samples, rejections = _samples(tar, name)
    yield from rejections
    for key, parts in samples.items():
        yield _pair(tar, name, key, parts, params, size_px, is_captioned)


def members(path: Path) -> list[tarfile.TarInfo]:
    """All members of an uncompressed tar, which must end in zeros that reach to the end of the file.

    Raises:
        IntegrityError: the tar is damaged or cut short; Python's tarfile alone would return what it can read.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            infos, end = tar.getmembers(), tar.offset
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise _damaged(path, str(error)) from None
    # tarfile stops silently at the first damaged header; a whole tar goes on in zeros from there.
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read()
    if len(rest) < 2 * _BLOCK or path.stat().st_size % _BLOCK or rest.strip(b"\0"):
        raise _damaged(path, f"no zeros to the end of the file from byte {end} on, after {len(infos)} members")
    return infos


def _damaged(path: Path, found: str) -> IntegrityError:
    return IntegrityError(str(path), found, "a whole, uncompressed tar", "fetch it again, or move it out of the folder")


def _samples(path: Path, name: str) -> tuple[dict[str, Parts], list[Rejection]]:
    samples: dict[str, Parts] = {}
    rejections: list[Rejection] = []
    for member in members(path):
        if member.isdir():
            continue
        match = _NAME.fullmatch(member.name)
        problem = _problem(member, match)
        if match is not None and problem is None:
            parts = samples.setdefault(match[1], {})
            problem = "DUPLICATE_MEMBER" if match[2].lower() in parts else None
            parts.setdefault(match[2].lower(), member)
        if problem is not None:
            source = _source(name, member.name)
            rejections.append(Rejection(_key(name, member.name), problem, f"member {member.name!r}", source))
    return samples, rejections


def _problem(member: tarfile.TarInfo, match: re.Match[str] | None) -> str | None:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "UNSAFE_PATH"
    if not member.isreg() or member.issparse():
        return "BAD_TYPE"
    # webdataset keeps names in double underscores for itself.
    if match is None or match[1].rpartition("/")[2].startswith("__"):
        return "BAD_NAME"
    return None


def _pair(
    tar: Path, name: str, stem: str, parts: Parts, params: WebdatasetParams, size_px: int, is_captioned: bool
) -> Pair | Rejection:
    key, source = _key(name, stem), _source(name, stem)
    try:
        facts = _facts(tar, parts, params)
        texts = _captions(tar, parts, facts, params) if is_captioned else [""]
        image = _image(parts)
    except Rejected as error:
        return Rejection(key, error.reason, error.detail, source)
    url = {"url": facts["url"]} if isinstance(facts.get("url"), str) else {}
    return Pair(
        key=key,
        image=partial(cleaning.read_and_clean, str(tar), image.offset_data, image.size, params.pixels, size_px),
        captions=texts,
        claims=[None] * len(texts),
        scene=None,
        split=ByContent(params.val_fraction, params.seed),
        source=source | url,
        group=name,
    )


def _facts(tar: Path, parts: Parts, params: WebdatasetParams) -> Mapping[str, Any]:
    return captions.fields_of(_read(tar, parts["json"], params), parts["json"].name) if "json" in parts else {}


def _captions(tar: Path, parts: Parts, facts: Mapping[str, Any], params: WebdatasetParams) -> list[str]:
    texts = {f".{suffix}": partial(_read, tar, member, params) for suffix, member in parts.items()}
    return captions.take(texts, lambda: facts, params.captions)


def _image(parts: Parts) -> tarfile.TarInfo:
    suffixes = [suffix for suffix in cleaning.SUFFIXES if suffix in parts]
    if not suffixes:
        raise Rejected("MISSING_IMAGE", f"parts {', '.join(parts)}")
    if len(suffixes) > 1:
        raise Rejected("TWO_IMAGES", f"parts {', '.join(suffixes)}")
    return parts[suffixes[0]]


def _read(tar: Path, member: tarfile.TarInfo, params: WebdatasetParams) -> bytes:
    return cleaning.read(str(tar), member.offset_data, member.size, params.pixels)


def _key(tar_name: str, name: str) -> str:
    # Tars may repeat each other's keys, so the tar is part of the key.
    return key_of(f"{tar_name.removesuffix('.tar')}-{name}")


def _source(tar_name: str, name: str) -> dict[str, Any]:
    printable = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return {"corpus": "webdataset", "tar": tar_name, "key": printable}
