"""`ldm salvage`: what can be read of a damaged tar."""

from collections.abc import Iterator
from pathlib import Path

from ldm.core.errors import ConfigError
from ldm.corpora import unpacked
from ldm.corpora.files import Files
from ldm.corpora.tars import printable


def lines(tar: str) -> Iterator[str]:
    """A line for each member and each damaged place, in the order of the bytes, and one that counts them.

    ConfigError: there is no such file.
    """
    path = Path(tar)
    if not path.is_file():
        raise ConfigError(tar, "no such file", "a tar", "write the path of a .tar, .tar.gz or .tgz")
    _, found = unpacked.look(Files(path.parent), path.name, path.stat().st_size, is_deep=True)
    told = [(member.offset, _of_member(*member)) for member in found.members]
    told += [(damage.offset, _of_damage(*damage)) for damage in found.damages]
    for offset, line in sorted(told):
        yield f"{offset:>12} {line}"
    num_bytes = sum(member.size for member in found.members)
    counts = f"{len(found.members)} members of {num_bytes} bytes are whole, {len(found.damages)} places damaged"
    yield "; ".join([counts, *found.doubts])


def _of_member(name: str, _: int, size: int, kind: str, link: str) -> str:
    what = "" if kind == "file" else f" ({kind}{f' to {printable(link)}' if link else ''})"
    return f"{size:>12} {printable(name)}{what}"


def _of_damage(_: int, found: str, name: str) -> str:
    return f"{'DAMAGED':>12} {f'{printable(name)}: ' if name else ''}{found}"
