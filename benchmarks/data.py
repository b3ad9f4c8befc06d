"""Images per second and core of `prepare` beside plain Pillow, and what encodings of shards cost.

The corpus is made here: JPEGs of 512 pixels a side at quality 90, with the spectrum of photos and a few hard edges.
`prepare` here is all that happens to an image: reading, decoding, cleaning, resizing, encoding, writing into a tar.
Plain Pillow opens, converts, crops, resizes and saves a PNG into a folder, without any check. CPU time of one process;
rounds alternate, so that all see the same machine; medians.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from jaxtyping import UInt8
from PIL import Image

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


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of a call."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of every function, all of them alternating."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(cpu_seconds(function))
    return {name: median(values) for name, values in seconds.items()}


def print_encodings(encoded: list[UInt8[np.ndarray, "h w 3"]], rounds: int) -> None:
    """Time and size of every encoding."""
    data = {name: [encode(image) for image in encoded] for name, encode in ENCODINGS.items()}
    writing = medians(
        {name: lambda encode=encode: [encode(image) for image in encoded] for name, encode in ENCODINGS.items()}, rounds
    )
    reading = medians(
        {name: lambda all=all: [np.asarray(Image.open(io.BytesIO(d))) for d in all] for name, all in data.items()},
        rounds,
    )
    for name in ENCODINGS:
        to_ms, size = 1000 / len(encoded), sum(map(len, data[name])) / len(encoded) / 1024
        print(f"{name:24s} {writing[name] * to_ms:7.2f} ms out {reading[name] * to_ms:7.2f} ms in {size:8.1f} KiB")


def main() -> None:
    """Print rates, sizes and encodings; the last lines are ratios: above 1, ours is faster or smaller."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100, help="pictures of the corpus")
    parser.add_argument("--rounds", type=int, default=5, help="times that each is measured")
    parser.add_argument("--size", type=int, default=256, help="pixels a side of the prepared images")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder, work = Path(directory, "source"), Path(directory)
        folder.mkdir()
        names = [f"{i:06d}.jpg" for i in range(arguments.images)]
        for i, name in enumerate(names):
            (folder / name).write_bytes(saved(picture(i), "JPEG", quality=90))
        jobs = {"prepare": prepare, "plain Pillow": plain}
        num_bytes = {name: job(folder, names, arguments.size, work) for name, job in jobs.items()}
        calls = {name: partial(job, folder, names, arguments.size, work) for name, job in jobs.items()}
        seconds = medians({name: call for name, call in calls.items()}, arguments.rounds)
        few = [pixels.clean((folder / name).read_bytes(), PARAMS, arguments.size).pixels for name in names[:20]]
    for name in jobs:
        rate, size = len(names) / seconds[name], num_bytes[name] / len(names) / 1024
        print(f"{name:24s} {rate:7.1f} images/s/core {size:8.1f} KiB an image")
    print_encodings(few, arguments.rounds)
    print(f"ratio prepare_bytes {num_bytes['plain Pillow'] / num_bytes['prepare']:.3f}")
    print(f"ratio prepare {seconds['plain Pillow'] / seconds['prepare']:.3f}")


if __name__ == "__main__":
    main()
