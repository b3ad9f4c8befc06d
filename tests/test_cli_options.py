"""Options that follow from the fields of params models."""

import argparse
from typing import Annotated, Literal

import pytest
from pydantic import Field

from ldm.core.config import Document, Section
from ldm.core.errors import ConfigError
from ldm.sampling.params import DrawingParams, SampleParams
from ldm.tools.cli import drawing, generate, options, params, replay, results, score, tasks
from ldm.tools.tasks.params import names
from tests.import_closure import ROOT


class Sharp(Section):
    """One kind."""

    kind: Literal["sharp"]
    """Its name."""
    edges: list[int]
    """Where."""
    level: float
    """How much."""


class Soft(Section):
    """Another kind."""

    kind: Literal["soft"]
    """Its name."""


class Look(Section):
    """A model with a field of every type."""

    count: int = Field(ge=1)
    """How many,
    100 % of them."""
    share: float | None
    """How much."""
    title: str
    """A text."""
    loud: bool
    """Whether."""
    colour: Literal["red", "blue"]
    """Which."""
    range_of: tuple[float, float]
    """From and to."""
    style: Annotated[Sharp | Soft, Field(discriminator="kind")]
    """What style."""


def parsed(*arguments: str) -> dict[str, object]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    options.add_fields(parser, Look)
    return options.given(parser.parse_args(arguments), Look)


def test_every_field_is_an_option_and_only_what_is_given_is_passed_on() -> None:
    assert parsed() == {}
    assert parsed("--count", "3", "--share", "0.5", "--title", "7", "--no-loud", "--colour", "red") == {
        "count": 3,
        "share": 0.5,
        "title": "7",
        "loud": False,
        "colour": "red",
    }
    assert parsed("--range-of", "0.1", "1", "--style", "sharp,edges=[1,2],level=0.5") == {
        "range_of": [0.1, 1.0],
        "style": {"kind": "sharp", "edges": [1, 2], "level": 0.5},
    }
    assert parsed("--style", "soft") == {"style": {"kind": "soft"}}
    for wrong in (["--count", "x"], ["--colour", "green"], ["--style", "sharp,level=high"]):
        with pytest.raises(argparse.ArgumentError):
            parsed(*wrong)


def test_help_is_the_docstring_and_the_kinds() -> None:
    parser = argparse.ArgumentParser()
    options.add_fields(parser, Look, skipped=("title",))
    text = " ".join(parser.format_help().split())
    assert "--count N How many, 100 % of them." in text and "--title" not in text
    assert "What style. One of: sharp,edges=VALUE,level=VALUE, soft" in text


def test_every_field_of_a_drawing_is_an_option_of_all_that_draw() -> None:
    for group in (generate, tasks):
        parser = argparse.ArgumentParser()
        commands = parser.add_subparsers(parser_class=options.Command)
        group.add(commands)
        for command in commands.choices.values():
            words = command.format_help().split()
            assert {f"--{name.replace('_', '-')}" for name in DrawingParams.model_fields} <= set(words)


@pytest.mark.parametrize(
    ("group", "verbs"),
    [
        (generate, ["generate"]),
        (tasks, [name.replace("_", "-") for name in names()]),
        (replay, ["replay"]),
        (params, ["check", "recipe"]),
        (score, ["score"]),
        (results, ["verify", "runs", "resume"]),
    ],
)
def test_each_group_adds_its_commands(group: object, verbs: list[str]) -> None:
    commands = argparse.ArgumentParser().add_subparsers(parser_class=options.Command)
    group.add(commands)  # type: ignore[attr-defined]
    assert list(commands.choices) == verbs


def test_eta_is_that_of_the_sampler_and_refused_if_it_has_none() -> None:
    base = Document(ROOT / "params.yaml").read(SampleParams, "sample").drawing

    def settings(*arguments: str, **changes: object) -> dict[str, object]:
        parser = argparse.ArgumentParser()
        drawing.add_settings(parser)
        return drawing.settings_of(parser.parse_args(arguments), base.changed(changes))

    assert settings("--sampler", "ddim", "--eta", "0.5") == {"sampler": {"kind": "ddim", "eta": 0.5}}
    of_params = settings("--eta", "0.2", sampler={"kind": "euler_ancestral", "eta": 1})
    assert of_params == {"sampler": {"kind": "euler_ancestral", "eta": 0.2}}
    with pytest.raises(ConfigError, match="--eta: sampler heun, which has no eta; expected one of ddim, euler_anc"):
        settings("--sampler", "heun", "--eta", "0.5")
    with pytest.raises(ConfigError, match="--eta: sampler heun, which has no eta"):
        settings("--eta", "0.5", sampler={"kind": "heun"})
