"""Samplers: the union of their params, and `build`, which makes the rule of one.

There is a file per family. It holds the params of each sampler, with a `kind` of its own and a method that gives its
rule, and lists them in `Params`. So a new sampler changes the file of its family alone, and a new family adds itself to
`SamplerParams` here.
"""

from typing import Annotated, get_args

from pydantic import Field

from ldm.core.config import Section
from ldm.sampling.samplers import ancestral, dpm_solver, edm, pndm, reverse_sde, unipc
from ldm.sampling.samplers.rule import Rule

SamplerParams = Annotated[
    ancestral.Params | edm.Params | pndm.Params | dpm_solver.Params | unipc.Params | reverse_sde.Params,
    Field(discriminator="kind"),
]


def build(params: SamplerParams, num_steps: int | None = None) -> Rule:
    """The sampler that the params describe. num_steps: steps of the whole drawing, of which a call of the rule may take
    a part; None = each call takes all."""
    return params.rule(num_steps) if isinstance(params, edm.EDMParams) else params.rule()


def kinds() -> tuple[type[Section], ...]:
    """The params classes of all samplers."""
    return get_args(get_args(SamplerParams)[0])
