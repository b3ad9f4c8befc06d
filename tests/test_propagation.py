"""What a schedule rules out, and why (tests/test_objectives.py compares the errors with those of samples)."""

import math

import numpy as np
import pytest

from ldm.sampling.params import DrawingParams
from ldm.sampling.samplers import propagation
from ldm.sampling.samplers.reverse_sde import AnnealedLangevinParams
from tests.analytic import SAMPLERS


def drawing(name: str, num_steps: int, spacing: str = "uniform", time_shift: float = 1.0) -> DrawingParams:
    """Only what a drawing is judged by."""
    return DrawingParams.model_construct(
        sampler=SAMPLERS[name][0], num_steps=num_steps, spacing=spacing, time_shift=time_shift
    )


@pytest.mark.parametrize("schedule", ["flow", "linear", "scaled_linear", "zero_terminal_snr", "vp", "ve"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sampler_is_ruled_out_by_these(name: str, schedule: str):
    assert propagation.refusal(schedule, drawing(name, 25)) is None


def test_samplers_in_sigma_over_alpha_are_ruled_out_by_cosine():
    found = {name: propagation.refusal("cosine", drawing(name, 25)) for name in SAMPLERS}
    refused = {name: refusal for name, refusal in found.items() if refusal}
    assert refused.keys() == {"heun", "edm", "plms", "pndm"}
    assert all(
        refusal.field == "sampler" and "begins at sigma / alpha" in refusal.expected for refusal in refused.values()
    )


@pytest.mark.parametrize("schedule", ["flow", "zero_terminal_snr"])
def test_sampling_from_pure_noise_begins_where_the_schedule_has_it(schedule: str):
    found = propagation.refusal(schedule, drawing("ddim", 25, "leading"))
    assert found is not None and (found.field, found.found) == ("spacing", "leading")
    for spacing, num_steps, shift in [("trailing", 25, 1.0), ("leading", 1000, 1.0), ("uniform", 25, 0.01)]:
        assert propagation.refusal(schedule, drawing("ddim", num_steps, spacing, shift)) is None
    assert propagation.refusal("scaled_linear", drawing("ddim", 25, "leading")) is None


def test_what_is_asked_twice_at_one_time_has_one_error_there():
    """Two Langevin steps at one time: the errors of both reach the sample with their sum, not its root mean square."""
    sampler = AnnealedLangevinParams(kind="annealed_langevin", snr=0.3, num_repeats=2)
    one = DrawingParams.model_construct(sampler=sampler, num_steps=1, spacing="uniform", time_shift=1.0)
    times, (error,) = propagation.carried("scaled_linear", "x0", one, 1.0)
    assert times == [1.0]
    alpha, sigma = 0.0682652, math.sqrt(1 - 0.0682652**2)
    # z is moved twice by 2 snr^2 alpha per unit of z0_hat, through the denoiser's gain, and z0_hat is asked once more.
    gain, step = alpha, 2 * 0.3**2
    z = step * alpha
    z = z - step * (z - alpha * (gain * z + 1))
    assert error / math.sqrt(2) == pytest.approx(gain * z + 1, rel=1e-6)
    assert sigma < 1


def test_errors_of_different_times_add_as_independent_ones():
    assert propagation.total(np.array([3.0, 4.0])) == pytest.approx(5)
