"""A command for every task of section `tasks`: its options are the fields of its params."""

import argparse
import inspect
from typing import TYPE_CHECKING

from ldm.core import config
from ldm.sampling.params import SampleParams
from ldm.tools.cli import drawing
from ldm.tools.cli import options as forms
from ldm.tools.tasks import masks, params
from ldm.tools.tasks.params import TasksParams

if TYPE_CHECKING:
    from ldm.tools.tasks.pictures import Picture


def add(commands: forms.Commands) -> None:
    """Add the commands to a parser."""
    for name in params.names():
        model = params.class_of(name)
        about = inspect.cleandoc(model.__doc__ or "")
        what_else = "What is not given is as in params.yaml: tasks and sample."
        parser = commands.add_parser(
            _verb(name), help=about.split("\n\n")[0].split(": ")[0], description=f"{about} {what_else}"
        )
        drawing.add_prompts(parser)
        for picture in model.inputs():
            add_picture(parser, picture, required=True)
        drawing.add_output(parser)
        forms.add_fields(parser, model)
        drawing.add_settings(parser)
        parser.set_defaults(command=_perform, name=_verb(name), task=name)


def add_picture(parser: argparse.ArgumentParser, name: str, required: bool) -> None:
    """The option of a picture."""
    texts = {"image": "PNG, JPEG or WebP; of another size than the model's: its centre square, resized"}
    texts["mask"] = f"picture of the image's size, white where to draw; or one of {', '.join(masks.NAMES)}"
    parser.add_argument(f"--{name}", metavar="FILE", required=required, help=texts[name])


def given(options: argparse.Namespace) -> "dict[str, Picture]":
    """The pictures that were named. ConfigError: one cannot be read, or the mask does not fit the image."""
    from ldm.tools.tasks import pictures

    names = [name for name in ("image", "mask") if getattr(options, name, None) is not None]
    return pictures.row({name: getattr(options, name) for name in names})


def _perform(options: argparse.Namespace) -> None:
    texts, document = drawing.texts_of(options), config.Document()
    # Refuse bad settings and pictures before the networks are loaded.
    others = document.read(SampleParams, "sample").drawing
    settings = drawing.settings_of(options, others)
    own = forms.given(options, params.class_of(options.task))
    task: params.TaskParams = getattr(document.read(TasksParams, "tasks"), options.task)
    task.changed(own).check(others.changed(settings).num_steps)
    row = given(options)
    with drawing.opened(options, len(texts)) as folder:
        pipeline = drawing.load(options, document)
        drawing.hint(pipeline, texts)
        pngs = pipeline.task_pngs(options.task, texts, row, options.start_number, **own, **settings)
        drawing.write(pngs, texts, folder)


def _verb(name: str) -> str:
    return name.replace("_", "-")
