"""All figures by name, and how they become files."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldm.core.errors import ConfigError, UserError
from ldm.tools import png_folder
from ldm.tools.figures import mixtures, models, processes, style
from ldm.tools.figures.models import Trained

TOYS: dict[str, Callable[[], Any]] = {
    "schedules": lambda: processes.draw_schedules(processes.schedules()),
    "predictions": lambda: processes.draw_predictions(processes.predictions()),
    "there_and_back": lambda: mixtures.draw_there_and_back(mixtures.there_and_back()),
    "langevin": lambda: mixtures.draw_langevin(mixtures.langevin()),
    "samplers": lambda: mixtures.draw_samplers(mixtures.samplers()),
    "spacings": lambda: processes.draw_spacings(processes.spacings()),
    "guidance": lambda: mixtures.draw_guided(mixtures.guided()),
}
"""Figures that need no trained artefact."""
TRAINED: dict[str, Callable[[Trained], Any]] = {
    "noise_levels": lambda trained: models.draw_noise_levels(models.noise_levels(trained)),
    "steps": lambda trained: models.draw_steps(models.steps(trained)),
    "step_counts": lambda trained: models.draw_step_counts(models.step_counts(trained)),
    "latent_map": lambda trained: models.draw_latent_map(models.latent_map(trained)),
}
"""Figures of the trained artefacts."""
NAMES = (*TOYS, *TRAINED)


def write(directory: Path, names: Sequence[str], overwrite: bool, load: Callable[[], Trained]) -> Iterator[Path]:
    """Write figures as NAME.png, and yield each path once its file is there. The folder is made if it is missing.

    load: called if a figure needs the trained artefacts. Raises, before any figure is drawn:
        ConfigError: a file exists already, unless `overwrite`; or the folder is a file.
        MachineError: the folder is not writable.
        IntegrityError: an artefact is missing.
    """
    with png_folder.opened(directory, 0, overwrite):
        for name in names:
            png_folder.check_new(directory / f"{name}.png", overwrite)
        trained = None
        if any(name in TRAINED for name in names):
            with _naming_toys():
                trained = load()
        for name in names:
            path = directory / f"{name}.png"
            png_folder.save(path, drawn(name, trained), overwrite)
            yield path


def drawn(name: str, trained: Trained | None) -> bytes:
    """One figure as a PNG; equal artefacts give equal bytes. trained: not None for a figure of `TRAINED`."""
    with style.applied():
        if name in TOYS:
            return style.png(TOYS[name]())
        assert trained is not None, f"{name} needs the trained artefacts"
        return style.png(TRAINED[name](trained))


@contextmanager
def _naming_toys() -> Generator[None]:
    """A missing artefact is no reason to go without the figures that need none."""
    try:
        yield
    except UserError as error:
        where, found, expected, fix = error.args
        more = f"{fix}; or add --toys: {', '.join(TRAINED)} need the trained artefacts, the others do not"
        raise type(error)(where, found, expected, more) from error


def selected(only: Sequence[str], toys: bool) -> list[str]:
    """The names to draw. only: these, or all if there are none. toys: no figure of the trained artefacts.

    ConfigError: a name is unknown, or needs what `toys` does without.
    """
    offered = [*TOYS] if toys else [*NAMES]
    wrong = [name for name in only if name not in offered]
    if wrong:
        found = f"{wrong[0]!r}" + (", which needs the trained artefacts, with --toys" if wrong[0] in NAMES else "")
        raise ConfigError("--only", found, f"one of {', '.join(offered)}", "name figures as they are listed")
    return [name for name in offered if not only or name in only]
