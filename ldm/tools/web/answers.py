"""What the page answers when something is pressed: what stands in its status, its gallery and its account."""

import html
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradio import processing_utils
from gradio.utils import get_upload_folder

from ldm.core import images
from ldm.core.errors import ConfigError, Interrupted, UserError
from ldm.sampling.origin import Origin
from ldm.sampling.params import DrawingParams
from ldm.sampling.prompts import shortened
from ldm.tools.tasks import params
from ldm.tools.tasks.pictures import Picture
from ldm.tools.web import account, uploads
from ldm.tools.web.controls import Control, settings
from ldm.tools.web.studio import Event, Made, Note, Progress, Replayed, Request, Studio

GENERATE = "generate"
"""The tab of text to image, which is no task of section `tasks`."""
MOST_SHOWN = 48
"""Images in the gallery of a visitor."""
_PAUSE_S = 0.1
"""Between steps that are told. Small networks do hundreds per second; a browser would take as long to show them."""

Values = Mapping[str, Any]
Shown = tuple[str, str]
"""A file of the gallery, and its caption."""
Answer = tuple[str, list[Shown] | None]
"""The status in HTML, and the gallery if it changes."""


class Answers:
    """Answers to visitors. A gallery is what the browser of a visitor holds: no list of it is kept here."""

    def __init__(
        self, studio: Studio, drawing: DrawingParams, tasks: params.TasksParams, guides: Sequence[str]
    ) -> None:
        """drawing, tasks: settings of the model. guides: folders of models that replays may name."""
        self._studio, self._drawing, self._tasks, self._guides = studio, drawing, tasks, frozenset(guides)

    def draw(
        self, task: str, fields: Sequence[Control], values: Values, visitor: str, before: Sequence[Shown]
    ) -> Iterator[Answer]:
        """Draw what the values of a tab ask for. UserError: they are wrong, or the visitor cancelled it."""
        if self._studio.limits.is_full(Path(get_upload_folder())):
            raise ConfigError("disk of the page", "full", "room for an image", "ask again in an hour")
        given = settings(fields, values)
        request = Request(
            None if task == GENERATE else task,
            values["prompt"] or "",
            _whole(values["num_images"]),
            given,
            self._pictures(task, given, values),
        )
        gallery = [shown for shown in before if Path(shown[0]).exists()]  # the time of others is over
        notes, num_made = list[str](), 0
        for event in _paced(self._studio.draw(request, visitor)):
            if isinstance(event, Made):
                num_made += 1
                gallery = [_shown(event.png), *gallery][:MOST_SHOWN]
                yield said(f"{num_made} image{'s' if num_made != 1 else ''} made.", notes), gallery
            elif isinstance(event, Note):
                notes.append(event.text)
            else:
                yield _progress(event), None

    def replay(self, path: str, visitor: str) -> Iterator[Answer]:
        """Make the image of a file again. UserError: that cannot be."""
        for event in _paced(self._studio.replay(uploads.data_of(path, "image"), visitor, self._guides)):
            yield _progress(event), None

    def cancel(self, visitor: str) -> str:
        """The status after a visitor cancelled what is done for them; what waited is gone too."""
        self._studio.cancel(visitor)
        return said("Cancelled.")

    def easel(self, task: str, path: str | None, sizes: Sequence[Control], values: Values) -> Any:
        """What an editor shows of a picture: the part that a request takes, whose size the values of these controls
        say. None = nothing. ConfigError: the size is illegal or too large."""
        if path is None:
            return None
        size_px = self._studio.size_of(task, settings(sizes, values))
        try:
            picture = uploads.read(path, "image", self._studio.limits)
        except UserError:  # which the visitor is told when something is to be drawn
            return None
        pixels = uploads.magnified(picture, size_px)
        return {"background": pixels, "layers": [], "composite": pixels}

    def explain(self, path: str) -> tuple[str, list[str], str]:
        """How the image of a file was made: the command that makes it again, files that it names and that no visitor
        has, and a table. UserError: it is gone, or was not made here."""
        origin = Origin.read(uploads.data_of(path, "image"), "image")
        mask, files = self._mask(origin)
        cells = "".join(
            f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
            for name, value in account.rows(origin)
        )
        command = account.command(origin, self._drawing, self._tasks, mask)
        return command, files, f"<table><tbody>{cells}</tbody></table>"

    def _mask(self, origin: Origin) -> tuple[str, list[str]]:
        """What stands for the mask of an image in its command, and files of mask and image as the model saw them, as
        far as they are still here."""
        left = self._studio.pictures.left_of(origin)
        name = uploads.mask_name(left["mask"]) if "mask" in left else None
        needed = [key for key in left if "mask" in origin.pictures and (key != "mask" or name is None)]
        return name or "mask.png", [_file(images.encode_png(left[key].pixels), f"{key}.png") for key in needed]

    def _pictures(self, task: str, given: Values, values: Values) -> dict[str, Picture]:
        """The pictures of a request; a mask comes with the image as the model sees it, so that both have one size."""
        if task == GENERATE:
            return {}
        model, limits = params.class_of(task), self._studio.limits
        names = [name for name in (*model.inputs(), *model.optional_inputs()) if name != "mask"]
        needed = [name for name in names if name in model.inputs() or values[name] is not None]
        found = {name: uploads.read(values[name], name, limits) for name in needed}
        if "mask" not in model.inputs():
            return found
        size_px = self._studio.size_of(task, given)
        image, _ = uploads.fitted(found["image"], size_px, "image")
        mask, _ = uploads.mask(values["mask"], values["painted"], size_px, limits)
        return {"image": image, "mask": mask}


def _whole(number: Any) -> int:
    """The number of images, as a browser sends it. ConfigError: it is none."""
    if isinstance(number, int | float) and float(number).is_integer():
        return int(number)
    found = "nothing" if number is None else repr(number)
    raise ConfigError("number of images", f"found {found}", "an integer >= 1", "write one, such as 1")


def _paced(events: Iterator[Event]) -> Iterator[Event]:
    """The same events, but of steps that follow one another at once only the first."""
    earliest = 0.0
    for event in events:
        if not isinstance(event, Progress):
            yield event
        elif (now := time.monotonic()) >= earliest:
            earliest = now + _PAUSE_S
            yield event


def told(answers: Iterator[Answer]) -> Iterator[tuple[Answer, Exception | None]]:
    """The same answers; an error becomes the last one, which comes with it. What is no mistake of a visitor is raised
    after that, too."""
    yield (said("Starting."), None), None
    try:
        for answer in answers:
            yield answer, None
    except Interrupted as error:
        yield (said(f"{error.args[1].capitalize()}."), None), None
    except UserError as error:
        yield (_mistake(str(error)), None), error
    except Exception as error:  # of the program or the machine: whoever runs it finds the traceback
        yield (_mistake("this failed, and the log of the server says why"), None), error
        raise


def _mistake(text: str) -> str:
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in text.splitlines())
    return f'<div class="mistake" role="alert">{lines}</div>'


def said(text: str, notes: Sequence[str] = ()) -> str:
    """Lines of the status."""
    return "".join(f"<p>{html.escape(line)}</p>" for line in [text, *notes])


def _progress(event: Event) -> str:
    match event:
        case Progress(done, total):
            text = f"Step {done} of {total}"
            return f'{said(text)}<progress max="{total}" value="{done}" aria-label="{text}"></progress>'
        case Replayed(num_values, 0):
            return said(f"Made again: equal in all {num_values} values.")
        case Replayed(num_values, num_different):
            return said(f"Made again: {num_different} of {num_values} values differ.")
        case Note(text):
            return said(text)
        case Made():
            raise AssertionError("an image is shown, not told")


def _shown(png: bytes) -> Shown:
    """The gallery serves the bytes as they are, under a name that says what they are."""
    origin = Origin.read(png, "image")
    seed, number = origin.settings["seed"], origin.prompt_number
    path = _file(png, f"{origin.task or 'image'}-{seed}-{number:04d}.png")
    place = f", image {number + 1}" if origin.batch_size > 1 or number else ""
    return path, f"{shortened(origin.prompt) or 'no prompt'} (seed {seed}{place})"


def _file(png: bytes, name: str) -> str:
    """The path of a file of this name that visitors may read."""
    return processing_utils.save_bytes_to_cache(png, name, get_upload_folder())
