"""Members of a tar -> samples, by webdataset's rule: the key ends at the first dot of the name, the rest is a part.

Not read are folders, hidden files such as the `._` twins that a Mac adds, names that the params ignore, and what
webdataset keeps for itself (`__NAME__`). A key with neither a picture nor a text is no sample.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Set
from dataclasses import dataclass, field

from ldm.corpora import pixels
from ldm.corpora.files import is_ignored, litter
from ldm.corpora.pairs import Litter, Rejected
from ldm.corpora.tars import Member, Scan
from ldm.corpora.user_params import WebdatasetParams

_OF_WEBDATASET = re.compile(r"__[^/]*__(/|$)")
_TEXTS = ("txt", "caption", "json")


@dataclass
class Sample:
    """What a tar holds under one key."""

    parts: dict[str, Member] = field(default_factory=dict[str, Member])
    """By suffix, in lower case and without the dot."""
    problems: list[Rejected] = field(default_factory=list[Rejected])
    """Members that are not taken as parts, and why."""
    is_damaged: bool = False
    """Whether one of its members is; then none of it is used."""


def samples(found: Scan, params: WebdatasetParams) -> tuple[dict[str, Sample], Litter]:
    """All samples by their keys, in the order of these; and the files that hold none."""
    taken: dict[str, Sample] = defaultdict(Sample)
    by_name: dict[str, Member] = {}
    for member in found.members:
        name = _plain(member.name)
        if member.kind != "folder" and not _is_left_out(name, params):
            key, part = _split(name, params)
            sample = taken[key]
            target = by_name.get(_plain(member.link)) if member.kind == "hard link" else member
            problem = _problem(name, part, member, target, sample)
            if problem is None and target is not None:
                sample.parts[part] = by_name[name] = target
            elif problem is not None:
                sample.problems.append(problem)
    for offset, what, name in found.damages:
        if name and not _is_left_out(_plain(name), params):
            sample = taken[_split(_plain(name), params)[0]]
            sample.is_damaged = True
            sample.problems.append(Rejected("DAMAGED_MEMBER", f"{name!r} at byte {offset}: {what}"))
    for key in list(taken) if params.image_part is None else ():
        _name_dots(key, taken)
    named = [source[1:] for source in params.captions.sources if source.startswith(".")]
    known = {*pixels.SUFFIXES, *_TEXTS, *named, params.image_part}
    no_samples = [key for key, sample in taken.items() if not _counts(sample, known)]
    others = litter(member.name for key in no_samples for member in taken.pop(key).parts.values())
    return dict(sorted(taken.items())), others


def _is_left_out(name: str, params: WebdatasetParams) -> bool:
    return is_ignored(name, params.ignore) or _OF_WEBDATASET.match(name) is not None


def _counts(sample: Sample, known: Set[str | None]) -> bool:
    """Whether it is a sample: it has a picture or a text, whose suffixes are known, or what may have been one."""
    return bool(sample.problems) or any({part, part.rpartition(".")[2]} & known for part in sample.parts)


def picture(sample: Sample, params: WebdatasetParams) -> Member:
    """The member that holds the picture of a sample. Rejected: MISSING_IMAGE, TWO_IMAGES."""
    suffixes = [params.image_part] if params.image_part is not None else pixels.SUFFIXES
    pictures = [suffix for suffix in suffixes if suffix in sample.parts]
    if not pictures:
        wanted = f"no part {params.image_part}; " if params.image_part is not None else ""
        raise Rejected("MISSING_IMAGE", f"{wanted}parts {', '.join(part or 'without suffix' for part in sample.parts)}")
    if len(pictures) > 1:
        raise Rejected("TWO_IMAGES", f"parts {', '.join(pictures)}; prepare.corpus.image_part says which one counts")
    return sample.parts[pictures[0]]


def _plain(name: str) -> str:
    """A path in composed characters (NFC), without "." and empty parts; absolute ones stay absolute."""
    parts = [part for part in unicodedata.normalize("NFC", name).split("/") if part not in ("", ".")]
    return "/" * name.startswith("/") + "/".join(parts)


def _split(name: str, params: WebdatasetParams) -> tuple[str, str]:
    """Key and part of a path; the part is empty if there is no dot. A text that is named after the whole file of a
    picture, such as KEY.jpg.txt, is the part txt of KEY, as it is in a folder."""
    folder, slash, file = name.rpartition("/")
    named, _, last = file.rpartition(".")
    stem, dot, suffix = named.rpartition(".")
    if dot and last.lower() in _TEXTS and suffix.lower() in pixels.SUFFIXES:
        file = f"{stem}.{last}"
    first, _, part = file.partition(".")
    if params.key_ends_at == "last_dot" and part:
        first, _, part = file.rpartition(".")
    return folder + slash + first, part.lower()


def _problem(name: str, part: str, member: Member, target: Member | None, sample: Sample) -> Rejected | None:
    """Why a member is no part of its sample."""
    if name.startswith("/") or ".." in name.split("/"):
        return Rejected("UNSAFE_PATH", f"member {name!r}")
    if target is None:
        return Rejected(
            "BAD_TYPE", f"member {name!r} is a hard link to {member.link!r}, which does not stand before it"
        )
    if target.kind != "file":
        return Rejected("BAD_TYPE", f"member {name!r} is a {target.kind}")
    if part in sample.parts:
        first = sample.parts[part].offset
        return Rejected(
            "DUPLICATE_MEMBER", f"member {name!r} again; the one whose contents begin at byte {first} counts"
        )
    return None


def _name_dots(key: str, taken: defaultdict[str, Sample]) -> None:
    """Take pictures whose keys have dots out of the sample of which webdataset's rule makes them parts.

    KEY.seg.png beside KEY.jpg is a part that is not read. But a picture KEY.05.jpg with a text KEY.05.txt, or without a
    picture KEY.jpg, was meant to be a sample.
    """
    parts = taken[key].parts
    pictures = [part for part in parts if part.rpartition(".")[2] in pixels.SUFFIXES]
    dotted = [part for part in pictures if "." in part]
    for part in dotted:
        middle = part.rpartition(".")[0]
        twins = [f"{middle}.{suffix}" for suffix in _TEXTS if f"{middle}.{suffix}" in parts]
        if twins or len(dotted) == len(pictures):
            detail = (
                f"{key}.{part}: a key ends at its first dot, so this is part {part} of {key}; prepare.corpus."
                f"key_ends_at: last_dot makes {key}.{middle} the key, image_part: {part} makes it the picture of {key}"
            )
            taken[f"{key}.{middle}"].problems.append(Rejected("DOTTED_KEY", detail))
            for name in [part, *twins]:
                del parts[name]
    if dotted and len(dotted) == len(pictures) and all("." in part for part in parts):
        del taken[key]
