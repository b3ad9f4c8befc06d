"""Gradio's components, as far as this page has others of its own.

A subclass has no `__init__` of its own: Gradio tells the page those options alone that stand in its signature.

Gradio decodes and checks what is sent before a function sees it, and answers in its own words. Here pictures reach our
decoder as the bytes that were sent, and numbers our params models, whose messages say what is legal.
"""

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import component_meta
from gradio.components import Component
from gradio.components.base import server
from gradio.components.image_editor import AcceptBlobs, EditorData, EditorDataBlobs
from gradio.utils import get_upload_folder

from ldm.core.errors import ConfigError
from ldm.tools.web.controls import Control

# Gradio writes a stub file beside the source of every component class: nothing that a program does when it runs.
component_meta.create_or_modify_pyi = lambda *_: None
_MOST_PAINTED_BYTES = 2**26
"""Layers that are on their way from browsers, together."""


class Blocks(gr.Blocks):
    """A page that reads no files but those in the folder of its visitors."""

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """As Gradio does it. Gradio checks paths of launched pages alone, and fetches those that are addresses."""
        try:
            check_paths(inputs, Path(get_upload_folder()))
        except ConfigError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)


def check_paths(sent: Any, folder: Path) -> None:
    """ConfigError: something that was sent names a file that is not in the folder."""
    for path in _paths(sent):
        if not Path(path).is_absolute() or not Path(path).resolve().is_relative_to(folder.resolve()):
            raise ConfigError("picture", "a file that nobody gave to this page", "one that was", "choose it anew")


def _paths(sent: Any) -> Iterator[str]:
    match sent:
        case {"path": str(path), **others}:
            yield path
            yield from _paths(others)
        case dict():
            yield from _paths(list(sent.values()))
        case list():
            for each in sent:
                yield from _paths(each)
        case _:
            return


class Number(gr.Number):
    """A number, in whatever range."""

    is_template = True

    def preprocess(self, payload: float | None) -> float | int | None:
        """As it was sent."""
        return payload


class Slider(gr.Slider):
    """A number between two others, unless somebody sends another one."""

    is_template = True

    def preprocess(self, payload: float) -> float:
        """As it was sent."""
        return payload


class Upload(gr.Image):
    """A picture of a visitor, as the path of the file that was sent."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        """The path in Gradio's cache."""
        return None if payload is None else payload.path


class Easel(gr.ImageEditor):
    """A picture to paint on with a white brush, as the bytes of the layer that was painted."""

    is_template = True

    def preprocess(self, payload: EditorData | None) -> Any:
        """The bytes of the layer; None if nothing was painted."""
        if payload is None:
            return None
        sent = payload if payload.id is None else self.blob_storage.pop(payload.id, None)
        layer = next(iter(sent.layers or []), None) if sent is not None else None
        if layer is None or isinstance(layer, bytes):
            return layer
        with open(layer.path, "rb") as file:
            return file.read()

    @server  # pyright: ignore[reportUntypedFunctionDecorator]
    def accept_blobs(self, data: AcceptBlobs) -> None:
        """Keep the first layer, which comes before the form that names its id. Gradio's own keeps all that is sent, at
        any index."""
        if data.data.get("type") == "layer" and str(data.data.get("index")) == "0":
            layer = data.files[0][1]
            self.blob_storage[data.data["id"]] = EditorDataBlobs(background=None, layers=[layer], composite=None)


def upload(label: str, elem_id: str) -> Upload:
    """Where a picture is given."""
    return Upload(
        type="filepath",
        format="png",
        label=label,
        elem_id=elem_id,
        sources=["upload", "clipboard"],
        buttons=[],
        interactive=True,
        height=220,
    )


def easel(label: str, elem_id: str) -> Easel:
    """Where a picture is painted on."""
    made = Easel(
        label=label,
        elem_id=elem_id,
        format="png",
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=60, colors=["#ffffff"], default_color="#ffffff", color_mode="fixed"),
        canvas_size=(512, 512),
        buttons=[],
        interactive=True,
    )
    made.blob_storage = _Newest(_MOST_PAINTED_BYTES)
    return made


class _Newest(OrderedDict[str, EditorDataBlobs]):
    """Paintings by their ids: the newest ones, as many as fit."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__()
        self._num_bytes = num_bytes

    def __setitem__(self, key: str, value: EditorDataBlobs) -> None:
        super().__setitem__(key, value)
        while sum(len(layer or b"") for painting in self.values() for layer in painting.layers) > self._num_bytes:
            self.popitem(last=False)


def component(control: Control, prefix: str) -> Component:
    """What shows a control. Its id is the prefix and the name of the control."""
    common: dict[str, Any] = {
        "label": control.label,
        "info": control.about or None,
        "elem_id": f"{prefix}-{control.name}",
        "min_width": 140,
        "visible": control.is_shown,
    }
    match control.form:
        case "choice":
            return gr.Dropdown(list(control.choices), value=control.value, filterable=False, **common)
        case "switch":
            return gr.Checkbox(value=control.value, **common)
        case "text":
            value = "" if control.value is None else str(control.value)
            return gr.Textbox(value=value, lines=1, max_lines=4, placeholder="none" * control.is_optional, **common)
        case "slider":
            return Slider(control.low or 0, control.high or 1, value=control.value, step=control.step, **common)
        case "number":
            limits = {"minimum": control.low, "maximum": control.high, "step": control.step}
            return Number(value=control.value, precision=0 if control.is_whole else None, **limits, **common)
