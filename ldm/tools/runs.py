"""`ldm runs` lists what is saved under `runs/`; `ldm resume` lets the next run of a training resume from a state of
other params, inputs or code."""

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.compute import fingerprint, saved, state
from ldm.core import config, locks, workspace
from ldm.core.errors import ConfigError, IntegrityError, MachineError
from ldm.core.params import MachineParams, PathsParams
from ldm.corpora import units
from ldm.corpora.params import PrepareParams
from ldm.tools.check import check, sections

_SECONDS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}


@dataclass(frozen=True)
class Kept:
    """A run directory: which process works in it, and how the params and code of its states differ from today's, or why
    that cannot be read."""

    directory: Path
    holder: str | None
    made_by: dict[str, Any]
    differs: dict[str, list[Any]]
    damage: IntegrityError | None = None

    @property
    def name(self) -> str:
        """`<stage>/<hash>`, as `ldm resume` takes it."""
        return f"{self.directory.parent.name}/{self.directory.name}"

    @property
    def states(self) -> list[Path]:
        """Folders of its states, the newest last."""
        return state.states_of(self.directory)


def root() -> Path:
    """The folder of all runs. ConfigError: paths.yaml does not name it."""
    return workspace.runs(config.read(PathsParams, "paths").runs)


def kept(root: Path) -> list[Kept]:
    """All runs of all stages, in the order of the pipeline, the newest first.

    Inputs are not compared, since that would read them all: the next run does that.
    """
    runs: list[Kept] = []
    for stage in _stages(root):
        found = (path for path in stage.iterdir() if not path.name.startswith(locks.GONE))
        directories = [path for path in found if (path / state.FINGERPRINT).is_file()]
        for directory in sorted(directories, key=state.last_used, reverse=True):
            made_by, damage = dict[str, Any](), None
            try:
                made_by = state.fingerprint_of(directory)
            except FileNotFoundError:  # it ends just now
                continue
            except IntegrityError as error:
                damage = error
            differs = {} if damage else fingerprint.differences(made_by, _now(stage.name, made_by))
            runs.append(Kept(directory, locks.holder(directory / "lock"), made_by, differs, damage))
    return runs


def lines(root: Path) -> Iterator[str]:
    """What `ldm runs` prints: a line per state, and below it what differs, or what is damaged."""
    asked: dict[Path, str] = {}
    for stage in _stages(root):
        try:
            asked[stage] = (state.asked_for(stage) or {}).get("state", "")
        except IntegrityError as error:
            yield from str(error).splitlines()
    for run in kept(root):
        yield from _lines(run, asked.get(run.directory.parent))


def _lines(run: Kept, asked: str | None) -> Iterator[str]:
    """The lines of one run. asked: the state that `ldm resume` asked for, as `<hash>/<state>`; empty = none; None = the
    request is damaged."""
    parts = state.parts_of(run.directory)
    for path in run.states:
        yield f"{run.name}/{path.name}  {_facts(run, path)}"
    units = [path for path in parts if path not in run.states]
    if units or not parts:
        size = sum(state.size_of(path) for path in units) / 1e6
        yield f"{run.name}  {len(units)} units of work, {size:.1f} MB, {_age(run.directory)}"
    if run.holder is not None:
        yield f"  in use ({run.holder})"
    if asked and asked.startswith(run.directory.name):
        request = run.directory.parent / state.REQUEST
        yield f"  the next run goes on from {Path(asked).name}, as asked; {request} says so"
    if run.damage is not None:
        yield from (f"  {line}" for line in str(run.damage).splitlines())
    elif run.differs:
        yield from (f"  differs: {line}" for line in fingerprint.in_words(run.differs))
    elif parts and asked is not None:
        yield "  as params and code are now: the next run goes on from it by itself"


def ask(root: Path, text: str) -> str:
    """Let the next run of a training resume from the state that `text` names: its folder, or the start of its name or
    hash, if no other run fits. A run without a step means its newest state. Returns a description of what will happen.

    Raises:
        ConfigError: no state, or states of several runs, have such a name. IntegrityError: it, or what its run was
            made by, is damaged.
        MachineError: a process works in its run.
    """
    run, path = _find(root, text)
    if run.damage is not None:
        raise run.damage
    if run.holder is not None:
        raise MachineError(run.name, f"in use ({run.holder})", "a run that nobody works in", "stop it first")
    found = saved.check(path)
    request = run.directory.parent / state.REQUEST
    asked = {"state": f"{run.directory.name}/{path.name}", "manifest_sha256": found.manifest_sha256}
    state.replace_json(request, asked)
    stage = run.directory.parent.name
    shown = "".join(f"\n  {line}" for line in fingerprint.in_words(run.differs, most=20)) or " nothing"
    return (
        f"the next run of {stage} goes on from step {_step(path)} of {run.name}, under params and code of then\n"
        f"what differs now:{shown}\n"
        f"to start it: dvc repro {stage} (--force if dvc finds nothing changed); to take it back: rm {request}"
    )


def prune(root: Path, machine: MachineParams) -> list[str]:
    """Remove the runs of all stages that the params do not keep; return a description of each. A stage of which it is
    not known what the next run goes on from is left alone, and told on stderr."""
    removed: list[str] = []
    for stage in _stages(root):
        try:
            removed += state.prune(stage, machine)
        except IntegrityError as error:
            print(f"{error}\nno run of {stage.name} is removed", file=sys.stderr, flush=True)
    return removed


def _stages(root: Path) -> list[Path]:
    """Folders of stages that have runs, in the order of the pipeline."""
    return [root / name for name in check.SECTIONS if (root / name).is_dir()]


def _find(root: Path, text: str) -> tuple[Kept, Path]:
    """The run and the state that a text names."""
    runs = [run for run in kept(root) if run.states]
    wanted = Path(text)
    named_states = {
        run.name: [path for path in run.states if wanted.resolve() in (path.resolve(), run.directory.resolve())]
        or [path for path in run.states if _is_named(run, path, text.rstrip("/"))]
        for run in runs
    }
    named = [(run, named_states[run.name]) for run in runs if named_states[run.name]]
    if len(named) != 1:
        some = ", ".join(f"{run.name}/{paths[-1].name}" for run, paths in named or [(run, run.states) for run in runs])
        what = f"{len(named)} runs have such a state" if named else "no such state"
        raise ConfigError(text, what, f"one of {some or 'none, since nothing is saved'}", "see `ldm runs` for all")
    return named[0][0], named[0][1][-1]


def _is_named(run: Kept, path: Path, text: str) -> bool:
    name = f"{run.name}/{path.name}"
    return bool(text) and any(each.startswith(text) for each in (name, f"{run.directory.name}/{path.name}"))


def _facts(run: Kept, path: Path) -> str:
    step, last = _step(path), sections.num_steps(run.made_by)
    of = "" if last is None else f" of {last}"
    done = f"finished, {step} steps" if step == last else f"{step}{of} steps"
    return f"{done}, {state.size_of(path) / 1e6:.1f} MB, {_age(path)}"


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _age(path: Path) -> str:
    seconds = max(time.time() - path.stat().st_mtime, 0)
    unit = next((name for name, size in _SECONDS.items() if seconds >= 2 * size), "seconds")
    return f"{seconds / _SECONDS[unit]:.0f} {unit} old"


def _now(stage: str, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint that a stage would have now, with the inputs of `made_by`."""
    section, script = config.read(check.SECTIONS[stage], stage), Path("stages", f"{stage}.py")
    if isinstance(section, PrepareParams) and script.is_file():
        return units.made_by(str(script), section)
    inputs = {key: value for key, value in made_by.items() if key.startswith("inputs.")}
    code = {
        key: sha256
        for key, sha256 in (fingerprint.of_code(script) if script.is_file() else {}).items()
        if key in made_by or fingerprint.file_of(key) not in fingerprint.AROUND  # units depend on none of those
    }
    return {**fingerprint.of_params(section), **inputs, **code, **fingerprint.of_packages()}
