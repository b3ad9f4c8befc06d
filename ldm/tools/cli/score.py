"""`ldm score`: how unusual images are, as a table."""

import argparse
import csv
import inspect
import io
import json
from pathlib import Path
from typing import Any

from ldm.core.errors import ConfigError
from ldm.core.progress import count
from ldm.sampling import prompts
from ldm.tools.cli import drawing, output
from ldm.tools.cli import options as forms
from ldm.tools.model.parts import Parts
from ldm.tools.tasks.params import ScoreParams


def add(commands: forms.Commands) -> None:
    """Add the command to a parser."""
    about = (
        f"{inspect.cleandoc(ScoreParams.__doc__ or '')} Higher = more unusual; what is not given is as in params.yaml."
    )
    epilog = forms.examples(
        "ldm score photos/*.png --output scores.csv",
        'ldm score star.png --prompt "a red star" --num-probes 0    # without the likelihood, which takes longest',
    )
    parser = commands.add_parser("score", help="Say how unusual images are", description=about, epilog=epilog)
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="FILE", help="PNG, JPEG or WebP")
    add("--prompt", default="", metavar="TEXT", help="what all images are said to show (nothing)")
    add("--output", type=Path, metavar="FILE", help="where the table goes as .csv or .json; else it is printed")
    add("--overwrite", action="store_true", help="replace what has the name of --output")
    add("--seed", type=int, default=argparse.SUPPRESS, metavar="N", help="seed of noises and probes")
    forms.add_fields(parser, ScoreParams)
    drawing.add_model(parser)
    parser.set_defaults(command=_score)


def _score(options: argparse.Namespace) -> None:
    from ldm.tools import png_folder
    from ldm.tools.tasks import pictures

    # Refuse bad settings and pictures before the networks are loaded.
    parts, table = Parts.of(options.model), options.output
    own = forms.given(options, ScoreParams)
    seed = {"seed": options.seed} if hasattr(options, "seed") else {}
    parts.drawing.changed(seed)
    parts.tasks.score.changed(own)
    prompts.texts_of(options.prompt)
    if table is not None:
        if table.suffix not in (".csv", ".json"):
            raise ConfigError("--output", str(table), "a name that ends in .csv or .json", "name such a file")
        png_folder.check_new(table, options.overwrite)
    images = [pictures.read(path) for path in options.images]
    with output.plain_warnings():
        pipeline = drawing.load(options, parts)
        found = pipeline.score(images, [options.prompt] * len(images), **own, **seed)
    columns = {name: [float(value) for value in values] for name, values in found.items()}
    rows = [
        {"image": image.where, "sha256": image.sha256, **{name: values[i] for name, values in columns.items()}}
        for i, image in enumerate(images)
    ]
    if table is None:
        print(_csv(rows), end="")
    else:
        text = _csv(rows) if table.suffix == ".csv" else json.dumps(rows, indent=2) + "\n"
        data = text.encode("utf-8", "backslashreplace")  # a file's name may be of any bytes
        png_folder.save(table, data, options.overwrite)
        print(f"{table}: {count(len(rows), 'image')}")


def _csv(rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
