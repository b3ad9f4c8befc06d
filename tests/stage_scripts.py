"""The scripts of stages/, run in this process."""

import importlib.util
from types import ModuleType

from accelerate.state import AcceleratorState, GradientState, PartialState

from tests.import_closure import ROOT


def forget_accelerator() -> None:
    """As in a new process: accelerate remembers the settings of the first stage."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def script(name: str) -> ModuleType:
    """A stage's script as a new module; what a stage before it left in accelerate is forgotten."""
    forget_accelerator()
    spec = importlib.util.spec_from_file_location(f"stage_{name}", ROOT / "stages" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str) -> str:
    """A stage in this process, in the current folder; returns its summary."""
    return script(name).main()
