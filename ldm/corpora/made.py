"""Finished samples: what the workers make of pairs, and how it is kept until the shards are written."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.core import images
from ldm.core.params import Size
from ldm.core.shards import Split
from ldm.corpora import likeness
from ldm.corpora.likeness import Likeness
from ldm.corpora.pairs import ByContent, Item, Litter, Pair, Picture, Rejected, Rejection, size_notes
from ldm.corpora.workers import Lost


@dataclass(frozen=True)
class Sample:
    """A pair whose image is drawn and encoded."""

    key: str
    split: Split
    group: str
    captions: list[str]
    claims: list[dict[str, Any] | None]
    scene: dict[str, Any] | None
    source: dict[str, Any]
    size_px: Size | None
    """Height and width of its image; None in a corpus of one size."""
    likeness: Likeness | None
    """None if its split does not depend on what it shows."""
    notes: list[str]
    """Its format and what was done to its pixels: the `notes` of `Picture`."""
    image: dict[str, bytes]
    """The encoded image, under the name of its part."""

    @property
    def image_parts(self) -> dict[str, bytes]:
        """What the image shards hold of it. Where it is from is not among them, so that the same pictures from a folder
        and from tars are the same bytes."""
        return {"json": to_json({"scene": self.scene}), **self.image}

    @property
    def caption_parts(self) -> dict[str, bytes]:
        """What the caption shards hold of it."""
        return {"json": to_json({"captions": self.captions, "claims": self.claims, "source": self.source})}


Made = Sample | Rejection | Litter


def make(item: Item, sizes_px: Sequence[Size]) -> Made:
    """Draw or clean the image of a pair, which has one of the sizes, and encode it."""
    if not isinstance(item, Pair):
        return item
    try:
        image = item.image() if callable(item.image) else item.image
    except Rejected as error:
        return Rejection(item.key, error.reason, error.detail, item.source)
    picture = image if isinstance(image, Picture) else Picture(image, size_notes(*image.shape[1::-1]))
    size_px = picture.pixels.shape[0], picture.pixels.shape[1]
    assert size_px in sizes_px and picture.pixels.shape[2:] == (3,), f"{item.key}: {picture.pixels.shape}"
    assert 0 < len(item.captions) == len(item.claims), f"{item.key}: {item.captions} {item.claims}"
    rule = item.split
    alike = likeness.of(picture.pixels) if isinstance(rule, ByContent) else None
    return Sample(
        key=item.key,
        split=likeness.split(alike, rule) if isinstance(rule, ByContent) and alike else rule,  # pyright: ignore[reportArgumentType]
        group=item.group,
        captions=item.captions,
        claims=item.claims,
        scene=item.scene,
        source=item.source,
        size_px=size_px if len(sizes_px) > 1 else None,
        likeness=alike,
        notes=list(picture.notes),
        image={"webp": images.encode(picture.pixels)},
    )


def lost(item: Item, loss: Lost) -> Made:
    """The rejection of a pair whose worker died or was too slow."""
    if isinstance(item, Litter):
        return item
    return Rejection(item.key, loss.reason, loss.detail, item.source)


def packed(items: Sequence[Made]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Items as a tensor, all encoded images one behind the other, and JSON for the rest."""
    data = b"".join(part for item in items if isinstance(item, Sample) for part in item.image.values())
    return {"images": torch.from_numpy(np.frombuffer(data, np.uint8).copy())}, {"items": [_record(i) for i in items]}


def unpacked(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Iterator[Made]:
    """The items again, one after the other: images are read when their turn comes."""
    data, start = tensors["images"].numpy(), 0
    for record in values["items"]:
        if "image" not in record:
            yield Rejection(**record) if "reason" in record else Litter(**record)
            continue
        image: dict[str, bytes] = {}
        for part, size in record["image"].items():
            image[part] = data[start : start + size].tobytes()
            start += size
        size_px = record["size_px"] and tuple(record["size_px"])
        alike = record["likeness"] and Likeness(**record["likeness"])
        yield Sample(**record | {"image": image, "size_px": size_px, "likeness": alike})


def _record(item: Made) -> dict[str, Any]:
    if not isinstance(item, Sample):
        return asdict(item)
    return asdict(item) | {"image": {part: len(data) for part, data in item.image.items()}}


def to_json(value: Any) -> bytes:
    """JSON of which equal values are equal bytes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
