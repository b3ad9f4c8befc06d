"""`ldm replay`."""

import argparse
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.core.errors import ConfigError, IntegrityError
from ldm.sampling import prompts
from ldm.tools.cli import drawing, output, tasks
from ldm.tools.cli import options as forms
from ldm.tools.model.parts import Parts

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

_MAX_PNG_BYTES = 2**28
_STANDARD_OUTPUT = Path("-")


def add(commands: forms.Commands) -> None:
    """Add the command to a parser."""
    about = "Make the image of a PNG once more from what the PNG says, and compare every pixel."
    epilog = forms.examples(
        "ldm replay pictures/0000.png",
        "ldm replay pictures/0000.png --image photo.png --mask mask.png    # of a task: with the pictures it was given",
        "ldm replay pictures/0000.png --model DIR --output again.png",
    )
    parser = commands.add_parser("replay", help="Make an image again, bit for bit", description=about, epilog=epilog)
    add = parser.add_argument
    add("png", type=Path, metavar="PNG", help="written by ldm, or by stage `sample`")
    for name in tasks.PICTURES:
        tasks.add_picture(parser, name, required=False)
    about = "where the new image goes, if it is wanted: a name that is free; - = standard output"
    add("--output", type=Path, metavar="PNG", help=about)
    add("--overwrite", action="store_true", help="replace what has the name of --output")
    drawing.add_model(parser)
    add("--threads", type=forms.whole(1, 4096), metavar="N", help="CPU threads of the process that made it")
    parser.set_defaults(command=_replay)


def _replay(options: argparse.Namespace) -> None:
    from ldm.core import images
    from ldm.sampling.origin import NUMERICS, Origin
    from ldm.tools.tasks import draw

    # Read and check the PNG and its pictures before the networks are loaded.
    where = str(options.png)
    png = _read(options.png)
    origin = Origin.read(png, where)
    found = images.read_png(png, where)
    parts = Parts.of(options.model)
    origin.drawing(parts.drawing, where)
    given = tasks.given(options)
    draw.again(origin, given, where)
    with _opened(options) as add:
        with output.plain_warnings():
            pipeline = drawing.load(options, parts, options.threads)
        # Make the image again, and compare every value.
        again = pipeline.replay(origin, given).permute(1, 2, 0).contiguous().numpy()
        (height, width, _), which = again.shape, ""
        if found.shape == (2 * height, 2 * width, 3):
            # A square of DPG-Bench carries the origin of its last image.
            found, which = found[height:, width:], "its lower right quarter is "
        if found.shape != again.shape:
            sizes = [f"{height} x {width}" for height, width in (found.shape[:2], again.shape[:2])]
            raise IntegrityError(where, f"{sizes[0]} pixels", sizes[1], "name the PNG as it was written")
        if add is not None:
            add(origin.png(again))
    _compare(found, again, where, origin.numerics == NUMERICS)
    said = f"{options.png}: {which}equal in all {again.size} values ({prompts.on_one_line(origin.prompt)})"
    print(said, file=sys.stderr if options.output == _STANDARD_OUTPUT else sys.stdout)


@contextmanager
def _opened(options: argparse.Namespace) -> Generator[output.Add | None]:
    """The place that `--output` names, tested before any work; None if it names none. ConfigError, MachineError: as
    `png_folder.check_new`; or a terminal would show the image."""
    from ldm.tools import png_folder

    path: Path | None = options.output
    if path == _STANDARD_OUTPUT:
        with output.opened(options, 1) as add:
            yield add
    elif path is None:
        yield None
    else:
        png_folder.check_new(path, options.overwrite)
        yield lambda png: png_folder.save(path, png, options.overwrite)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ConfigError(str(path), "no such file", "a PNG", "name one that `ldm generate` wrote")
    if path.stat().st_size > _MAX_PNG_BYTES:
        raise IntegrityError(str(path), "more than 256 MiB", "an image", "name one that `ldm generate` wrote")
    return path.read_bytes()


def _compare(
    found: "UInt8[np.ndarray, 'h w 3']", again: "UInt8[np.ndarray, 'h w 3']", where: str, is_current: bool
) -> None:
    import numpy as np

    difference = np.abs(found.astype(int) - again)
    if difference.any():
        count, most = int((difference > 0).sum()), int(difference.max())
        differs = f"{count} of {difference.size} values differ, by {most} at most"
        if not is_current:
            expected = "equal pixels, but for rounding: it is older than the way in which images are computed now"
            raise IntegrityError(where, differs, expected, "check out a commit of its time to see all of them again")
        others = "if they were others (--device, --threads); else check out a commit of its time"
        fix = f"name the kind of device and the number of threads that made it, {others}"
        raise IntegrityError(where, differs, "equal pixels", fix)
