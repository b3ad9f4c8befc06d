"""`ldm generate`."""

import argparse

from ldm.tools.cli import drawing, output
from ldm.tools.cli.options import Commands, examples
from ldm.tools.model.parts import Parts

_EXAMPLES = examples(
    'ldm generate "a small red circle above a large blue square" --output pictures',
    'ldm generate "a red star" --seed 3-7 --output pictures    # one picture per seed',
    'ldm generate "a red star" --size-px 64 96 --output pictures    # height, width; of a model that takes other sizes',
    'ldm generate "a red star" --output - > star.png    # or: | another program',
    "ldm generate --prompts-file prompts.txt --num-images 4 --seed 1 --output pictures    # one prompt per line",
    'ldm generate "a red star" --model DIR --output pictures    # DIR: a model folder, which needs no repository',
    "ldm replay pictures/0000.png",
)


def add(commands: Commands) -> None:
    """Add the command to a parser."""
    about = """Write one PNG per prompt, from the trained artefacts. What is not given is as in params.yaml: sample.
Files are 0000.png, 0001.png, ...; in a folder that has such files, numbers go on after the highest one."""
    parser = commands.add_parser("generate", help="Draw images of prompts", description=about, epilog=_EXAMPLES)
    drawing.add_prompts(parser)
    output.add(parser)
    drawing.add_settings(parser)
    parser.set_defaults(command=_generate, name="generate")


def _generate(options: argparse.Namespace) -> None:
    texts, parts = drawing.texts_of(options), Parts.of(options.model)
    # Refuse bad settings before the networks are loaded.
    runs = drawing.by_seed(options, drawing.settings_of(options, parts.drawing), parts.drawing)
    labels = drawing.labels(texts, runs)
    with output.opened(options, len(labels)) as add:
        pipeline = drawing.load(options, parts)
        drawing.hint(pipeline, texts)
        pngs = (png for run in runs for png in pipeline.pngs(texts, options.start_number, **run))
        output.write(pngs, labels, add)
