"""Which state a training may resume from when the user asked for it by `ldm resume`."""

from typing import Any

import torch

from ldm.compute.saved import State
from ldm.core.errors import IntegrityError
from ldm.training.history import BadUpdates
from ldm.training.params import TrainingParams

_OF_MODEL = ("weights.", "ema.", "average_", "buffers.")
"""How the names of tensors of a state begin that two states of one model have in common."""


def accepted(own: State, params: TrainingParams, state: State, record: dict[str, Any]) -> State:
    """The state to resume from when the user asked for `state`, which another run may have saved.

    own: the state of the training as it is now. record: step and hash of the state and what differs, for the history.

    IntegrityError: it is a state of another model, or past the last step.
    """
    ours, theirs = (
        {name: list(t.shape) for name, t in each.tensors.items() if name.startswith(_OF_MODEL)} for each in (own, state)
    )
    other = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    where = "the state that `ldm resume` named"
    fix = "undo what differs (`ldm runs` shows it), name another state, or remove resume.json to start afresh"
    if other:
        found = f"{other[0]} of shape {theirs.get(other[0])}, and {len(other) - 1} more that do not fit"
        raise IntegrityError(where, found, str(ours.get(other[0])), fix)
    if state.step > params.num_steps:
        raise IntegrityError(where, f"step {state.step}", f"at most num_steps {params.num_steps}", fix)
    if not record["differs"]:
        return state
    # Bad updates in a row are counted afresh: what was changed may be what made them bad.
    bad, zero = BadUpdates(*state.tensors["bad"]), torch.zeros_like(state.tensors["bad"][0])
    tensors = {**state.tensors, "bad": torch.stack(bad._replace(in_row=zero, most_in_row=zero))}
    resumed_from = [*state.values.get("resumed_from", []), record]
    return State(state.step, tensors, {**state.values, "resumed_from": resumed_from})
