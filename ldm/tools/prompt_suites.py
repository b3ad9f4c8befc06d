"""Prompts of published benchmarks as their owners share them, and images in the folders that their programs score."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from ldm.core import images
from ldm.core.errors import ConfigError
from ldm.sampling.origin import Origin
from ldm.sampling.prompts import texts_of
from ldm.tools import png_folder

SuiteName = Literal["geneval", "dpg"]
_FETCH = "name what the benchmark's repository has"
_PLACE = {"batch_size", "position"}


class Suite(ABC):
    """The prompts of a benchmark, each drawn `num_images` times."""

    def __init__(self, prompts: Sequence[str], num_images: int) -> None:
        self.prompts = texts_of(prompts)
        self.num_images = num_images

    @abstractmethod
    def images(self, number: int) -> dict[int, Path]:
        """Files of a prompt within the folder of the images, in the order in which they are written, by the number of
        the image whose origin each carries."""

    @abstractmethod
    def _write(self, directory: Path, number: int, pngs: Sequence[bytes]) -> None: ...

    def last_file(self, number: int) -> Path:
        """The file of a prompt that is written last, within the folder of the images."""
        return list(self.images(number).values())[-1]

    def num_done(self, directory: Path) -> int:
        """How many prompts, from the first on, have all their images in a folder."""
        numbers = range(len(self.prompts))
        return next((i for i in numbers if not (directory / self.last_file(i)).is_file()), len(self.prompts))

    def drawn(self, directory: Path) -> dict[int, Path]:
        """The images that say how a folder was drawn, by number: the last one of the prompts that are done, and all of
        the prompt at which it goes on, which are drawn again. ConfigError: later prompts have images, too, which would
        be replaced unseen."""
        first = self.num_done(directory)
        for path in (path for number in range(first + 1, len(self.prompts)) for path in self.images(number).values()):
            if (directory / path).exists():
                found, expected = "an image of a later prompt", f"none after {self.last_file(first)}, which is missing"
                raise ConfigError(str(directory / path), found, expected, "move it away, or name another folder")
        done = list(self.images(first - 1).items())[-1:] if first else []
        begun = self.images(first).items() if first < len(self.prompts) else ()
        return {number: directory / path for number, path in (*done, *begun) if (directory / path).exists()}

    def texts(self, first: int) -> list[str]:
        """The prompt of every image, from those of prompt `first` on."""
        return [prompt for prompt in self.prompts[first:] for _ in range(self.num_images)]

    def write(self, directory: Path, pngs: Iterable[bytes], first: int) -> Iterable[Path]:
        """Write the images of `texts(first)` as they come, prompt by prompt; yields the file of each that is last."""
        rest = iter(pngs)
        for number in range(first, len(self.prompts)):
            self._write(directory, number, list(islice(rest, self.num_images)))
            yield directory / self.last_file(number)


class GenEval(Suite):
    """GenEval (Ghosh et al. 2023): `evaluation_metadata.jsonl` in; per prompt a numbered folder with its line as
    `metadata.jsonl` and its images in `samples` out."""

    def __init__(self, file: Path, num_images: int) -> None:
        self._lines = [line for line in _text(file).splitlines() if line.strip()]
        super().__init__([_prompt(file, i, line) for i, line in enumerate(self._lines, 1)], num_images)

    def images(self, number: int) -> dict[int, Path]:
        """A file per image."""
        folder = Path(f"{number:05}") / "samples"
        return {number * self.num_images + i: folder / f"{i:04}.png" for i in range(self.num_images)}

    def _write(self, directory: Path, number: int, pngs: Sequence[bytes]) -> None:
        (directory / self.last_file(number)).parent.mkdir(parents=True, exist_ok=True)
        metadata = directory / f"{number:05}" / "metadata.jsonl"
        metadata.write_text(self._lines[number] + "\n", encoding="utf-8")
        for path, png in zip(self.images(number).values(), pngs, strict=True):
            png_folder.save(directory / path, png, overwrite=True)


class Dpg(Suite):
    """DPG-Bench (Hu et al. 2024): a folder with a text file per prompt in; a PNG of the same name out, one image or a
    square of 2 x 2, which `PIC_NUM` of its program says. A square carries the origin of its last image."""

    def __init__(self, folder: Path, num_images: int) -> None:
        files = sorted(folder.glob("*.txt"))
        if not files:
            raise ConfigError(str(folder), "no .txt file", "a folder with a text file per prompt", _FETCH)
        if num_images not in (1, 4):
            raise ConfigError("--num-images", str(num_images), "1 or 4, as DPG-Bench reads them", "write one of these")
        self._names = [file.stem for file in files]
        super().__init__([" ".join(_text(file).split()) for file in files], num_images)

    def images(self, number: int) -> dict[int, Path]:
        """Its only file."""
        return {(number + 1) * self.num_images - 1: Path(f"{self._names[number]}.png")}

    def _write(self, directory: Path, number: int, pngs: Sequence[bytes]) -> None:
        png = pngs[0]
        if self.num_images == 4:
            cells = [images.decode_png(one) for one in pngs]
            square = np.block([[[cells[0]], [cells[1]]], [[cells[2]], [cells[3]]]])
            png = Origin.read(pngs[-1], self._names[number]).png(square)
        png_folder.save(directory / self.last_file(number), png, overwrite=True)


def read(name: SuiteName, source: Path, num_images: int) -> Suite:
    """The suite of a benchmark. ConfigError: there are no prompts as the benchmark has them, or it scores no such
    number of images."""
    return GenEval(source, num_images) if name == "geneval" else Dpg(source, num_images)


def origin(path: Path) -> Origin:
    """How an image was drawn. IntegrityError: it does not say."""
    return Origin.read(path.read_bytes(), str(path))


def check(path: Path, expected: Origin) -> None:
    """Check that an image is the one expected, but for its place in a batch. ConfigError: it was drawn otherwise.
    IntegrityError: it does not say how."""
    ours, theirs = ({**each.model_dump(exclude={"settings"}), **each.settings} for each in (expected, origin(path)))
    for key in sorted((ours.keys() | theirs.keys()) - _PLACE):
        if ours.get(key) != theirs.get(key):
            fix = "draw with what the folder was drawn with, or name another folder"
            raise ConfigError(str(path), f"an image of {key} {theirs.get(key)}", f"{ours.get(key)}", fix)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(str(file), f"no text that can be read ({reason})", "a text file in UTF-8", _FETCH) from None


def _prompt(file: Path, number: int, line: str) -> str:
    try:
        entry: Any = json.loads(line)
    except ValueError:
        entry = None
    prompt: object = cast(dict[str, object], entry).get("prompt") if isinstance(entry, dict) else None
    if not isinstance(prompt, str):
        expected = 'a JSON object with a "prompt", as in evaluation_metadata.jsonl'
        raise ConfigError(f"{file}:{number}", "another line", expected, _FETCH)
    return prompt
