"""Params models as controls of a page."""

from typing import Any, Literal

import pytest
from pydantic import Field

from ldm.core.config import Section
from ldm.core.errors import ConfigError
from ldm.sampling import samplers
from ldm.sampling.params import DrawingParams
from ldm.tools.check.check import SECTIONS
from ldm.tools.recipe import document
from ldm.tools.tasks import params
from ldm.tools.web.controls import Control, controls, settings, shown
from tests.import_closure import ROOT

DEFAULT = document(ROOT / "recipes/default.yaml")
DRAWING: DrawingParams = DEFAULT.read(SECTIONS["sample"], "sample").drawing
TASKS: params.TasksParams = DEFAULT.read(params.TasksParams, "tasks")
FOLDERS = {"directory": ["models/guidance/worse"]}


def of_drawing(folders: dict[str, list[str]] = FOLDERS) -> list[Control]:
    return controls(DrawingParams, DRAWING.model_dump(), folders=folders)


def values_of(found: list[Control]) -> dict[str, Any]:
    return {control.name: control.value for control in found}


def named(found: list[Control], name: str) -> Control:
    return next(control for control in found if control.name == name)


def test_every_field_of_a_drawing_is_a_control_and_untouched_controls_change_nothing() -> None:
    found = of_drawing()
    assert {control.path[0] for control in found} == set(DrawingParams.model_fields)
    assert DRAWING.changed(settings(found, values_of(found))) == DRAWING


def test_every_field_of_every_task_is_a_control() -> None:
    for name in params.names():
        task: params.TaskParams = getattr(TASKS, name)
        found = controls(type(task), task.model_dump(), skipped=("drawing",))
        assert {control.path[0] for control in found} == set(type(task).model_fields) - {"drawing"}
        assert task.changed(settings(found, values_of(found))) == task


@pytest.mark.parametrize("model", samplers.kinds(), ids=lambda model: model.__name__)
def test_every_sampler_can_be_chosen_with_its_fields(model: type[Section]) -> None:
    found, kind = of_drawing(), model.model_fields["kind"].annotation.__args__[0]  # pyright: ignore
    given = values_of(found) | {"sampler_kind": kind}
    for control in found:
        if control.path[:2] == ("sampler", kind):
            middle = ((control.low or 0) + min(control.high or 10, 10)) / 2
            given[control.name] = round(middle) if control.is_whole else middle
    sampler = DRAWING.changed(settings(found, given)).sampler
    assert isinstance(sampler, model)
    keys = {key for key in model.model_fields if key != "kind"}
    assert {name for name, is_shown in shown(found, "sampler", kind).items() if is_shown} == {
        f"sampler_{kind}_{key}" for key in keys
    }


def test_limits_are_those_of_the_model() -> None:
    found = of_drawing()
    steps, scale, seed = (named(found, name) for name in ("num_steps", "guidance_scale", "seed"))
    assert (steps.low, steps.high, steps.is_whole, steps.form) == (1, 1000, True, "number")
    assert (scale.low, scale.high, scale.is_whole) == (0, 100, False)
    assert (seed.low, seed.high) == (0, 2**63 - 1)
    assert (named(found, "size_px_height").low, named(found, "size_px_height").high) == (1, 4096)
    assert named(found, "guidance_rescale").form == "slider"
    for name, value in (("num_steps", 0), ("guidance_scale", 100.5), ("num_steps", None)):
        with pytest.raises(ConfigError, match=f"{name}: found .*; expected"):
            DRAWING.changed(settings(found, values_of(found) | {name: value}))


def test_what_a_browser_sends_is_read_as_it_is_meant() -> None:
    found = of_drawing()
    sent = values_of(found) | {"num_steps": 9.0, "size_px_height": "64", "size_px_width": "32", "dynamic_threshold": ""}
    drawing = DRAWING.changed(settings(found, sent))
    assert (drawing.num_steps, drawing.size_px, drawing.dynamic_threshold) == (9, (64, 32), None)
    with pytest.raises(ConfigError, match='dynamic_threshold: found "much"; expected a number'):
        DRAWING.changed(settings(found, sent | {"dynamic_threshold": "much"}))
    half = values_of(found) | {"size_px_height": "64"}
    with pytest.raises(ConfigError, match=r"size_px\.1: found null"):
        DRAWING.changed(settings(found, half))


def test_kinds_that_need_a_folder_are_offered_where_there_is_one() -> None:
    kinds = {
        bool(folders["directory"]): named(of_drawing(folders), "guidance_kind").choices
        for folders in (FOLDERS, {"directory": []})
    }
    assert kinds[True] == ("classifier_free", "ho_salimans", "autoguidance", "classifier")
    assert kinds[False] == ("classifier_free", "ho_salimans")
    folder = named(of_drawing(), "guidance_autoguidance_directory")
    assert (folder.form, folder.choices, folder.is_shown) == ("choice", ("models/guidance/worse",), False)


class Sharp(Section):
    """One kind."""

    kind: Literal["sharp"]
    """Its name."""


class Soft(Section):
    """Another kind."""

    kind: Literal["soft"]
    """Its name."""
    num_rings: int = Field(gt=0, lt=9)
    """How many `rings`. A ring is round."""


class Look(Section):
    """A model of this test."""

    edge: Sharp | Soft = Field(discriminator="kind")
    """What edges are like."""
    is_bold: bool
    """Whether it is bold."""


def test_a_new_field_is_a_new_control() -> None:
    found = controls(Look, {"edge": {"kind": "soft", "num_rings": 3}, "is_bold": True})
    assert [(control.name, control.form) for control in found] == [
        ("edge_kind", "choice"),
        ("edge_soft_num_rings", "number"),
        ("is_bold", "switch"),
    ]
    rings = found[1]
    assert (rings.label, rings.about, rings.low, rings.high) == ("Edge: rings", "How many rings.", 1, 8)
    assert settings(found, values_of(found) | {"edge_kind": "sharp"}) == {"edge": {"kind": "sharp"}, "is_bold": True}
