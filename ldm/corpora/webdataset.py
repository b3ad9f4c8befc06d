"""A user's tars in the layout that img2dataset writes: KEY.jpg, KEY.txt and KEY.json side by side.

Captions are where the params say, such as KEY.txt, or "caption" in KEY.json. Read are NAME.tar, and NAME.tar.gz or
NAME.tgz, in any case. Other files, hidden and ignored ones, and other parts of a sample are not read. Nothing is
extracted: members are read by offset, and their names become keys, never paths.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

from ldm.core import workspace
from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.progress import count, each
from ldm.corpora import captions, pixels, tar_samples, unpacked
from ldm.corpora.files import File, Files, in_utf8, is_ignored
from ldm.corpora.pairs import ByContent, Item, Pair, Picture, Rejected, Rejection, Unit, key_of
from ldm.corpora.pixels_params import PixelParams
from ldm.corpora.tar_samples import Sample
from ldm.corpora.tars import BLOCK, Contents, Member, Scan, printable
from ldm.corpora.unpacked import Plain
from ldm.corpora.user_params import WebdatasetParams

_TAR = re.compile(r"(.+?)\.(tar(\.(gz|bz2|xz|zst|lz4|lzma|z))?|tgz|tbz2?|txz|tzst)(?=/|$)", re.IGNORECASE)
_FIX = (
    "fetch them again or move them out of the folder; or let prepare.corpus.damaged_tars be `salvage`, to take the "
    "samples that are whole, or `skip`; `ldm salvage TAR` lists what can be read"
)
_DOUBTFUL = "are read to their end, but may have lost samples"


def units(params: WebdatasetParams, size_px: int, files: Files, is_captioned: bool = True) -> list[Unit]:
    """A unit for each tar, by name; all of them are looked over first. Captions are not read if the corpus is not
    captioned.

    Reasons of rejections, besides those of `ldm.corpora.pixels` and `captions`: MISSING_IMAGE, TWO_IMAGES, BAD_JSON;
    DUPLICATE_MEMBER (the first one counts), BAD_TYPE (a link or device), UNSAFE_PATH, DOTTED_KEY; and
    DAMAGED_MEMBER, DAMAGED_TAR.

    Raises:
        ConfigError: there is no tar, or there are two of one name.
        IntegrityError: tars are damaged, and the params refuse those.
    """
    tars = _tars(files, params.ignore)
    if not tars:
        fix = workspace.left_behind(files.root) or "put img2dataset's tars there, or name another folder"
        raise ConfigError(_where(files), "no *.tar in it", "a folder of tars", fix)
    _look_over(params, files, tars)
    return [
        Unit(
            tar.file.name, files.sha256_of([tar.file.name]), partial(_items, params, size_px, files, tar, is_captioned)
        )
        for tar in tars
    ]


class _Tar(NamedTuple):
    """A tar of the corpus."""

    stem: str
    """Its path without suffix, and group of its samples."""
    file: File

    def look(self, files: Files, is_deep: bool) -> tuple[Contents, Scan]:
        return unpacked.look(files, self.file.name, self.file.size, is_deep)

    def look_over(self, files: Files) -> Scan:
        """What costs little: all headers, but only the end of a remote tar, unless that shows that it is cut."""
        if files.is_remote and (self.file.name.lower().endswith("gz") or self._has_end(files)):
            return Scan()
        return self.look(files, is_deep=False)[1]

    def _has_end(self, files: Files) -> bool:
        try:
            end = files.read(self.file.name, max(0, self.file.size - 2 * BLOCK), 2 * BLOCK)
        except Rejected:
            return False
        return len(end) == 2 * BLOCK and not end.strip(b"\0")


def _where(files: Files) -> str:
    return f"prepare.corpus.directory: {files.root}"


def _tars(files: Files, ignore: Sequence[str]) -> list[_Tar]:
    """All tars that are not left out. A folder with the name of a tar is listed as an empty one, to be named."""
    found: dict[str, _Tar] = {}
    for file in files.list():
        match = _TAR.match(file.name)
        if match is None or is_ignored(file.name, ignore):
            continue
        tar = _Tar(match[1], file if match.end() == len(file.name) else File(match[0], 0))
        other = found.setdefault(tar.stem, tar)
        if other.file.name != tar.file.name:
            expected, fix = "one tar of a name, since samples are named after it", "rename or remove one of them"
            raise ConfigError(_where(files), f"{other.file.name} and {tar.file.name}", expected, fix)
    # The order of all samples by name: a/1 stands behind a-b/1, as "/" does behind "-".
    return sorted(found.values(), key=lambda tar: f"{tar.stem}/")


def _look_over(params: WebdatasetParams, files: Files, tars: Sequence[_Tar]) -> None:
    """Find out which tars are damaged before anything is decoded."""
    damaged: list[str] = []
    doubtful: list[str] = []
    for tar in each(tars, "prepare: tars looked over", "tar", len(tars)):
        found = tar.look_over(files)
        if found.damages:
            damaged.append(f"{printable(tar.file.name)} ({_first(found)})")
        elif found.doubts:
            doubtful.append(f"{printable(tar.file.name)} ({', '.join(found.doubts)})")
    if doubtful:
        print(f"note: {len(doubtful)} of {count(len(tars), 'tar')} {_DOUBTFUL}: {', '.join(doubtful)}", file=sys.stderr)
    if damaged and params.damaged_tars == "refuse":
        found = f"{len(damaged)} of {count(len(tars), 'tar')} damaged: {', '.join(damaged)}"
        raise IntegrityError(str(files.root), found, "whole tars", _FIX)


def _first(found: Scan) -> str:
    first, more = found.damages[0], len(found.damages) - 1
    return f"byte {first.offset}: {first.found}" + (f", and {more} more places" if more else "")


def _items(params: WebdatasetParams, size_px: int, files: Files, tar: _Tar, is_captioned: bool) -> Iterator[Item]:
    """Every sample of a tar by key, after its damaged places of which no name is left, and what is no sample."""
    contents, found = tar.look(files, is_deep=True)
    reader = _Reader(params, size_px, files, tar, contents, is_captioned)
    for damage in found.damages:
        if not damage.name:
            yield reader.rejection(
                f"@{damage.offset}", Rejected("DAMAGED_TAR", f"byte {damage.offset}: {damage.found}")
            )
    is_left_out = bool(found.damages) and params.damaged_tars != "salvage"
    samples, others = tar_samples.samples(found, params)
    if others.counts:
        yield others
    for key, sample in samples.items():
        if is_left_out:
            yield reader.rejection(key, Rejected("DAMAGED_TAR", f"the whole tar is left out; {_first(found)}"))
        else:
            yield from reader.items(key, sample)


@dataclass(frozen=True)
class _Reader:
    """Makes pairs of the samples of one tar."""

    params: WebdatasetParams
    size_px: int
    files: Files
    tar: _Tar
    contents: Contents
    is_captioned: bool

    def items(self, key: str, sample: Sample) -> Iterator[Pair | Rejection]:
        """The pair, and a rejection of what stands under its key besides; or one rejection of both."""
        try:
            if sample.is_damaged:
                raise sample.problems[-1]
            yield self._pair(key, sample)
        except Rejected as error:
            is_missing = error.reason in ("MISSING_IMAGE", "MISSING_CAPTION")
            yield self.rejection(key, sample.problems[0] if is_missing and sample.problems else error)
        else:
            if sample.problems:
                details = "; ".join(problem.detail for problem in sample.problems)
                yield self.rejection(key, Rejected(sample.problems[0].reason, details))

    def rejection(self, key: str, error: Rejected) -> Rejection:
        """Of the sample with a key."""
        return Rejection(self._key(key), error.reason, printable(error.detail), self._source(key))

    def _pair(self, key: str, sample: Sample) -> Pair:
        fields = cache(partial(self._fields, sample))
        texts = self._captions(sample, fields) if self.is_captioned else [""]
        image = self._image(tar_samples.picture(sample, self.params))
        return Pair(
            key=self._key(key),
            image=image,
            captions=texts,
            claims=[None] * len(texts),
            scene=None,
            split=ByContent(self.params.val_fraction, self.params.seed),
            source=self._source(key) | _url(fields),
            group=self.tar.stem,
        )

    def _fields(self, sample: Sample) -> Mapping[str, Any]:
        member = sample.parts.get("json")
        return {} if member is None else captions.fields_of(self._read(member), member.name)

    def _captions(self, sample: Sample, fields: Callable[[], Mapping[str, Any]]) -> list[str]:
        texts = {f".{part}": partial(self._read, member) for part, member in sample.parts.items()}
        return captions.take(texts, fields, self.params.captions)

    def _image(self, member: Member) -> Callable[[], Picture]:
        if isinstance(self.contents, Plain):
            where = (self.files, self.tar.file.name, member.offset, member.size)
            return partial(_decoded, *where, self.params.pixels, self.size_px)
        # Other processes would have to unpack everything before it.
        return partial(pixels.clean, self._read(member), self.params.pixels, self.size_px)

    def _read(self, member: Member) -> bytes:
        _check(member.size, self.params.pixels)
        return self.contents.read(member.offset, member.size)

    def _key(self, key: str) -> str:
        # A tar may stand beside a folder of tars with its name: the second "/" tells a.tar, b/1 from a/b.tar, 1.
        return key_of(f"{self.tar.stem}/{key}" if "/" not in key else f"{self.tar.stem}//{key}")

    def _source(self, key: str) -> dict[str, Any]:
        return {"corpus": "webdataset", "tar": printable(self.tar.file.name), "key": printable(key)}


def _url(fields: Callable[[], Mapping[str, Any]]) -> dict[str, str]:
    """Where an image is from, if KEY.json says so; one that is of something else, such as boxes, costs no sample."""
    with suppress(Rejected):
        url = fields().get("url")
        return {"url": in_utf8(url)} if isinstance(url, str) else {}
    return {}


def _decoded(files: Files, name: str, offset: int, size: int, params: PixelParams, size_px: int) -> Picture:
    _check(size, params)
    return pixels.clean(files.read(name, offset, size), params, size_px)


def _check(size: int, params: PixelParams) -> None:
    if size > params.max_bytes:
        raise Rejected("TOO_MANY_BYTES", f"{size} bytes")
