"""Our samplers beside diffusers' schedulers, call by call: the same network is asked at the same times and latents."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ldm.denoiser.model.diffusion import Prediction, Schedule, z0_from_prediction
from ldm.sampling import grids, trajectory
from ldm.sampling.samplers import ancestral, dpm_solver, edm, pndm, unipc
from ldm.sampling.samplers.rule import Rule

NUM_STEPS = 20
SCHEDULE = Schedule("scaled_linear")
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SPACINGS = ("leading", "trailing")
PREDICTIONS = ("epsilon", "v_prediction")
Call = tuple[float, Tensor]  # time and latent that a denoiser is asked at


@dataclass(frozen=True)
class Case:
    """A scheduler with its options and those of its `step`, and our rule."""

    scheduler: Any
    rule: Rule
    options: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)
    spacings: tuple[str, ...] = SPACINGS
    predictions: tuple[str, ...] = PREDICTIONS


TO_DATA = {"final_sigmas_type": "zero"}
CASES = {
    "ddpm_small": Case(
        diffusers.DDPMScheduler,
        partial(ancestral.ddpm, variance=0.0),
        {"variance_type": "fixed_small", "clip_sample": False},
    ),
    # With `trailing` theirs ends with noise of the last step, as its timestep is not 0.
    "ddpm_large": Case(
        diffusers.DDPMScheduler,
        partial(ancestral.ddpm, variance=1.0),
        {"variance_type": "fixed_large", "clip_sample": False},
        spacings=("leading",),
    ),
    "ddim": Case(diffusers.DDIMScheduler, ancestral.ddim, {"clip_sample": False}),
    "ddim_eta": Case(diffusers.DDIMScheduler, partial(ancestral.ddim, eta=0.6), {"clip_sample": False}, {"eta": 0.6}),
    # Theirs averages past outputs as they are, the paper past noise: the same for eps alone.
    "plms": Case(
        diffusers.PNDMScheduler,
        pndm.plms,
        {"skip_prk_steps": True, "set_alpha_to_one": True},
        predictions=("epsilon",),
    ),
    "pndm": Case(
        diffusers.PNDMScheduler,
        pndm.pndm,
        {"skip_prk_steps": False, "set_alpha_to_one": True},
        predictions=("epsilon",),
    ),
    "euler": Case(diffusers.EulerDiscreteScheduler, ancestral.ddim),
    "euler_ancestral": Case(diffusers.EulerAncestralDiscreteScheduler, partial(ancestral.ddim, eta=1.0)),
    "heun": Case(diffusers.HeunDiscreteScheduler, edm.heun),
    "2m": Case(diffusers.DPMSolverMultistepScheduler, dpm_solver.dpm_solver_pp_2m, TO_DATA),
    "sde_2m": Case(
        diffusers.DPMSolverMultistepScheduler,
        dpm_solver.dpm_solver_pp_sde_2m,
        TO_DATA | {"algorithm_type": "sde-dpmsolver++"},
    ),
    "unipc_2": Case(diffusers.UniPCMultistepScheduler, partial(unipc.unipc, order=2), TO_DATA | {"solver_order": 2}),
    "unipc_3": Case(diffusers.UniPCMultistepScheduler, partial(unipc.unipc, order=3), TO_DATA | {"solver_order": 3}),
}


def model_output(prediction: str, z: Tensor, time: float) -> Tensor:
    """What an exact network says of data that is -1 or 1 with equal odds: E[z0 | z] = tanh(alpha z / sigma^2)."""
    t = torch.tensor([time], dtype=torch.float64)
    alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
    clean = torch.tanh(alpha * z / sigma**2)
    noise_hat = (z - alpha * clean) / sigma
    return noise_hat if prediction == "epsilon" else alpha * noise_hat - sigma * clean


def theirs(case: Case, prediction: str, spacing: str, noise: Tensor) -> tuple[list[Call], list[Tensor]]:
    """Calls of the network, and the sample at time 0; the outputs of the network."""
    scheduler = case.scheduler(**BETAS, prediction_type=prediction, timestep_spacing=spacing, **case.options)
    # Tables of theirs in float64: in float32 sigma is wrong by 1.3e-5 after the first of 1000 steps.
    table = torch.arange(1, 1001, dtype=torch.float64) / 1000
    scheduler.alphas_cumprod = SCHEDULE.alpha(table) ** 2
    scheduler.set_timesteps(NUM_STEPS)
    if hasattr(scheduler, "sigmas"):  # over alpha
        ratios = torch.cat([SCHEDULE.sigma(table) / SCHEDULE.alpha(table), torch.zeros(1)])
        scheduler.sigmas = ratios[(scheduler.sigmas[:, None] - ratios).abs().argmin(1)]
    calls: list[Call] = []
    outputs: list[Tensor] = []
    # Those in sigma / alpha follow z / alpha = z sqrt((sigma / alpha)^2 + 1), and give the network z.
    divided = any(word in case.scheduler.__name__ for word in ("Euler", "Heun"))
    sample = noise * (float(scheduler.sigmas[0]) ** 2 + 1) ** 0.5 if divided else noise
    for t in scheduler.timesteps:
        z, time = scheduler.scale_model_input(sample, t), (float(t) + 1) / 1000
        calls.append((time, z))
        outputs.append(model_output(prediction, z, time))
        sample = scheduler.step(outputs[-1], t, sample, **case.step).prev_sample
    return [*calls, (0.0, sample)], outputs


def ours(
    rule: Rule,
    times: list[float],
    noise: Tensor,
    fresh: Callable[[int], Tensor],
    prediction: str,
    outputs: list[Tensor],
) -> list[Call]:
    """The same of ours, with the same outputs of the network."""
    calls: list[Call] = []
    given = iter(outputs)
    name: Prediction = "eps" if prediction == "epsilon" else "v"

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        calls.append((float(t[0]), z))
        return z0_from_prediction(SCHEDULE, name, z, next(given), t)

    final = trajectory.follow(rule, denoise, SCHEDULE, noise, times, fresh)
    return [*calls, (0.0, final)]


@pytest.mark.parametrize(
    ("name", "spacing", "prediction"),
    [(name, *how) for name, case in CASES.items() for how in product(case.spacings, case.predictions)],
)
def test_every_call_is_that_of_diffusers(
    name: str, spacing: grids.Spacing, prediction: str, monkeypatch: pytest.MonkeyPatch
):
    case, generator = CASES[name], torch.Generator().manual_seed(1)
    noise, *fresh = torch.randn(NUM_STEPS + 1, 2, 1, 8, 8, dtype=torch.float64, generator=generator)
    draws = iter(fresh)
    module = sys.modules[case.scheduler.__module__]
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(draws))
    expected, outputs = theirs(case, prediction, spacing, noise)
    # Theirs of PNDM also asks halfway through its first steps.
    grid = sorted({time for time, _ in expected}, reverse=True)
    if name == "pndm":
        grid = grids.times(SCHEDULE.name, NUM_STEPS, spacing, 1.0)
    found = ours(case.rule, grid, noise, fresh.__getitem__, prediction, outputs)
    assert [time for time, _ in found] == pytest.approx([time for time, _ in expected], abs=1e-9)
    for (_, z), (time, theirs_z) in zip(found, expected, strict=True):
        assert float((z - theirs_z).abs().max()) < 1e-5 * float(theirs_z.abs().max()), time


@pytest.mark.parametrize("num_steps", [10, 20, 30, 50, 1000])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_grids_are_those_of_diffusers(num_steps: int, spacing: grids.Spacing):
    scheduler = diffusers.DDIMScheduler(**BETAS, timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    expected = [(int(t) + 1) / 1000 for t in scheduler.timesteps]
    assert grids.times("scaled_linear", num_steps, spacing, 1.0) == pytest.approx([*expected, 0.0], abs=1e-12)


def test_the_grid_of_karras_is_that_of_diffusers():
    levels = [grids.State("scaled_linear", t).half_log_snr for t in (1 - 1e-3, 1e-3)]
    times = grids.times("scaled_linear", 12, "karras", 1.0)
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS)
    ends = torch.exp(-torch.tensor(levels, dtype=torch.float64))
    expected = scheduler._convert_to_karras(ends, 12)
    states = [grids.State("scaled_linear", t) for t in times[1:-1]]
    assert [state.sigma / state.alpha for state in states] == pytest.approx(expected[1:].tolist(), rel=1e-9)
