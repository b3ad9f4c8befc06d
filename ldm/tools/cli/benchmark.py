"""`ldm benchmark`."""

import argparse
from pathlib import Path
from typing import get_args

from ldm.core.errors import ConfigError
from ldm.tools.cli import drawing, output
from ldm.tools.cli.options import Commands, examples, whole
from ldm.tools.model.parts import Parts

_EXAMPLES = examples(
    "ldm benchmark geneval geneval/prompts/evaluation_metadata.jsonl --output geneval_images",
    "ldm benchmark dpg ELLA/dpg_bench/prompts --output dpg_images",
    "ldm benchmark dpg ELLA/dpg_bench/prompts --output dpg_images --resume    # goes on where it stopped",
)


def add(commands: Commands) -> None:
    """Add the command to a parser."""
    about = """Draw the prompts of GenEval or DPG-Bench, and write the images as the programs of these read them, which
then score them. Image j of prompt i starts from the noise i * NUM_IMAGES + j of the seed."""
    summary = "Draw the prompts of GenEval or DPG-Bench"
    parser = commands.add_parser("benchmark", help=summary, description=about, epilog=_EXAMPLES)
    add_argument = parser.add_argument
    # The suites stand in a module that imports NumPy.
    add_argument("suite", choices=("geneval", "dpg"))
    add_argument("source", type=Path, help="evaluation_metadata.jsonl of GenEval, or the folder of DPG's prompts")
    add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the images, new or empty")
    add_argument("--resume", action="store_true", help="go on in a folder that has the images of the first prompts")
    add_argument("--num-images", type=whole(1, 1000), default=4, metavar="N", help="images per prompt (4)")
    add_argument("--seed", type=int, default=argparse.SUPPRESS, metavar="N", help="seed of the noise")
    drawing.add_settings(parser)
    parser.set_defaults(command=_benchmark, name="benchmark")


def _benchmark(options: argparse.Namespace) -> None:
    from ldm.tools import prompt_suites

    assert options.suite in get_args(prompt_suites.SuiteName), "an option of the parser"
    suite = prompt_suites.read(options.suite, options.source, options.num_images)
    parts = Parts.of(options.model)
    settings = drawing.settings_of(options, parts.drawing)
    directory: Path = options.output
    if directory.exists() and not options.resume and (directory.is_file() or any(directory.iterdir())):
        fix = "name another, or add --resume to go on with the same settings"
        raise ConfigError(str(directory), "something that is there already", "a new or an empty folder", fix)
    first, drawn = suite.num_done(directory), suite.drawn(directory)
    if drawn and parts.drawing.changed(settings).precision == "auto":
        settings["precision"] = prompt_suites.origin(next(iter(drawn.values()))).settings["precision"]
    with output.plain_warnings():
        pipeline = drawing.load(options, parts)
        if drawn:
            texts, changed = suite.texts(0), parts.drawing.changed(settings)
            expected = pipeline.generator.origins([texts[number] for number in drawn], list(drawn), changed)
            for path, origin in zip(drawn.values(), expected, strict=True):
                prompt_suites.check(path, origin)
        pngs = pipeline.pngs(suite.texts(first), first * suite.num_images, **settings) if suite.texts(first) else ()
        directory.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(suite.write(directory, pngs, first), first + 1):
            print(f"{number} of {len(suite.prompts)}  {path}", flush=True)
