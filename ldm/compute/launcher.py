"""Whether the launcher's config splits networks over processes, and what else it may ask for then. No torch here.

accelerate starts the processes and joins them; `ldm.training.sharding` splits networks.
"""

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager

EXPECTED = "whole models or FSDP2: MULTI_GPU, FSDP with fsdp_version: 2, or 'NO' for one process"
_ASKED = "ACCELERATE_USE_FSDP"
_SETTINGS = {
    "fsdp_version": (("2",), "1", "2"),
    "fsdp_reshard_after_forward": (("true", "full_shard"), "true", "true"),
    "fsdp_offload_params": (("false",), "false", "false: weights stay on the device"),
    "fsdp_activation_checkpointing": (("false",), "false", "false: gradient_checkpointing of the params file decides"),
}
"""Keys that would change what is computed or kept: accepted values, accelerate's default, and what is expected. Others
have no effect: a network says which blocks it is made of."""


def splits() -> bool:
    """Whether the config asks to split networks."""
    return os.environ.get(_ASKED, "false").lower() in ("true", "1")


@contextmanager
def whole_models() -> Generator[None]:
    """A block in which accelerate does not see that networks are split, and so prepares for whole ones."""
    asked = os.environ.pop(_ASKED, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[_ASKED] = asked


def wrong_settings(given: Mapping[str, object]) -> Iterator[str]:
    """Findings such as "fsdp_version: found 1; expected 2". given: values by keys of accelerate's `fsdp_config`."""
    for key, (accepted, default, expected) in _SETTINGS.items():
        found = str(given.get(key, default))
        if found.lower() not in accepted:
            yield f"{key}: found {found}; expected {expected}"


def wrong_environment() -> Iterator[str]:
    """`wrong_settings` of the variables that accelerate makes of its config."""
    yield from wrong_settings({name.lower(): value for name, value in os.environ.items()})
