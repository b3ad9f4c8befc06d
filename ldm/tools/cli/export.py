"""`ldm export`."""

import argparse
from pathlib import Path
from typing import get_args

from ldm.tools.cli import drawing, output
from ldm.tools.cli.options import Commands, examples
from ldm.tools.model.parts import Parts


def add(commands: Commands) -> None:
    """Add the command to a parser."""
    about = """Write the trained model as other tools load it: a folder for diffusers' StableDiffusionPipeline, or a
single .safetensors file with Stable Diffusion's own names. What lies outside its topology is refused by name; models of
the recipe exportable have nothing that does."""
    epilog = examples(
        "ldm export pipeline --format diffusers",
        "ldm export model.safetensors --format single-file --model DIR",
    )
    summary = "Write the model for diffusers or ComfyUI"
    parser = commands.add_parser("export", help=summary, description=about, epilog=epilog)
    parser.add_argument("path", type=Path, metavar="PATH", help="the folder or the file, which must be new")
    # The formats stand in a module that imports torch.
    parser.add_argument("--format", choices=("diffusers", "single-file"), required=True, help="what it becomes")
    drawing.add_model(parser)
    parser.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> None:
    from ldm.tools.export import topology, usage, write, writing

    assert options.format in get_args(topology.Format), "an option of the parser"
    writing.check_new(options.path)
    with output.plain_warnings():
        pipeline = drawing.load(options, Parts.of(options.model))
    write.export(pipeline, options.path, options.format)
    print(f"{options.path}: {options.format}")
    print("\n".join(usage.lines(pipeline, options.path, options.format)))
