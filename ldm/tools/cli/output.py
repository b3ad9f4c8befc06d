"""Where the images of a command go: into a folder, numbered, or one of them to standard output."""

import argparse
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

from ldm.core.errors import ConfigError, Interrupted
from ldm.sampling import prompts
from ldm.tools.cli import seeds
from ldm.tools.cli.colours import painted

Add = Callable[[bytes], Path | None]
"""Takes one more PNG; returns its path, if it has one."""
_STANDARD_OUTPUT = Path("-")


def add(parser: argparse.ArgumentParser) -> None:
    """Options that say where images go."""
    about = "folder of the images, made if it is not there; - = standard output, for one image"
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help=about)
    about = "start at --start-number and replace what has these names"
    parser.add_argument("--overwrite", action="store_true", help=about)


@contextmanager
def opened(options: argparse.Namespace, num_images: int) -> Generator[Add]:
    """The place that `--output` names, tested before any work; warnings are printed on one line.

    Raises:
        ConfigError: several images are asked for, or a terminal would show the one.
        Interrupted: Ctrl-C, with how many images are written by then and how to get the others.
        ConfigError, MachineError: as `png_folder.opened`.
    """
    from ldm.tools import png_folder

    with plain_warnings():
        if options.output == _STANDARD_OUTPUT:
            _check_standard_output(num_images)
            yield _to_standard_output
            return
        rest = _rest_of(options.seeds or [], num_images, options.overwrite)
        with png_folder.opened(options.output, options.start_number, options.overwrite, rest) as folder:
            try:
                yield folder.add
            except KeyboardInterrupt:
                found = f"stopped by Ctrl-C, {len(folder.paths)} of {num_images} images are written"
                raise Interrupted(str(options.output), found, "all of them", f"for the others, {folder.rest}") from None


def write(pngs: Iterable[bytes], labels: Sequence[str], add: Add) -> None:
    """Write PNGs as they come, one per label, which is printed beside the path."""
    from tqdm import tqdm

    with tqdm(total=len(labels), unit="image", disable=None) as bar:
        for png, label in zip(pngs, labels, strict=True):
            path = add(png)
            if path is not None:
                bar.write(f"{path}  {prompts.on_one_line(label)}")
                sys.stdout.flush()
            bar.update()


@contextmanager
def plain_warnings() -> Generator[None]:
    """Print each warning on one line, without its place in the code."""

    def show(message: Warning | str, *_: object) -> None:
        print(f"{painted('warning:', 'yellow', sys.stderr)} {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _check_standard_output(num_images: int) -> None:
    if num_images > 1:
        fix = "name a folder, or ask for one image"
        raise ConfigError("--output", f"-, and {num_images} images", "one image for standard output", fix)
    if sys.stdout.isatty():
        fix = "add `> picture.png`, or name a folder"
        raise ConfigError("--output", "-, and a terminal", "a file or another program that takes the PNG", fix)


def _to_standard_output(png: bytes) -> None:
    sys.stdout.buffer.write(png)
    sys.stdout.buffer.flush()


def _rest_of(asked: Sequence[int], num_images: int, overwrite: bool) -> Callable[[int], str] | None:
    """How to get what is missing once so many images are written; None = as folders say it, which know no seeds."""
    without = ", without --overwrite" if overwrite else ""  # which would begin at the first file again
    if len(asked) < 2:
        return None
    per_seed = num_images // len(asked)

    def rest(num_written: int) -> str:
        num_done, num_more = divmod(num_written, per_seed)
        again = f"; the first {num_more} of seed {asked[num_done]} are there already" if num_more else ""
        return f"give --seed {seeds.written(asked[num_done:])}{without}{again}"

    return rest
