"""The page: a tab for every task, one gallery, and how each of its images was made.

What stands where, and which answer goes where when something is pressed; `answers` makes them.
"""

import html
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import themes

from ldm.core.config import Section
from ldm.core.errors import UserError
from ldm.sampling.params import DrawingParams
from ldm.tools.tasks import params
from ldm.tools.web import uploads
from ldm.tools.web.answers import GENERATE, Answer, Answers, Shown, said, told
from ldm.tools.web.components import Blocks, Number, component, easel, upload
from ldm.tools.web.controls import Control, controls, shown
from ldm.tools.web.examples import Examples
from ldm.tools.web.studio import Studio, new_seed

TITLES = {
    GENERATE: "Text to image",
    "img2img": "Image to image",
    "inpaint": "Inpaint",
    "outpaint": "Outpaint",
    "interpolate": "Interpolate",
    "denoise": "Denoise",
}
"""Tabs that come first, and their titles; those of all other tasks follow."""
CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
HEAD = '<meta name="color-scheme" content="light dark">'
_MODEL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "show_progress": "minimal"}
"""Events that use the model wait in one queue."""
_QUICK: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
"""Events that do not."""
_DECODING: dict[str, Any] = _QUICK | {"queue": True, "concurrency_limit": 1, "concurrency_id": "easel"}
"""Events that decode a picture, which may take hundreds of megabytes, one after the other."""
_LOOK = "() => document.getElementById('status').scrollIntoView({block: 'nearest', behavior: 'smooth'})"
_LIVE = "element.setAttribute('aria-live', 'polite')"
_SETTLE = "(status) => (status || '').includes('<progress') ? '<p>Cancelled.</p>' : status"
"""After a drawing that did not end well: if its progress is still shown, it was cut off, and its last step was told
after the press of Cancel was answered."""


def theme() -> themes.Base:
    """Colours and fonts of the page; all fonts are those of the visitor's machine."""
    return themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


class Page:
    """The page of a model."""

    def __init__(self, studio: Studio, drawing: DrawingParams, tasks: params.TasksParams, examples: Examples) -> None:
        """drawing, tasks: settings that are set at first. examples: prompts, and models that may guide."""
        self._studio, self._drawing, self._tasks, self._examples = studio, drawing, tasks, examples
        self._answers = Answers(studio, drawing, tasks, examples.guides)
        self._events: list[Any] = []

    def blocks(self) -> gr.Blocks:
        """All of it."""
        with Blocks(title="ldm", analytics_enabled=False) as blocks:
            gr.HTML(_heading(self._studio.size_px, self._examples.words), elem_id="about", apply_default_css=False)
            with gr.Row(elem_id="desk"):
                tabs = gr.Tabs(elem_id="tasks")
                with gr.Column(elem_id="results", min_width=300):
                    self._results()
            with tabs:
                for task in _order():
                    self._tab(task)
            self._events_of_results()
            blocks.unload(self._leave)
        return blocks

    # What stands on it.

    def _results(self) -> None:
        with gr.Row(elem_id="progress"):
            self._status = gr.HTML(said("Ready."), elem_id="status", js_on_load=_LIVE, apply_default_css=False)
            self._cancel = gr.Button("Cancel", elem_id="cancel", size="sm", min_width=90, scale=0, interactive=False)
        self._queue = gr.HTML(elem_id="queue", js_on_load=_LIVE)
        self._gallery = gr.Gallery(
            label="Images",
            elem_id="gallery",
            object_fit="contain",
            height="auto",
            format="png",
            interactive=False,
            buttons=["download", "fullscreen"],
        )
        self._chosen = gr.State()
        with gr.Column(visible=False, elem_id="account") as self._account:
            gr.HTML("<h2>How was this made?</h2>", apply_default_css=False)
            with gr.Row():
                self._download = gr.DownloadButton("Download the PNG", elem_id="download")
                self._replay = gr.Button("Replay", elem_id="replay")
            self._command = gr.Textbox(
                label="Command that makes it",
                elem_id="command",
                interactive=False,
                lines=1,
                max_lines=6,
                buttons=["copy"],
            )
            files: dict[str, Any] = {"file_count": "multiple", "interactive": False, "visible": False}
            self._files = gr.File(label="Files that the command names", elem_id="files", **files)
            self._rows = gr.HTML(elem_id="rows", apply_default_css=False)

    def _tab(self, task: str) -> None:
        model = None if task == GENERATE else params.class_of(task)
        fields = self._fields(task, model)
        own = [field for field in fields if field.path[0] not in DrawingParams.model_fields]
        first, seeds = ([field for field in fields if field.path[0] == name] for name in ("negative_prompt", "seed"))
        others = [field for field in fields if field not in (*own, *first, *seeds)]
        with gr.Tab(TITLES.get(task, task.replace("_", " ").capitalize()), id=task, elem_id=f"tab-{task}"):
            if model is not None:
                gr.Markdown(_about(model))
            inputs: dict[str, Any] = self._pictures(task, model)
            inputs["prompt"] = gr.Textbox(label="Prompt", elem_id=f"{task}-prompt", lines=1, max_lines=6)
            inputs |= _components(task, [*first, *own])
            with gr.Row():
                about: dict[str, Any] = {"minimum": 1, "precision": 0, "min_width": 120}
                inputs["num_images"] = Number(1, label="Images", elem_id=f"{task}-num_images", **about)
                inputs |= _components(task, [replace(seed, about="") for seed in seeds])
            with gr.Row():
                draw = gr.Button("Generate", variant="primary", elem_id=f"{task}-generate", min_width=120)
                again = gr.Button("Another seed", elem_id=f"{task}-again", min_width=120)
            with gr.Accordion("Settings", open=False, elem_id=f"{task}-settings"):
                inputs |= _components(task, others)
            self._captions(task, inputs["prompt"])
            self._events_of_tab(task, fields, inputs, draw, again)
            if "painted" in inputs:
                self._events_of_easel(task, fields, inputs)

    def _pictures(self, task: str, model: type[params.TaskParams] | None) -> dict[str, Any]:
        """Where a visitor gives pictures."""
        names = () if model is None else (*model.inputs(), *model.optional_inputs())
        found: dict[str, Any] = {}
        with gr.Row():
            for name in names:
                if name != "mask":
                    label = name.replace("_", " ").capitalize()
                    found[name] = upload(label, f"{task}-{name}")
        if "mask" in names:
            label, choices = "Mask", list(uploads.MASKS)
            found["mask"] = gr.Dropdown(choices, label=label, elem_id=f"{task}-mask", filterable=False)
            found["painted"] = easel("Paint what is to be drawn anew", f"{task}-painted")
        return found

    def _captions(self, task: str, prompt: gr.Textbox) -> None:
        if self._examples.prompts:
            samples, label = [[text] for text in self._examples.prompts], "Captions of the corpus"
            gr.Examples(samples, [prompt], label=label, api_visibility="private", elem_id=f"{task}-examples")

    def _fields(self, task: str, model: type[Section] | None) -> list[Control]:
        """The controls of a task and of its drawing."""
        skipped = () if self._studio.takes_any_size else ("size_px",)
        drawing, own = self._drawing, []
        if model is not None:
            values: params.TaskParams = getattr(self._tasks, task)
            own = controls(model, values.model_dump(), skipped=("drawing",))
            drawing = values.changes(drawing)
        folders = {"directory": self._examples.guides}
        return [*own, *controls(DrawingParams, drawing.model_dump(), skipped, folders)]

    # What happens when something is pressed.

    def _leave(self, request: gr.Request) -> None:
        """What is done for a visitor who has closed the page is not needed."""
        self._answers.cancel(_visitor(request))

    def _events_of_tab(
        self, task: str, fields: Sequence[Control], inputs: dict[str, Any], draw: gr.Button, again: gr.Button
    ) -> None:
        def work(request: gr.Request, shown_before: Any, **values: Any) -> Iterator[Any]:
            yield from _updates(self._answers.draw(task, fields, values, _visitor(request), shown_before or []))

        # A browser does what one press asks for in this order: a request that waits can be cancelled.
        for trigger in (draw.click, inputs["prompt"].submit, again.click):
            trigger(None, js=_LOOK)
            trigger(lambda: gr.update(interactive=True), None, self._cancel, **_QUICK)
        listening = self._listening() | {"inputs_kwargs": {"shown_before": self._gallery, **inputs}}
        seeded = again.click(new_seed, None, inputs["seed"], **_QUICK)
        public: dict[str, Any] = {"api_name": task}
        for trigger in (draw.click, inputs["prompt"].submit, seeded.then):
            self._events.append(self._settled(trigger(work, **listening, **public)))
            public = {"api_visibility": "private"}
        for field in dict.fromkeys(field.path[0] for field in fields if field.of_kind is not None):
            names = list(shown(fields, field, ""))

            def choose(kind: str, field: str = field) -> Any:
                updates = [gr.update(visible=is_shown) for is_shown in shown(fields, field, kind).values()]
                return updates if len(updates) > 1 else updates[0]

            inputs[f"{field}_kind"].change(choose, inputs[f"{field}_kind"], [inputs[name] for name in names], **_QUICK)

    def _events_of_easel(self, task: str, fields: Sequence[Control], inputs: dict[str, Any]) -> None:
        sizes = [field for field in fields if field.path[0] == "size_px"]
        names = [field.name for field in sizes]

        def show(path: str | None, *values: Any) -> Any:
            try:
                return self._answers.easel(task, path, sizes, dict(zip(names, values, strict=True)))
            except UserError:  # such as a size that is half written
                return gr.skip()

        given = [inputs[name] for name in ("image", *names)]
        for each in given:
            each.change(show, given, inputs["painted"], **_DECODING)

    def _events_of_results(self) -> None:
        def replay(request: gr.Request, path: str) -> Iterator[Any]:
            yield from _updates(self._answers.replay(path, _visitor(request)))

        def explain(chosen: gr.SelectData, gallery: Any) -> Any:
            path = gallery[chosen.index][0]
            try:
                command, files, rows = self._answers.explain(path)
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from None
            return gr.update(visible=True), path, path, command, gr.update(value=files, visible=bool(files)), rows

        def cancel(request: gr.Request) -> Any:
            return self._answers.cancel(_visitor(request)), gr.update(interactive=False)

        account = [self._account, self._chosen, self._download, self._command, self._files, self._rows]
        self._gallery.select(explain, self._gallery, account, **_QUICK)
        replayed = self._settled(
            self._replay.click(replay, self._chosen, api_visibility="private", **self._listening())
        )
        stopped = [self._status, self._cancel]
        self._cancel.click(cancel, None, stopped, cancels=[*self._events, replayed], api_name="cancel", queue=False)

    def _settled(self, drawing: Any) -> Any:
        """The same event, after whose end the status shows no progress."""
        drawing.failure(None, self._status, self._status, js=_SETTLE)
        return drawing

    def _listening(self) -> dict[str, Any]:
        outputs = [self._status, self._gallery, self._account, self._cancel]
        return {"outputs": outputs, "show_progress_on": self._queue, "trigger_mode": "once", **_MODEL}


def _updates(answers: Iterator[Answer]) -> Iterator[Any]:
    """Status, gallery, account and button to cancel; the last ones hold all, for a program that called."""
    status, shown_last = said(""), None
    for (status, gallery), mistake in told(answers):
        shown_last = gallery or shown_last
        yield status, *_changed(gallery), gr.update(interactive=mistake is None)
        if isinstance(mistake, UserError):
            # For a program, too: who looks at the page has been told.
            raise gr.Error(str(mistake), visible=False, print_exception=False) from None
    yield status, gr.skip() if shown_last is None else shown_last, gr.skip(), gr.update(interactive=False)


def _changed(gallery: list[Shown] | None) -> tuple[Any, Any]:
    """Gallery and account, if the gallery changes. The place of the image that was chosen holds another one now."""
    if gallery is None:
        return gr.skip(), gr.skip()
    return gr.Gallery(gallery, selected_index=None), gr.update(visible=False)


def _order() -> list[str]:
    return [*TITLES, *(name for name in params.names() if name not in TITLES)]


def _components(task: str, fields: Sequence[Control]) -> dict[str, Any]:
    return {field.name: component(field, task) for field in fields}


def _heading(size_px: tuple[int, int], words: Sequence[str]) -> str:
    known = ""
    if words:
        listed = html.escape(", ".join(words))
        known = f"<details><summary>It knows {len(words)} words</summary><p>{listed}</p></details>"
    return f"<h1>Draw with ldm</h1><p>A model of images of {size_px[0]} x {size_px[1]} pixels.</p>{known}"


def _about(model: type[params.TaskParams]) -> str:
    text = " ".join((model.__doc__ or "").split("\n\n")[0].split())
    return f"{text.split('. ')[0].rstrip('.')}."


def _visitor(request: gr.Request) -> str:
    return request.session_hash or ""
