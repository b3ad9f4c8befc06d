"""How an image was made, as its PNG says: rows to read, and the command that makes it again."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from ldm.sampling.origin import Origin
from ldm.sampling.params import DrawingParams
from ldm.tools.cli.options import flag
from ldm.tools.tasks.params import TasksParams
from ldm.tools.web.controls import title

Row = tuple[str, str]


def rows(origin: Origin) -> list[Row]:
    """Names and values, the prompt first."""
    found = [("Prompt", origin.prompt or "(none)"), ("Task", (origin.task or "text to image").replace("_", " "))]
    found += [(title(name), _shown(value)) for name, value in origin.task_settings.items()]
    found += [(title(name), _shown(value)) for name, value in origin.settings.items()]
    found += [("Noise", f"number {origin.prompt_number} of its seed")]
    found += [("Place", f"{origin.position + 1} of the {origin.batch_size} that were drawn together")]
    found += [(f"{title(name)} (SHA-256)", sha256) for name, sha256 in origin.pictures.items()]
    found += [(f"Adapter {sha256}", f"times {scale:g}") for sha256, scale in origin.adapters.items()]
    return found + [(f"Model: {name} (SHA-256)", sha256) for name, sha256 in origin.models.items()]


def command(origin: Origin, drawing: DrawingParams, tasks: TasksParams, mask: str = "mask.png") -> str:
    """The command of `ldm` that makes it, and the images that were drawn with it, by a model with these settings. Files
    of pictures have their names as placeholders. mask: a file, or one of `masks.NAMES`."""
    words: list[str] = []
    others = drawing
    if origin.task is not None:
        task = getattr(tasks, origin.task)
        others = task.changes(drawing)
        words += [word for name in origin.pictures for word in (flag(name), mask if name == "mask" else f"{name}.png")]
        words += _options(origin.task_settings, task.model_dump(mode="json", exclude={"drawing"}))
    words += _options(origin.settings, others.model_dump(mode="json"))
    first = origin.prompt_number - origin.position
    per_prompt = origin.task_settings.get("num_frames", 1)
    num = origin.batch_size // per_prompt
    words += ["--num-images", str(num)] if num > 1 else []
    words += ["--start-number", str(first)] if first else []
    start = ["ldm", (origin.task or "generate").replace("_", "-")]
    # A prompt such as "-x" is no option if it stands behind "--".
    first_of_all = not origin.prompt.startswith("-")
    prompt = [origin.prompt] if first_of_all else ["--", origin.prompt]
    options = [*words, "--output", "pictures"]
    return shlex.join([*start, *prompt, *options] if first_of_all else [*start, *options, *prompt])


def _options(values: Mapping[str, Any], usual: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if value == usual.get(name, value) and name in usual:
            continue
        match value:
            case None:
                continue
            case bool():
                yield flag(name) if value else f"--no-{flag(name)[2:]}"
            case list():
                yield from (flag(name), *map(str, value))
            case dict():
                pairs = [f"{key}={_json(one)}" for key, one in value.items() if key != "kind"]
                yield from (flag(name), ",".join([value["kind"], *pairs]))
            case str() if value.startswith("-"):
                yield f"{flag(name)}={value}"  # as a word of its own it would be an option
            case _:
                yield from (flag(name), str(value))


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _shown(value: Any) -> str:
    match value:
        case None | "":
            return "(none)"
        case dict():
            pairs = ", ".join(f"{key} {_json(one)}" for key, one in value.items() if key != "kind")
            return f"{value['kind']} ({pairs})" if pairs else value["kind"]
        case list():
            return " to ".join(map(str, value))
        case _:
            return str(value)
