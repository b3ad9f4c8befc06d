"""The path of the data: images per second and core of `prepare` beside plain Pillow, what encodings of shards cost, and
how long a training waits for its batches.

The corpus is made here: JPEGs of 512 pixels a side at quality 90, with the spectrum of photos and a few hard edges.
`prepare` here is all that happens to an image: reading, decoding, cleaning, resizing, encoding, writing into a tar.
Plain Pillow opens, converts, crops, resizes and saves a PNG into a folder, without any check. CPU time of one process;
rounds alternate, so that all see the same machine; medians. The waits are those that the stage's own loop counts, in a
short training of the default's UNet on latents and embeddings as large as its own.
"""

import argparse
import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from benchmarks import measuring, training
from benchmarks.measuring import Found, Row
from ldm.core import images
from ldm.core.shards import Writer
from ldm.corpora import pixels
from ldm.corpora.files import Files
from ldm.corpora.pixels_params import PixelParams, SquareParams

SOURCE_PX = 512
PARAMS = PixelParams(
    formats=["jpeg", "png", "webp"],
    min_side_px=64,
    max_pixels=50_000_000,
    max_bytes=20_000_000,
    max_aspect_ratio=2.5,
    background="#ffffff",
    deep_greyscale="reject",
    resampling="lanczos",
    framing=SquareParams(kind="square", crop="centre"),
)


def picture(seed: int) -> UInt8[np.ndarray, "h w 3"]:
    """Noise with a photo's spectrum (amplitude 1 / frequency^1.6) and correlated channels, under rectangles."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(SOURCE_PX)[:, None], np.fft.fftfreq(SOURCE_PX))
    frequency[0, 0] = 1
    waves = np.fft.fft2(rng.standard_normal((3, SOURCE_PX, SOURCE_PX))) / frequency**1.6
    planes = np.fft.ifft2(waves).real
    planes = (planes - planes.mean((1, 2), keepdims=True)) / planes.std((1, 2), keepdims=True)
    colours = np.array([[0.8, 0.7, 0.6], [0.3, 0.5, 0.6], [0.2, 0.2, 0.4]])
    array = 128 + 45 * np.einsum("chw,cd->hwd", planes, colours)
    for x, y, width, height in rng.integers(0, SOURCE_PX, (12, 4)):
        array[y : y + height // 3, x : x + width // 3] += rng.normal(0, 40, 3)
    return array.clip(0, 255).astype(np.uint8)


def saved(image: UInt8[np.ndarray, "h w 3"], kind: str, **options: object) -> bytes:
    """An image in a format of Pillow."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def prepare(folder: Path, names: list[str], size_px: int, work: Path) -> int:
    """Shards of all images; returns their bytes."""
    with Writer(work / "shards", 10_000) as writer:
        for i, name in enumerate(names):
            made = pixels.read(Files(folder), name, 0, (folder / name).stat().st_size, PARAMS, size_px)
            writer.write(f"{i:06d}", {"json": b"{}", "webp": images.encode(made.pixels)})
    return sum(path.stat().st_size for path in (work / "shards").glob("*.tar"))


def plain(folder: Path, names: list[str], size_px: int, work: Path) -> int:
    """The same pixels as PNGs in a folder, by Pillow alone; returns their bytes."""
    target = work / "pngs"
    target.mkdir(exist_ok=True)
    for name in names:
        with Image.open(folder / name) as image:
            image.convert("RGB").resize((size_px, size_px), Image.Resampling.LANCZOS).save(target / f"{name}.png")
    return sum(path.stat().st_size for path in target.iterdir())


ENCODINGS: dict[str, Callable[[UInt8[np.ndarray, "h w 3"]], bytes]] = {
    "png (Pillow's default)": images.encode_png,
    "png level 1": partial(saved, kind="PNG", compress_level=1),
    "webp lossless (ours)": images.encode,
    "webp lossless method 1": partial(saved, kind="WEBP", lossless=True, quality=0, method=1),
    "jpeg q95 4:4:4 (lossy)": partial(saved, kind="JPEG", quality=95, subsampling=0),
}


def encodings(encoded: list[UInt8[np.ndarray, "h w 3"]], num_rounds: int) -> list[Row]:
    """Time and size of every encoding."""
    data = {name: [encode(image) for image in encoded] for name, encode in ENCODINGS.items()}
    sides = {name: partial(_each, encode, encoded) for name, encode in ENCODINGS.items()}
    readers = {name: partial(_each, _decode, every) for name, every in data.items()}
    writing, reading = measuring.turns(sides, num_rounds), measuring.turns(readers, num_rounds)
    rows: list[Row] = []
    for name in ENCODINGS:
        out, back = (1000 / len(encoded) * measuring.spread(times[name])[0] for times in (writing, reading))
        size = sum(map(len, data[name])) / len(encoded) / 1024
        rows.append({"encoding": name, "ms out": out, "ms in": back, "KiB": size})
    return rows


def _each(function: Callable[[Any], object], items: list[Any]) -> None:
    for item in items:
        function(item)


def _decode(data: bytes) -> object:
    return np.asarray(Image.open(io.BytesIO(data)))


def measure(options: argparse.Namespace) -> Found:
    """Rates, sizes, encodings and waits. Of the ratios, those of `prepare` are above 1 where ours is faster or smaller,
    and `data_wait` is the share of a training that waits for its data."""
    count, side_px = (3, 64) if options.small else (options.images, options.size)
    with tempfile.TemporaryDirectory() as directory:
        folder, work = Path(directory, "source"), Path(directory)
        folder.mkdir()
        names = [f"{i:06d}.jpg" for i in range(count)]
        for i, name in enumerate(names):
            (folder / name).write_bytes(saved(picture(i), "JPEG", quality=90))
        calls = {
            "prepare": partial(prepare, folder, names, side_px, work),
            "plain Pillow": partial(plain, folder, names, side_px, work),
        }
        num_bytes = {name: call() for name, call in calls.items()}
        found = measuring.turns(calls, options.rounds)
        few = [pixels.clean((folder / name).read_bytes(), PARAMS, side_px).pixels for name in names[:20]]
        training.write_inputs(work / "inputs", num_samples=1000)
        num_steps, num_images = (4, 8) if options.small else (60, None)
        threads: int = options.threads
        speeds = training.run(work / "inputs", num_steps, num_processes=1, num_threads=threads, num_images=num_images)
    rates: list[Row] = [
        {"by": name, "images/s/core": count / measuring.spread(times)[0], "KiB/image": num_bytes[name] / count / 1024}
        for name, times in found.items()
    ]
    waits: list[Row] = [{"images/s": speeds.samples_per_second, "waiting for data, %": 100 * speeds.data_wait}]
    tables = {
        f"JPEGs of {SOURCE_PX} px to {side_px} px": rates,
        "Encodings": encodings(few, options.rounds),
        "A training of the UNet": waits,
    }
    ratios = {
        "prepare_bytes": num_bytes["plain Pillow"] / num_bytes["prepare"],
        "prepare": measuring.quotient(found["plain Pillow"], found["prepare"]),
        "data_wait": speeds.data_wait,
    }
    return Found(tables, ratios)


def add(parser: argparse.ArgumentParser) -> None:
    """Options beside those of all benchmarks."""
    parser.add_argument("--images", type=int, default=100, help="pictures of the corpus")
    parser.add_argument("--size", type=int, default=256, help="pixels a side of the prepared images")


if __name__ == "__main__":
    measuring.main("data", __doc__, measure, rounds=(5, 1), add=add)
