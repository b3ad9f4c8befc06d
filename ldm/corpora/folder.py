"""A user's folder: images, each beside text files of the same name, or in a row of a metadata file.

A sample is an image, with all files of its name: NAME.jpg, NAME.txt, NAME.caption, NAME.json, NAME.jpg.txt. Suffixes
may be in any case, and names in any Unicode form: macOS writes an accented letter as two characters, others as one.
What is neither an image nor its text is no sample: caches, thumbnails, copies of editors, hidden files.
"""

import hashlib
import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from ldm.core import workspace
from ldm.core.errors import ConfigError
from ldm.core.progress import count
from ldm.corpora import captions, metadata, pixels
from ldm.corpora.files import File, Files, in_utf8, is_ignored, litter
from ldm.corpora.pairs import ByContent, Litter, Pair, Rejected, Rejection, Unit, key_of
from ldm.corpora.slices import slices
from ldm.corpora.user_params import FolderParams

_IMAGES = tuple(f".{suffix}" for suffix in pixels.SUFFIXES)
_TEXTS = (".txt", ".caption")
_JSON = ".json"


@dataclass(frozen=True, slots=True)
class _Sample:
    """All files of one name."""

    name: str
    """Path without suffix, in composed characters (NFC)."""
    images: tuple[File, ...]
    texts: tuple[tuple[str, File], ...]
    """With their suffixes, in lower case; `.json` too."""
    others: tuple[File, ...]
    row: metadata.Row | None
    """Fields that a metadata file has for the image."""
    near: str = ""
    """Of texts without an image: one whose name differs in upper and lower case only."""

    @property
    def counts(self) -> bool:
        """Whether it is a sample: there is an image, or a text that is there for one."""
        return bool(self.images or any(suffix != _JSON for suffix, _ in self.texts))

    @property
    def files(self) -> list[File]:
        """What the sample is made from."""
        return [*self.images, *(file for _, file in self.texts)]

    @property
    def left_over(self) -> list[File]:
        """Files of its name that neither are a sample nor say anything of one."""
        if self.counts:
            # Beside a text without an image they are named in its rejection.
            return list(self.others) if self.images else []
        files = [*self.files, *self.others]
        return [file for file in files if os.path.basename(file.name).lower() not in metadata.NAMES]


def units(params: FolderParams, size_px: int, files: Files, is_captioned: bool = True) -> list[Unit]:
    """All samples, ordered by name, in slices, and what is none. Texts are not read if the corpus is not captioned.

    Reasons of rejections, besides those of pixels and captions: MISSING_IMAGE (a text or a row of metadata without an
    image), UNKNOWN_FILE (a text beside a file of a kind that is no image), TWO_IMAGES (of one name), BAD_METADATA.

    Raises:
        ConfigError: there is no sample in the folder, or a folder in it is a link.
        IntegrityError: a metadata file is damaged.
    """
    found = [file for file in files.list() if not is_ignored(file.name, params.ignore)]
    rows = metadata.read(files, [file.name for file in found] if is_captioned else [])
    samples = _samples(found, params, rows)
    others = litter(file.name for sample in samples for file in sample.left_over)
    items = sorted([*(sample for sample in samples if sample.counts), *_without_image(rows, samples)], key=_name)
    if not items:
        kinds = _kinds(others) or "no file to read"
        fix = (
            workspace.left_behind(files.root)
            or "put images there, called NAME.jpg and the like, or name another folder"
        )
        raise ConfigError(f"prepare.corpus.directory: {files.root}", kinds, "a folder of images", fix)
    make = partial(_items, params=params, size_px=size_px, files=files, is_captioned=is_captioned)
    found_units = [Unit(_name(part[0]), _sha256(part, files), partial(make, part)) for part in slices(items, _name)]
    return [*found_units, *_without_sample(others, files)]


def _without_sample(others: Litter, files: Files) -> list[Unit]:
    """A unit of its own: a cache that is added changes no other."""
    if not others.counts:
        return []
    num_files = sum(others.counts.values())
    print(f"note: {count(num_files, 'file')} in {files.root} without a sample: {_kinds(others)}", file=sys.stderr)
    sha256 = hashlib.sha256(json.dumps(others.counts).encode()).hexdigest()
    return [Unit("files without a sample", sha256, partial(list, [others]))]


def _items(
    samples: Sequence[_Sample | Rejection], params: FolderParams, size_px: int, files: Files, is_captioned: bool
) -> Iterator[Pair | Rejection]:
    for sample in samples:
        yield sample if isinstance(sample, Rejection) else _item(sample, params, size_px, files, is_captioned)


def _item(sample: _Sample, params: FolderParams, size_px: int, files: Files, is_captioned: bool) -> Pair | Rejection:
    first = sample.files[0]
    key, source = key_of(sample.name), _source(first.name)
    try:
        image = _image(sample)
        texts = _captions(image, sample, params, files) if is_captioned else [""]
    except Rejected as error:
        return Rejection(key, error.reason, in_utf8(error.detail), source)
    return Pair(
        key=key,
        image=partial(pixels.read, files, image.name, 0, image.size, params.pixels, size_px),
        captions=texts,
        claims=[None] * len(texts),
        scene=None,
        split=ByContent(params.val_fraction, params.seed),
        source=source,
        group=sample.name.partition("/")[0] if "/" in sample.name else "",
    )


def _image(sample: _Sample) -> File:
    if len(sample.images) > 1:
        names = [file.name for file in sample.images]
        forms = {unicodedata.normalize("NFC", name) for name in names}
        differ = "" if len(forms) == len(names) else ", which differ in their Unicode form (NFC or NFD)"
        raise Rejected("TWO_IMAGES", f"{', '.join(names)}{differ}")
    if not sample.images:
        texts = ", ".join(file.name for file in sample.files)
        if sample.others:
            raise Rejected("UNKNOWN_FILE", f"{sample.others[0].name} beside {texts} has no suffix of an image")
        near = f", but {sample.near}, which differs in upper or lower case" if sample.near else ""
        raise Rejected("MISSING_IMAGE", f"no image beside {texts}{near}")
    return sample.images[0]


def _captions(image: File, sample: _Sample, params: FolderParams, files: Files) -> list[str]:
    def read(file: File) -> bytes:
        if file.size > params.pixels.max_bytes:
            raise Rejected("TOO_MANY_BYTES", f"{file.name}: {file.size} bytes")
        return files.read(file.name)

    @cache
    def fields() -> dict[str, Any]:
        beside = dict(sample.texts).get(_JSON)
        return (sample.row or {}) | (captions.fields_of(read(beside), beside.name) if beside else {})

    texts = {suffix: partial(read, file) for suffix, file in sample.texts if suffix != _JSON}
    try:
        return captions.take(texts, fields, params.captions)
    except Rejected as error:
        raise Rejected(error.reason, f"{image.name}: {error.detail}") from None


# Which files are a sample


def _samples(found: Sequence[File], params: FolderParams, rows: metadata.Metadata) -> list[_Sample]:
    """Every file, with those of the same name."""
    plain = {file.name: unicodedata.normalize("NFC", file.name) for file in found}
    images = {name for name in plain.values() if _suffix(name) in _IMAGES or name in rows.rows}
    named = [source for source in params.captions.sources if source.startswith(".")]
    # The longest first: a text ".en.txt" is not the ".txt" of a sample "NAME.en".
    suffixes = sorted({*named, *_TEXTS, _JSON}, key=lambda suffix: (-len(suffix), suffix))
    groups: dict[str, list[tuple[str, File]]] = {}
    for file in found:
        stem, suffix = _split(plain[file.name], images, suffixes)
        groups.setdefault(stem, []).append((suffix, file))
    samples = [_sample(stem, files, plain, images, suffixes, rows) for stem, files in groups.items()]
    if not any(sample.counts and not sample.images for sample in samples):
        return samples
    near = {sample.name.casefold(): sample.images[0].name for sample in samples if sample.images}
    return [
        sample if sample.images else replace(sample, near=near.get(sample.name.casefold(), "")) for sample in samples
    ]


def _sample(
    name: str,
    files: list[tuple[str, File]],
    plain: Mapping[str, str],
    images: Set[str],
    suffixes: Sequence[str],
    rows: metadata.Metadata,
) -> _Sample:
    shown = tuple(file for _, file in files if plain[file.name] in images)
    texts = {suffix: file for suffix, file in reversed(files) if file not in shown and suffix in suffixes}
    taken = {*shown, *texts.values()}
    others = tuple(file for _, file in files if file not in taken)
    row = next((rows.rows[path] for file in shown if (path := plain[file.name]) in rows.rows), None)
    return _Sample(name, shown, tuple(texts.items()), others, row)


def _split(name: str, images: Set[str], suffixes: Sequence[str]) -> tuple[str, str]:
    """The name of a file's sample, and its suffix in lower case."""
    if name not in images:
        for suffix in suffixes:
            stem = name[: -len(suffix)]
            if name.lower().endswith(suffix) and os.path.basename(stem):
                return (os.path.splitext(stem)[0] if stem in images else stem), suffix
    return os.path.splitext(name)[0], _suffix(name)


def _without_image(rows: metadata.Metadata, samples: Iterable[_Sample]) -> list[Rejection]:
    there = {unicodedata.normalize("NFC", file.name) for sample in samples for file in sample.images}
    missing = [
        Rejection(key_of(os.path.splitext(path)[0]), "MISSING_IMAGE", in_utf8(f"{place} names {path}"), _source(path))
        for path, place in rows.places.items()
        if path not in there
    ]
    return [*missing, *rows.rejections]


def _kinds(others: Litter) -> str:
    return ", ".join(f"{number} {suffix}" for suffix, number in others.counts.items())


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


# Units of work


def _sha256(samples: Sequence[_Sample | Rejection], files: Files) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        if isinstance(sample, Rejection):
            digest.update(f"{sample}\n".encode("utf-8", "surrogateescape"))
            continue
        for file in sample.files:
            digest.update(f"{file.name}\0{_content(file, files)}\n".encode("utf-8", "surrogateescape"))
        # Other files are only named where there is no image.
        others = [] if sample.images else [file.name for file in sample.others]
        digest.update(f"{others} {sample.row} {sample.near}\n".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _content(file: File, files: Files) -> str:
    try:
        return files.sha256(file.name)
    except Rejected as error:
        return str(error)


def _name(item: _Sample | Rejection) -> str:
    return item.name if isinstance(item, _Sample) else item.key


def _source(name: str) -> dict[str, Any]:
    return {"corpus": "folder", "file": in_utf8(name)}
