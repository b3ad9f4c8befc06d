"""A command for every task of section `tasks`: its options are the fields of its params."""

import argparse
import inspect
from typing import TYPE_CHECKING

from ldm.tools.cli import drawing, output
from ldm.tools.cli import options as forms
from ldm.tools.model.parts import Parts
from ldm.tools.tasks import masks, params

if TYPE_CHECKING:
    from ldm.tools.tasks.pictures import Picture

PICTURES = ("image", "mask", "last_image")
"""Names of all pictures that a task may be given."""
_TRY = {
    "img2img": "--strength 0.5",
    "outpaint": "--margin-px 32",
    "upscale": "--factor 4",
    "variations": "--num-images 8",
    "interpolate": '--last-prompt "a blue star" --num-frames 8',
    "invert": '--edit "a blue star"',
}
_WITH_PROMPT = ("interpolate", "invert")
"""What an example shows besides what a task needs."""


def add(commands: forms.Commands) -> None:
    """Add the commands to a parser."""
    for name in params.names():
        model = params.class_of(name)
        about = inspect.cleandoc(model.__doc__ or "")
        what_else = "What is not given is as in params.yaml: tasks and sample."
        parser = commands.add_parser(
            _verb(name),
            help=_in_short(about),
            description=f"{about} {what_else}",
            epilog=forms.examples(_example(name)),
        )
        drawing.add_prompts(parser)
        for picture in (*model.inputs(), *model.optional_inputs()):
            add_picture(parser, picture, required=picture in model.inputs())
        output.add(parser)
        forms.add_fields(parser, model, skipped=("drawing",))
        drawing.add_settings(parser)
        parser.set_defaults(command=_perform, name=_verb(name), task=name)


def add_picture(parser: argparse.ArgumentParser, name: str, required: bool) -> None:
    """The option of a picture."""
    texts = {"image": "PNG, JPEG or WebP; of another size than the model's: its centre square, resized"}
    named = ", ".join(masks.NAMES)
    texts["mask"] = f"picture of the image's size, white where to draw (transparent is black); or one of {named}"
    texts["last_image"] = "another image, at which the way from the first one ends"
    parser.add_argument(f"--{_verb(name)}", metavar="FILE", required=required, help=texts[name])


def given(options: argparse.Namespace) -> "dict[str, Picture]":
    """The pictures that were named. ConfigError: one cannot be read, or the mask does not fit the image."""
    from ldm.tools.tasks import pictures

    names = [name for name in PICTURES if getattr(options, name, None) is not None]
    return pictures.row({name: getattr(options, name) for name in names})


def _perform(options: argparse.Namespace) -> None:
    model, parts = params.class_of(options.task), Parts.of(options.model)
    texts = drawing.texts_of(options, is_needed=model.needs_prompt())
    # Refuse bad settings and pictures before the networks are loaded.
    own = forms.given(options, model)
    task: params.TaskParams = getattr(parts.tasks, options.task).changed(own)
    others = task.changes(parts.drawing)
    settings, row = drawing.settings_of(options, others), given(options)
    runs = drawing.by_seed(options, settings, others)
    task.check(others.changed(settings).num_steps)
    task.check_inputs(row.keys())
    all_labels = [text for text in texts for _ in range(task.num_per_prompt)]
    labels = drawing.labels(all_labels[options.start_number % task.num_per_prompt :], runs)
    with output.opened(options, len(labels)) as add:
        pipeline = drawing.load(options, parts)
        drawing.hint(pipeline, [*texts, task.second_prompt or ""])
        start = options.start_number
        pngs = (png for run in runs for png in pipeline.task_pngs(options.task, texts, row, start, **own, **run))
        output.write(pngs, labels, add)


def _in_short(about: str) -> str:
    """The first clause of a docstring, without the papers in brackets."""
    return about.split("\n\n")[0].split(": ")[0].split(" (")[0].rstrip(".")


def _example(name: str) -> str:
    model = params.class_of(name)
    prompt = ['"a red star"'] if model.needs_prompt() or name in _WITH_PROMPT else []
    inputs = [f"--{picture} {picture}.png" for picture in model.inputs()]
    also = [_TRY[name]] if name in _TRY else []
    return " ".join(["ldm", _verb(name), *prompt, *inputs, *also, "--output pictures"])


def _verb(name: str) -> str:
    return name.replace("_", "-")
