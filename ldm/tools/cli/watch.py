"""`ldm watch` and `ldm band`: how a training goes, and how it is known to go."""

import argparse
from pathlib import Path

from ldm.core import config
from ldm.core.params import PathsParams
from ldm.tools.cli.options import Commands, examples

RESULTS = {"train_autoencoder": "autoencoder_results", "train_clip": "clip_results", "train_unet": "unet_results"}
"""The field of section paths that has the results of each training."""


def add(commands: Commands) -> None:
    """Add the commands to a parser."""
    about = """Show the newest losses of the training that runs, its speed, the time left and the newest picture, \
again and again until Ctrl-C, which stops nothing but this. If none runs: what runs/ holds of the last one."""
    epilog = examples("ldm watch", "ldm watch train_unet --every 10", "ldm watch --once    # one look, for scripts")
    summary = "Show how a training goes, while it runs"
    watch = commands.add_parser("watch", help=summary, description=about, epilog=epilog)
    watch.add_argument("stage", nargs="?", choices=list(RESULTS), metavar="STAGE", help=f"one of {', '.join(RESULTS)}")
    watch.add_argument("--every", type=_seconds, default=2.0, metavar="SECONDS", help="between two looks (2)")
    watch.add_argument("--once", action="store_true", help="look once and end")
    watch.set_defaults(command=_watch)
    about = """Write the band in which the losses of the last trainings stayed, made of their curves, as a CSV that \
training.loss_band of a params file can name: the next training says when it leaves it."""
    epilog = examples("ldm band recipes/bands/mine.csv")
    summary = "Write the losses of the last trainings, for the next ones to compare with"
    band = commands.add_parser("band", help=summary, description=about, epilog=epilog)
    band.add_argument("file", type=Path, metavar="FILE", help="such as recipes/bands/NAME.csv")
    band.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    band.set_defaults(command=_band)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected seconds from 0.1 to 3600")
    return seconds


def _watch(options: argparse.Namespace) -> None:
    from ldm.tools import runs
    from ldm.tools.watch import watch

    watch(runs.root(), [options.stage] if options.stage else list(RESULTS), None if options.once else options.every)


def _band(options: argparse.Namespace) -> None:
    from ldm.core.errors import ConfigError
    from ldm.tools import png_folder
    from ldm.training import bands
    from ldm.training.history import CURVES

    png_folder.check_new(options.file, options.overwrite)
    paths = config.read(PathsParams, "paths").model_dump()
    curves = {stage: Path(paths[field], CURVES) for stage, field in RESULTS.items()}
    windows = [window for stage, path in curves.items() if path.exists() for window in bands.of_run(stage, path)]
    if not windows:
        expected, fix = f"one of {', '.join(map(str, curves.values()))}", "train first: dvc repro"
        raise ConfigError(str(options.file), "no curve of a training", expected, fix)
    bands.write(options.file, windows)
    print(f"{options.file}: {', '.join(dict.fromkeys(window.stage for window in windows))}")
