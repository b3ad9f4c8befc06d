"""`ldm average`: a UNet as another average of its training."""

import argparse
from pathlib import Path

from ldm.core import config
from ldm.core.params import PathsParams
from ldm.tools.cli.options import Commands, examples, whole


def add(commands: Commands) -> None:
    """Add the command to a parser."""
    about = "Write the UNet as it would be with an average of another length, at the end or at an earlier step of its \
training, made of the averages that train_unet.averages kept. `ldm generate` takes such a folder as the worse model of \
autoguidance."
    epilog = examples(
        "ldm average 0.1 --output data/models/guidance/longer",
        "ldm average 0.05 --step 2000 --output data/models/guidance/early",
    )
    summary = "Make the UNet as another average of its training"
    parser = commands.add_parser("average", help=summary, description=about, epilog=epilog)
    parser.add_argument("length", type=float, metavar="LENGTH", help="share of the training, such as 0.1")
    parser.add_argument("--step", type=whole(1, 10**9), metavar="N", help="of an earlier UNet; by default the last")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.set_defaults(command=_average)


def _average(options: argparse.Namespace) -> None:
    from ldm.tools import averaging

    paths = config.read(PathsParams, "paths")
    print(averaging.write(Path(paths.unet), Path(paths.unet_results), options.output, options.step, options.length))
