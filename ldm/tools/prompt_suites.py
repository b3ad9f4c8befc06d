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
    def last_file(self, number: int) -> Path:
        """The file of a prompt that is written last, within the folder of the images."""

    @abstractmethod
    def _write(self, directory: Path, number: int, pngs: Sequence[bytes]) -> None: ...

    def num_done(self, directory: Path) -> int:
        """How many prompts, from the first on, have all their images in a folder."""
        numbers = range(len(self.prompts))
        return next((i for i in numbers if not (directory / self.last_file(i)).is_file()), len(self.prompts))

    def origin(self, directory: Path, number: int) -> Origin:
        """How the last image of a prompt was drawn. IntegrityError: it does not say."""
        path = directory / self.last_file(number)
        return Origin.read(path.read_bytes(), str(path))

    def check_done(self, directory: Path, expected: Origin) -> None:
        """Check that the last image that is there is the one expected, but for its place in a batch. ConfigError: it
        was drawn otherwise. IntegrityError: it does not say how."""
        number = expected.prompt_number // self.num_images
        path, found = directory / self.last_file(number), self.origin(directory, number)
        ours, theirs = ({**each.model_dump(exclude={"settings"}), **each.settings} for each in (expected, found))
        for key in sorted((ours.keys() | theirs.keys()) - _PLACE):
            if ours.get(key) != theirs.get(key):
                fix = "draw with what the folder was drawn with, or name another folder"
                raise ConfigError(str(path), f"an image of {key} {theirs.get(key)}", f"{ours.get(key)}", fix)

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

    def last_file(self, number: int) -> Path:
        """Its last image."""
        return self._image(number, self.num_images - 1)

    def _image(self, number: int, image: int) -> Path:
        return Path(f"{number:05}") / "samples" / f"{image:04}.png"

    def _write(self, directory: Path, number: int, pngs: Sequence[bytes]) -> None:
        (directory / self._image(number, 0)).parent.mkdir(parents=True, exist_ok=True)
        metadata = directory / f"{number:05}" / "metadata.jsonl"
        metadata.write_text(self._lines[number] + "\n", encoding="utf-8")
        for i, png in enumerate(pngs):
            png_folder.save(directory / self._image(number, i), png, overwrite=True)


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

    def last_file(self, number: int) -> Path:
        """Its only file."""
        return Path(f"{self._names[number]}.png")

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
