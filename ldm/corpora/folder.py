"""A user's folder: images, each beside a text file of the same name with one caption per line.

Not read: hidden files and folders, files whose name begins with README, and DVC's own files (NAME.dvc).
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ldm.core import workspace
from ldm.core.errors import ConfigError
from ldm.corpora import cleaning
from ldm.corpora.files import Files
from ldm.corpora.pairs import ByContent, Pair, Rejected, Rejection, Unit, key_of
from ldm.corpora.params import FolderParams
from ldm.corpora.slices import slices


def units(params: FolderParams, size_px: int, files: Files, is_captioned: bool = True) -> list[Unit]:
    """Every image and every stray file, ordered by path, in slices. Texts are not read if the corpus is not captioned.

    Reasons of rejections, besides those of `ldm.corpora.cleaning`: MISSING_CAPTION, MISSING_IMAGE (a text without an
    image), UNKNOWN_FILE (neither image nor text).

    Raises:
        ConfigError: there is no file in the folder.
    """
    names = _names(files.root)
    if not names:
        fix = workspace.left_behind(files.root) or "put NAME.jpg and NAME.txt there, or name another folder"
        where, expected = f"prepare.corpus.directory: {files.root}", "a folder of images with captions"
        raise ConfigError(where, "no file to read", expected, fix)
    return [
        Unit(part[0], files.sha256_of(part), partial(_items, part, params, size_px, files, is_captioned))
        for part in slices(names, lambda name: os.path.splitext(name)[0])
    ]


def _items(
    names: list[str], params: FolderParams, size_px: int, files: Files, is_captioned: bool
) -> Iterator[Pair | Rejection]:
    stems_of_images = {os.path.splitext(name)[0] for name in names if _suffix(name) in cleaning.IMAGE_SUFFIXES}
    for name in names:
        stem, suffix = os.path.splitext(name)[0], _suffix(name)
        if suffix in cleaning.IMAGE_SUFFIXES:
            yield _pair(files.root, name, params, size_px, is_captioned)
        elif suffix != "txt":
            yield Rejection(key_of(stem), "UNKNOWN_FILE", name, _source(name))
        elif stem not in stems_of_images:
            yield Rejection(key_of(stem), "MISSING_IMAGE", name, _source(name))


def _pair(root: Path, name: str, params: FolderParams, size_px: int, is_captioned: bool) -> Pair | Rejection:
    key, path = key_of(os.path.splitext(name)[0]), root / name
    try:
        captions = _captions(path.with_suffix(".txt"), params) if is_captioned else [""]
        size = os.stat(path).st_size
    except Rejected as error:
        return Rejection(key, error.reason, error.detail, _source(name))
    except OSError as error:
        return Rejection(key, "UNREADABLE", str(error.strerror), _source(name))
    return Pair(
        key=key,
        image=partial(cleaning.read_and_clean, str(path), 0, size, params.cleaning, size_px),
        captions=captions,
        claims=[None] * len(captions),
        scene=None,
        split=ByContent(params.val_fraction, params.seed),
        source=_source(name),
        group=name.partition(os.sep)[0] if os.sep in name else "",
    )


def _captions(path: Path, params: FolderParams) -> list[str]:
    if not path.is_file():
        raise Rejected("MISSING_CAPTION", f"no {path.name}")
    text = cleaning.decode_text(cleaning.read(str(path), 0, path.stat().st_size, params.cleaning))
    # A blank line is layout; a text of blank lines only is an empty caption.
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    return [cleaning.clean_caption(line, params.cleaning) for line in lines]


def _names(root: Path) -> list[str]:
    """Paths of all files below the folder, relative to it, in an order that does not depend on the file system."""
    paths: list[str] = []
    for folder, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        # A link to a folder may lead in a circle. It is not followed but listed, and so rejected as UNKNOWN_FILE.
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        kept = [name for name in files + links if not name.startswith((".", "README")) and not name.endswith(".dvc")]
        paths += [os.path.relpath(os.path.join(folder, name), root) for name in kept]
    return sorted(paths)


def _refuse(error: OSError) -> None:
    raise ConfigError(str(error.filename), str(error.strerror), "a folder that can be listed", "change its permissions")


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower().removeprefix(".")


def _source(name: str) -> dict[str, Any]:
    return {"corpus": "folder", "file": name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")}
