"""The command `ldm`: generate and replay images, write params from recipes, check params and results, resume runs."""

import argparse
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.core import config, system
from ldm.core.config import PARAMS
from ldm.core.errors import ConfigError, IntegrityError, Interrupted
from ldm.sampling import prompts, samplers
from ldm.tools import recipe

if TYPE_CHECKING:
    from ldm.tools.pipeline import Pipeline
    from ldm.tools.png_folder import PngFolder

_MAX_IMAGES = 10**6
_MAX_PNG_BYTES = 2**28
_NUM_HINTS = 12
_EXAMPLES = """examples:
  ldm generate "a small red circle above a large blue square" --output pictures
  ldm generate --prompts-file prompts.txt --num-images 4 --seed 1 --output pictures
  ldm replay pictures/0000.png
"""


class _Command(argparse.ArgumentParser):
    """The parser of one command. `more` makes the last part of its help, and is called only when help is printed."""

    more: Callable[[], str] | None = None

    def format_help(self) -> str:
        return super().format_help() + (self.more() if self.more else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code of `system.run`."""

    def work() -> None:
        options = _parser().parse_args(arguments)
        options.command(options)

    return system.run(work)


def _parser() -> argparse.ArgumentParser:
    about = "Latent-diffusion text-to-image models; run from the repository root."
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="ldm", description=about, epilog=_EXAMPLES, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"ldm {_version('ldm')}, torch {_version('torch')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Command)
    about = """Write one PNG per prompt, from the trained artefacts. What is not given is as in params.yaml: sample.
Files are 0000.png, 0001.png, ...; in a folder that has such files, numbers go on after the highest one."""
    generate = commands.add_parser(
        "generate", help="write images of prompts", description=about, epilog=_EXAMPLES, formatter_class=raw
    )
    _generate_options(generate)
    about = "Make the image of a PNG once more from what the PNG says, and compare every pixel."
    example = "example: ldm replay pictures/0000.png"
    replay = commands.add_parser("replay", help="make an image again, bit for bit", description=about, epilog=example)
    _replay_options(replay)
    about = "Validate a params file, section by section and as a whole; one of recipes/ with the default beneath."
    check = commands.add_parser("check", help="validate a params file", description=about)
    check.add_argument("path", nargs="?", type=Path, default=PARAMS, metavar="PATH", help="params.yaml by default")
    check.set_defaults(command=_check)
    check.more = _kinds
    about = "Write params.yaml: the default with what a recipe changes. Without NAME, list the recipes."
    writer = commands.add_parser("recipe", help="write params.yaml from a recipe", description=about)
    writer.more = lambda: f"\n{recipe.listing()}\n"
    _recipe_options(writer)
    about = (
        "Read every byte of the results that dvc.lock records, in the workspace and in DVC's cache, say where dvc.lock \
differs from HEAD, and follow the passports from data to metrics; or read every byte in a remote."
    )
    verify = commands.add_parser("verify", help="is every byte what the commit says?", description=about)
    verify.add_argument("--remote", nargs="?", const="", metavar="NAME", help="in a DVC remote (the default one)")
    verify.set_defaults(command=_verify)
    about = "List what is saved of unfinished runs: step, size, age, and what differs from params.yaml and the code."
    runs = commands.add_parser("runs", help="saved states, and what differs", description=about)
    runs.add_argument("--prune", action="store_true", help="first remove what section machine does not keep")
    runs.set_defaults(command=_runs)
    about = "Let the next run of a training go on from a state that was made by other params, inputs or code."
    resume = commands.add_parser("resume", help="go on from a state, on purpose", description=about)
    resume.add_argument("state", metavar="STATE", help="as `ldm runs` prints it, or the start of it, or a path")
    resume.set_defaults(command=_resume)
    return parser


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _generate_options(generate: argparse.ArgumentParser) -> None:
    add = generate.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help='"" = no caption')
    add("--prompts-file", metavar="FILE", help="UTF-8, one prompt per line, instead of arguments; - = standard input")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the images, made if it is not there")
    add(
        "--overwrite",
        action="store_true",
        help="start at --start-number and replace what has these names",
    )
    add("--num-images", type=_whole(1, _MAX_IMAGES), default=1, metavar="N", help="images per prompt (1)")
    add(
        "--start-number",
        type=_whole(0, 10**9),
        default=0,
        metavar="N",
        help="noise of the first image (0), and the number of its file unless higher ones are there: with 3 it is \
image 3 of a call from 0, up to rounding; in every bit if it has the same place in a batch of the same size",
    )
    add("--guidance-scale", type=float, metavar="G", help="1 = none; more follows the prompt closer")
    add("--negative-prompt", metavar="PROMPT", help="what guidance leads away from, instead of from no prompt")
    add(
        "--guidance",
        type=_guidance,
        metavar="NAME[,KEY=VALUE]",
        help="classifier_free; ho_salimans, the same with 0 = none; autoguidance,directory=DIR of a worse model; \
classifier,directory=DIR of a classifier",
    )
    add("--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="times of guidance; 0 1 = always")
    add(
        "--guidance-rescale", type=float, metavar="PHI", help="0 to 1: how far the contrast without guidance comes back"
    )
    add(
        "--dynamic-threshold", type=float, metavar="Q", help="0 to 1: quantile that becomes the limit; for pixel models"
    )
    add("--num-steps", type=int, metavar="N", help="sampler steps")
    add(
        "--sampler",
        type=_sampler,
        metavar="NAME[,KEY=VALUE]",
        help=f"rule of a step: {', '.join(samplers.forms())}",
    )
    add("--seed", type=int, metavar="S", help="seed of the noise")
    add("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    generate.set_defaults(command=_generate)


def _replay_options(replay: argparse.ArgumentParser) -> None:
    add = replay.add_argument
    add("image", type=Path, metavar="PNG", help="written by `ldm generate` or stage `sample`")
    add("--output", type=Path, metavar="PNG", help="where the new image goes, if it is wanted; a name that is free")
    add("--overwrite", action="store_true", help="replace what has the name of --output")
    add("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    add("--threads", type=_whole(1, 4096), metavar="N", help="CPU threads of the process that made it")
    replay.set_defaults(command=_replay)


def _recipe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="one of those below, or the path of a file like them")
    parser.add_argument("--force", action="store_true", help="over edits of params.yaml that would be lost")
    parser.set_defaults(command=_recipe)


def _sampler(text: str) -> dict[str, Any]:
    """Parse a sampler such as dpm_solver_pp_2m or ddim,eta=0.5."""
    kind, *options = text.split(",")
    pairs = [option.partition("=") for option in options]
    try:
        return {"kind": kind, **{key: float(value) for key, _, value in pairs}}
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected one of {', '.join(samplers.forms())}") from None


def _guidance(text: str) -> dict[str, str]:
    """Parse a kind of guidance such as ho_salimans or autoguidance,directory=data/models/guidance/early."""
    kind, *options = text.split(",")
    return {"kind": kind, **{key: value for key, _, value in (option.partition("=") for option in options)}}


def _whole(low: int, high: int) -> Callable[[str], int]:
    """Make a parser of whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"found {text!r}; expected a whole number from {low} to {high}")
        return number

    return read


def _generate(options: argparse.Namespace) -> None:
    from ldm.sampling.params import SampleParams
    from ldm.tools import png_folder

    texts = [text for text in _prompts_of(options) for _ in range(options.num_images)]
    named = (
        *("guidance_scale", "guidance", "negative_prompt", "guidance_interval", "guidance_rescale"),
        *("dynamic_threshold", "num_steps", "sampler", "seed"),
    )
    settings = {name: value for name in named if (value := getattr(options, name)) is not None}
    document = config.Document()
    # Refuse bad settings before the networks are loaded.
    document.read(SampleParams, "sample").drawing.changed(settings)
    with _plain_warnings(), png_folder.opened(options.output, options.start_number, options.overwrite) as folder:
        try:
            _write(_load(options, document, None), options.start_number, texts, settings, folder)
        except KeyboardInterrupt:
            found = f"stopped by Ctrl-C, {len(folder.paths)} of {len(texts)} images are written"
            raise Interrupted(str(options.output), found, "all of them", f"for the others, {folder.rest}") from None


def _prompts_of(options: argparse.Namespace) -> list[str]:
    fix = "give prompts as arguments, or in a file by --prompts-file"
    if bool(options.prompts) == (options.prompts_file is not None):
        found = "prompts as arguments and in a file" if options.prompts else "no prompt"
        raise ConfigError("ldm generate", found, "one or the other", fix)
    return prompts.texts_of(options.prompts) if options.prompts else prompts.read(options.prompts_file)


def _write(
    pipeline: "Pipeline", start_number: int, texts: list[str], settings: dict[str, Any], folder: "PngFolder"
) -> None:
    from tqdm import tqdm

    unknown = pipeline.unknown_words(texts)
    if unknown:
        more = f" and {len(unknown) - _NUM_HINTS} more" if len(unknown) > _NUM_HINTS else ""
        print(f"hint: no training caption has: {', '.join(unknown[:_NUM_HINTS])}{more}", file=sys.stderr)
    with tqdm(total=len(texts), unit="image", disable=None) as bar:
        for png, text in zip(pipeline.pngs(texts, start_number, **settings), texts, strict=True):
            bar.write(f"{folder.add(png)}  {prompts.on_one_line(text)}")
            sys.stdout.flush()
            bar.update()


def _load(options: argparse.Namespace, document: config.Document, num_threads: int | None) -> "Pipeline":
    """Load the pipeline with as many threads as the stages use, unless `num_threads` is given.

    The last bits of an image depend on the number of threads.
    """
    import torch

    from ldm.compute import cores
    from ldm.core.params import MachineParams
    from ldm.tools import pipeline

    machine = document.read(MachineParams, "machine")
    torch.set_num_threads(num_threads or cores.threads(machine))
    return pipeline.Pipeline.load(device=options.device)


@contextmanager
def _plain_warnings() -> Generator[None]:
    """Print each warning on one line, without its place in the code."""

    def show(message: Warning | str, *_: object) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _replay(options: argparse.Namespace) -> None:
    import numpy as np

    from ldm.core import images
    from ldm.sampling.origin import Origin
    from ldm.sampling.params import SampleParams
    from ldm.tools import png_folder

    # Read and check the PNG before the networks are loaded.
    where = str(options.image)
    if not options.image.is_file():
        raise ConfigError(where, "no such file", "a PNG", "name one that `ldm generate` wrote")
    if options.image.stat().st_size > _MAX_PNG_BYTES:
        raise IntegrityError(where, "more than 256 MiB", "an image", "name one that `ldm generate` wrote")
    png = options.image.read_bytes()
    origin = Origin.read(png, where)
    found = images.read_png(png, where)
    document = config.Document()
    origin.drawing(document.read(SampleParams, "sample").drawing, where)
    if options.output is not None:
        png_folder.check_new(options.output, options.overwrite)
    with _plain_warnings():
        pipeline = _load(options, document, options.threads)
    if found.shape[:2] != pipeline.generator.image_size_px:
        sizes = [f"{height} x {width}" for height, width in (found.shape[:2], pipeline.generator.image_size_px)]
        raise IntegrityError(where, f"{sizes[0]} pixels", sizes[1], "name the PNG as it was written")
    # Make the image again, and compare every value.
    again = pipeline.replay(origin).permute(1, 2, 0).contiguous().numpy()
    if options.output is not None:
        png_folder.save(options.output, origin.png(again), options.overwrite)
    difference = np.abs(found.astype(int) - again)
    if difference.any():
        count, most = int((difference > 0).sum()), int(difference.max())
        differs = f"{count} of {difference.size} values differ, by {most} at most"
        others = "if they were others (--device, --threads)"
        fix = f"name the kind of device and the number of threads that made it, {others}"
        raise IntegrityError(where, differs, "equal pixels", fix)
    print(f"{options.image}: equal in all {difference.size} values ({prompts.on_one_line(origin.prompt)})")


def _check(options: argparse.Namespace) -> None:
    from ldm.tools.check import check, launch_config

    params = check.whole(recipe.document(options.path))
    launch_config.check()
    corpus = f"{params.prepare.corpus.kind}, {params.prepare.image_size_px} px"
    print(f"{options.path} is complete and consistent ({corpus})")


def _kinds() -> str:
    """Every value of a params file that has a `kind`, with its possible kinds."""
    from ldm.tools.check.check import SECTIONS

    found = {key: kinds for name, section in SECTIONS.items() for key, kinds in config.kinds(section, name).items()}
    lines = [f"  {key}: {', '.join(kinds)}" for key, kinds in found.items()]
    return "\n".join(["", "values with a `kind`, and what it may be:", *lines, ""])


def _recipe(options: argparse.Namespace) -> None:
    print(recipe.write(options.name, options.force) if options.name else recipe.listing())


def _verify(options: argparse.Namespace) -> None:
    from ldm.tools import verify

    report = verify.local() if options.remote is None else verify.remote(options.remote or None)
    if not report.problems:
        print(f"OK: {report.num_objects} files, {report.num_bytes / 1e6:.1f} MB, every byte as {report.record}")
    for note in report.notes:
        print(note)
    if report.problems:
        raise IntegrityError.many(report.problems)


def _runs(options: argparse.Namespace) -> None:
    from ldm.core import config
    from ldm.core.params import MachineParams
    from ldm.tools import runs

    root = runs.root()
    removed = runs.prune(root, config.read(MachineParams, "machine")) if options.prune else []
    for line in [*(f"removed {told}" for told in removed), *(list(runs.lines(root)) or ["nothing is saved"])]:
        print(line)


def _resume(options: argparse.Namespace) -> None:
    from ldm.tools import runs

    print(runs.ask(runs.root(), options.state))


if __name__ == "__main__":
    sys.exit(main())
