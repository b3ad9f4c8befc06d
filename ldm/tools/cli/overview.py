"""What `ldm` says without a command: five things to do next, given what is here. Nothing is loaded to find out."""

import argparse
import json
import shlex
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.core import config, workspace
from ldm.core.errors import ConfigError
from ldm.core.params import PathsParams
from ldm.tools import trial
from ldm.tools.cli.colours import painted
from ldm.tools.cli.options import Commands, examples
from ldm.tools.model.parts import PASSPORT

EXAMPLES = examples(
    "ldm    # what can be done here next",
    'ldm generate "a small red circle above a large blue square" --output pictures',
    "ldm generate --help    # every option of a command, with examples",
)
_NUM_STEPS = 5
_ANY_PROMPT = "a red star"


@dataclass(frozen=True)
class Step:
    """A command, and what it does."""

    command: str
    does: str


def show(options: argparse.Namespace) -> None:
    """Print the steps. options.parser: the parser of all commands."""
    (commands,) = (action for action in options.parser._actions if isinstance(action, Commands))
    where, found = steps(Path(), commands.choices)
    print(f"{where} What you can do next:\n")
    for step in found:
        print(f"  {painted(step.command, 'bold', sys.stdout)}\n      {step.does}")
    print("\nAll commands: ldm --help; one of them in full: ldm COMMAND --help")


def steps(root: Path, verbs: Collection[str]) -> tuple[str, list[Step]]:
    """What a folder is, in a sentence, and the five steps that come first there. verbs: commands that `ldm` has."""
    if (root / PASSPORT).is_file():
        where, found = "This folder holds a model.", _in_model_folder()
    elif (root / config.PARAMS).is_file() and (root / config.PATHS).is_file():
        where, found = _in_repository(root)
    else:
        where, found = "This folder holds neither a repository of ldm nor a model.", _elsewhere()
    known = [step for step in found if _verb(step.command) is None or _verb(step.command) in verbs]
    return where, known[:_NUM_STEPS]


def _verb(command: str) -> str | None:
    """The command of `ldm` that a step is, or None."""
    words = command.split()
    return words[1] if words[0] == "ldm" else None


def _in_model_folder() -> Iterator[Step]:
    yield _generate(_ANY_PROMPT, " --model .")
    yield Step("ldm web --model .", "a page to play with")
    yield Step("ldm img2img --help", "draw from a picture; likewise inpaint, outpaint, upscale, interpolate, denoise")
    yield Step("ldm export pipeline --format diffusers --model .", "write it as other tools load it")
    yield from _anywhere()


def _elsewhere() -> Iterator[Step]:
    yield _generate(_ANY_PROMPT, " --model DIR")
    yield Step("cd REPOSITORY && ldm", "where the models of this project are trained")
    yield from _anywhere()
    yield Step("ldm --version", "which version this is")


def _anywhere() -> Iterator[Step]:
    yield Step("ldm doctor", "what this machine offers, and what to set for it")
    yield Step('eval "$(ldm completion bash)"', "complete commands and options by Tab")
    yield Step("ldm generate --help", "every option of a drawing, with examples")


def _in_repository(root: Path) -> tuple[str, Iterator[Step]]:
    try:
        paths = config.read(PathsParams, "paths", root / config.PATHS)
        params: dict[str, Any] = config.Document(root / config.PARAMS).data
    except ConfigError:
        return "This repository has params that cannot be read.", iter([Step("ldm check", "what is wrong in them")])
    folders = (paths.unet, paths.autoencoder, paths.clip, paths.embeddings)
    is_whole = all((root / folder / PASSPORT).is_file() for folder in folders)
    is_brought = (root / paths.model / PASSPORT).is_file()
    where = "This repository has a trained model." if is_whole or is_brought else "This repository has no model yet."
    first = _unfinished(root, paths)
    if not (is_whole or is_brought):
        return where, iter([*first, *_without_model(root, params)])
    model = "" if is_whole else f" --model {paths.model}"
    is_measured = (root / paths.evaluation / "metrics.json").is_file()
    return where, iter([*first, *_with_model(trial.example(root) or _ANY_PROMPT, model, is_measured)])


def _unfinished(root: Path, paths: PathsParams) -> list[Step]:
    """What to do about the training that saved a state last, unless it is finished."""
    states = {
        path: _saved_at(path) for path in (root / workspace.runs(paths.runs)).glob(f"train_*/[!.]*/{workspace.STATES}")
    }
    newest = max(states, key=lambda path: states[path], default=None)
    if newest is None or _is_finished(newest):
        return []
    stage, step = newest.parts[-3], newest.name.removeprefix("step-").lstrip("0")
    watch = Step("ldm watch", f"look at {stage} while it runs")
    return [Step("dvc repro", f"go on with {stage} after step {step or '0'}, if nothing runs (`ldm runs`)"), watch]


def _saved_at(state: Path) -> float:
    try:
        return state.stat().st_mtime
    except FileNotFoundError:  # the training removes it just now
        return 0.0


def _is_finished(state: Path) -> bool:
    """Whether it is the last state of its training, which `machine.keep_finished_states` keeps."""
    from ldm.tools.check import sections

    try:
        made_by = json.loads((state.parent / "fingerprint.json").read_bytes())
    except (OSError, ValueError):
        return False
    return sections.num_steps(made_by) == int(state.name.removeprefix("step-"))


def _without_model(root: Path, params: dict[str, Any]) -> Iterator[Step]:
    if (name := trial.remote(root)) is not None:
        yield Step("make try", f"fetch the model from the DVC remote {name}, and draw")
    kind = _value(params, "prepare", "corpus", "kind")
    yield Step("make demo", f"train the model of params.yaml ({kind}), measure it, and show pictures")
    yield Step("ldm recipe", "list other trainings: a tiny one, drawings, your own images, ...")
    yield Step("ldm check", "whether params.yaml can run, and what is wrong where")
    yield from _anywhere()


def _with_model(prompt: str, model: str, is_measured: bool) -> Iterator[Step]:
    yield _generate(prompt, model)
    yield Step(f"ldm web{model}", "a page to play with")
    if is_measured:
        yield Step("ldm report", "one page: what was trained on what, scores, pictures")
        yield Step("dvc metrics show", "how good it is: docs/results.md says what the numbers mean")
    yield Step("ldm inpaint --help", "draw into a picture; likewise img2img, upscale, interpolate, ...")
    yield Step("ldm recipe", "list other trainings: drawings, your own images, ...")
    yield from _anywhere()


def _generate(prompt: str, model: str) -> Step:
    return Step(f"ldm generate {_quoted(prompt)}{model} --output pictures", "draw a picture; every prompt is one")


def _quoted(prompt: str) -> str:
    """As a shell reads it: in double quotes, unless they would mean something."""
    return shlex.quote(prompt) if set(prompt) & set('"$`\\!') else f'"{prompt}"'


def _value(params: Any, *keys: str) -> Any:
    for key in keys:
        params = params.get(key) if isinstance(params, dict) else None
    return params
