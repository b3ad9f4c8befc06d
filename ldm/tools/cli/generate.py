"""`ldm generate`."""

import argparse

from ldm.tools.cli import drawing
from ldm.tools.cli.options import Commands
from ldm.tools.model.parts import Parts

EXAMPLES = """examples:
  ldm generate "a small red circle above a large blue square" --output pictures
  ldm generate --prompts-file prompts.txt --num-images 4 --seed 1 --output pictures
  ldm generate "a red star" --model DIR --output pictures    # DIR: a model folder, which needs no repository
  ldm replay pictures/0000.png
"""


def add(commands: Commands) -> None:
    """Add the command to a parser."""
    about = """Write one PNG per prompt, from the trained artefacts. What is not given is as in params.yaml: sample.
Files are 0000.png, 0001.png, ...; in a folder that has such files, numbers go on after the highest one."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        "generate", help="write images of prompts", description=about, epilog=EXAMPLES, formatter_class=raw
    )
    drawing.add_prompts(parser)
    drawing.add_output(parser)
    drawing.add_settings(parser)
    parser.set_defaults(command=_generate, name="generate")


def _generate(options: argparse.Namespace) -> None:
    texts, parts = drawing.texts_of(options), Parts.of(options.model)
    # Refuse bad settings before the networks are loaded.
    settings = drawing.settings_of(options, parts.drawing)
    with drawing.opened(options, len(texts)) as folder:
        pipeline = drawing.load(options, parts)
        drawing.hint(pipeline, texts)
        drawing.write(pipeline.pngs(texts, options.start_number, **settings), texts, folder)
