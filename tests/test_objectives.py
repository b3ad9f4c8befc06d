"""The error that is computed without sampling is the error of samples, for every combination; and the cases that made
the rule are told apart."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from ldm.denoiser.model import diffusion
from ldm.denoiser.model.diffusion import Denoiser, Schedule
from ldm.denoiser.model.params import DiffusionParams
from ldm.sampling import grids, samplers, trajectory
from ldm.sampling.params import DrawingParams
from ldm.sampling.samplers import propagation
from ldm.sampling.samplers.ancestral import DDIMParams
from ldm.sampling.samplers.dpm_solver import DPMSolverParams
from ldm.sampling.samplers.edm import HeunParams
from ldm.tools.check import objectives
from tests.analytic import SAMPLERS
from tests.training_data import UNET

PAIRS = list(product(("cosine", "linear", "scaled_linear"), ("eps", "v", "x0", "flow")))
PAIRS += list(product(("flow", "zero_terminal_snr"), ("v", "x0", "flow")))
PAIRS += [("vp", "eps"), ("ve", "edm"), ("flow", "edm")]
SCHEDULES = sorted({schedule for schedule, _ in PAIRS})
GRIDS = [("dpm_solver_pp_2m", 4, "uniform"), ("ddim", 12, "uniform"), ("dpm_solver_pp_2m", 12, "log_snr")]
GRIDS += [("dpm_solver_pp_2m", 25, "uniform")]
UNIFORM = {"kind": "uniform"}
MIN_SNR = {"kind": "min_snr", "gamma": 5.0}
LOGIT_NORMAL = {"kind": "logit_normal", "mean": 0.0, "std": 1.0}
LOG_NORMAL = {"kind": "log_normal", "mean": -0.5, "std": 1.2}
P2 = {"kind": "p2", "k": 1.0, "gamma": 1.0}
EVEN = {"loss_weighting": UNIFORM, "time_sampling": UNIFORM}
SCALES = torch.tensor(propagation.SCALES, dtype=torch.float64).reshape(-1, 1, 1, 1)

Wrong = Callable[[Tensor, Tensor], Tensor]  # (exact prediction, its root mean square) -> what a network puts out


def objective(schedule: str, prediction: str, **changes: object) -> DiffusionParams:
    return DiffusionParams.model_validate(
        UNET["diffusion"] | EVEN | {"schedule": schedule, "prediction": prediction} | changes
    )


def grid(sampler: str, num_steps: int, spacing: str = "uniform", eta: float = 0.0) -> DrawingParams:
    """Only what an objective is judged by."""
    rule = DDIMParams(kind="ddim", eta=eta) if sampler == "ddim" else DPMSolverParams(kind="dpm_solver_pp_2m")
    return DrawingParams.model_construct(sampler=rule, num_steps=num_steps, spacing=spacing, time_shift=1.0)


def shares(chosen: DiffusionParams, times: Tensor) -> Tensor:
    """Of the loss weight near each time over an even share, counted over many training times."""
    t = diffusion.training_times((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000, chosen)
    weight = diffusion.loss_weight(Schedule(chosen.schedule), chosen, t).cumsum(0)
    weight = torch.cat([torch.zeros(1), weight / weight[-1]])
    near = torch.stack([times - 0.05, times + 0.05]).clamp(0, 1)
    return weight[torch.searchsorted(t, near)].diff(dim=0)[0] / near.diff(dim=0)[0]


def network(chosen: DiffusionParams, wrong: Callable[[float], Wrong]) -> Denoiser:
    """The exact denoiser of data N(m, m^2), a row for every m of SCALES, whose prediction `wrong(t)` makes wrong."""
    schedule, prediction = Schedule(chosen.schedule), chosen.prediction

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (float(f(t.double())[0]) for f in (schedule.alpha, schedule.sigma))
        z0_hat = SCALES + alpha * SCALES**2 / ((alpha * SCALES) ** 2 + sigma**2) * (z - alpha * SCALES)
        noise_hat = (z - alpha * z0_hat) / sigma
        exact = {"eps": noise_hat, "x0": z0_hat, "flow": noise_hat - z0_hat, "v": alpha * noise_hat - sigma * z0_hat}
        exact["edm"] = -exact["v"] / math.hypot(alpha, sigma)
        square = 2 * SCALES**2
        squares = {"eps": torch.ones(1), "x0": square, "flow": 1 + square, "v": alpha**2 + sigma**2 * square}
        squares["edm"] = squares["v"] / (alpha**2 + sigma**2)
        predicted = wrong(float(t[0]))(exact[prediction], squares[prediction].sqrt())
        return diffusion.z0_from_prediction(schedule, prediction, z, predicted, t)

    return denoise


def sampled(chosen: DiffusionParams, sample: DrawingParams, wrong: Callable[[float], Wrong], num: int = 2000) -> Tensor:
    """Samples of every scale, over it: of mean and deviation 1 if all is right."""
    schedule, generator = Schedule(chosen.schedule), torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, 1, num, dtype=torch.float64, generator=generator).expand(len(SCALES), -1, -1, -1)
    times = grids.times(schedule.name, sample.num_steps, sample.spacing, sample.time_shift)

    def fresh(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(1 + number)
        return torch.randn(noise.shape[1:], dtype=torch.float64, generator=generator)

    sampler, z = samplers.build(sample.sampler), trajectory.start(schedule, noise, times[0])
    return trajectory.follow(sampler, network(chosen, wrong), schedule, z, times, fresh) / SCALES


def exact(t: float) -> Wrong:
    return lambda prediction, size: prediction


def bf16(t: float) -> Wrong:
    return lambda prediction, size: prediction.bfloat16().double()


def badly_trained(chosen: DiffusionParams, sample: DrawingParams) -> Callable[[float], Wrong]:
    times = [visit.time for visit in objectives.visits(chosen, sample)]
    by_time = dict(zip(times, shares(chosen, torch.tensor(times, dtype=torch.float64)).tolist(), strict=True))
    numbers = {time: number for number, time in enumerate(by_time)}

    def wrong(t: float) -> Wrong:
        relative = min(1.0, 0.01 / math.sqrt(max(min(by_time[t], 1.0), 1e-9)))
        generator = torch.Generator().manual_seed(10_000 + numbers[t])  # the same error whenever it is asked at t
        return lambda prediction, size: (
            prediction + relative * size * torch.randn(prediction.shape, dtype=torch.float64, generator=generator)
        )

    return wrong


def measured_error(chosen: DiffusionParams, sample: DrawingParams, right: Tensor) -> float:
    """Root mean square of what a badly trained network changes in samples, over their deviation, at the worst scale."""
    difference = sampled(chosen, sample, badly_trained(chosen, sample)) - right
    return float(difference.square().mean((1, 2, 3)).sqrt().max())


def computed_error(chosen: DiffusionParams, sample: DrawingParams) -> float:
    return objectives.sample_error(objectives.visits(chosen, sample))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_computed_error_is_that_of_samples_for_every_combination(schedule: str):
    refused: list[bool] = []
    for how in GRIDS:
        sample = grid(*how)
        right = sampled(objective(schedule, "edm"), sample, exact)
        predictions = [prediction for name, prediction in PAIRS if name == schedule]
        for prediction, weighting, times in product(predictions, (UNIFORM, MIN_SNR), (UNIFORM, LOGIT_NORMAL)):
            chosen = objective(schedule, prediction, loss_weighting=weighting, time_sampling=times)
            computed, measured = computed_error(chosen, sample), measured_error(chosen, sample, right)
            assert computed == pytest.approx(measured, rel=0.08), (chosen, how)
            if abs(measured / propagation.MAX_ERROR - 1) > 0.08:
                assert (computed > propagation.MAX_ERROR) == (measured > propagation.MAX_ERROR), (chosen, how)
            refused.append(measured > propagation.MAX_ERROR)
    assert False in refused and (True in refused or schedule == "vp")


def drawn_by(name: str, num_steps: int = 12) -> DrawingParams:
    return DrawingParams.model_construct(
        sampler=SAMPLERS[name][0], num_steps=num_steps, spacing="uniform", time_shift=1.0
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_computed_error_is_that_of_samples_for_every_sampler(name: str):
    chosen, sample = objective("zero_terminal_snr", "v"), drawn_by(name)
    computed, measured = computed_error(chosen, sample), measured_error(chosen, sample, sampled(chosen, sample, exact))
    assert computed == pytest.approx(measured, rel=0.1)
    assert computed < propagation.MAX_ERROR


def test_samplers_in_sigma_over_alpha_are_refused_where_it_begins_at_thousands():
    chosen = objective("cosine", "v")
    refused = {name for name in SAMPLERS if computed_error(chosen, drawn_by(name, 25)) > propagation.MAX_ERROR}
    assert refused == {"heun", "edm", "plms", "pndm"}


def heun(num_steps: int) -> DrawingParams:
    return DrawingParams.model_construct(
        sampler=HeunParams(kind="heun"), num_steps=num_steps, spacing="karras", time_shift=1.0
    )


SOUND = [
    ("the default", objective("flow", "flow", time_shift=1.5), grid("dpm_solver_pp_2m", 12)),
    ("Stable Diffusion 1", objective("scaled_linear", "eps"), grid("dpm_solver_pp_2m", 25)),
    ("Ho et al. 2020", objective("linear", "eps"), grid("ddim", 1000, eta=1.0)),
    ("Nichol and Dhariwal 2021", objective("cosine", "eps"), grid("ddim", 1000, eta=1.0)),
    ("Song et al. 2021", objective("linear", "eps"), grid("ddim", 20)),
    ("Stable Diffusion 2", objective("scaled_linear", "v"), grid("dpm_solver_pp_2m", 25)),
    ("Salimans and Ho 2022", objective("cosine", "v"), grid("ddim", 8)),
    ("Lin et al. 2023", objective("zero_terminal_snr", "v"), grid("ddim", 25)),
    ("Esser et al. 2024", objective("flow", "flow", time_sampling=LOGIT_NORMAL), grid("dpm_solver_pp_2m", 28)),
    ("x0", objective("linear", "x0"), grid("ddim", 12)),
    ("x0 of flow", objective("flow", "x0"), grid("dpm_solver_pp_2m", 12)),
    ("min-SNR, eps", objective("scaled_linear", "eps", loss_weighting=MIN_SNR), grid("dpm_solver_pp_2m", 25)),
    ("P2", objective("linear", "eps", loss_weighting=P2), grid("dpm_solver_pp_2m", 25)),
    ("Song et al. 2021, VP", objective("vp", "eps"), grid("ddim", 1000, eta=1.0)),
    ("Karras et al. 2022", objective("ve", "edm", time_sampling=LOG_NORMAL), heun(18)),
    ("edm of flow", objective("flow", "edm"), grid("dpm_solver_pp_2m", 12)),
    ("min-SNR, linear", objective("linear", "eps", loss_weighting=MIN_SNR), grid("ddim", 12)),
]


@pytest.mark.parametrize(("chosen", "sample"), [pytest.param(*case[1:], id=case[0]) for case in SOUND])
def test_sound_objectives_pass_and_survive_bf16(chosen: DiffusionParams, sample: DrawingParams):
    assert computed_error(chosen, sample) < propagation.MAX_ERROR
    if sample.num_steps < 100:
        right, rounded = sampled(chosen, sample, exact), sampled(chosen, sample, bf16)
        assert (rounded.std((1, 2, 3)) / right.std((1, 2, 3))).tolist() == pytest.approx([1, 1], abs=0.01)


def test_eps_with_cosine_is_refused_by_its_gain_and_spoilt_by_bf16_alone():
    chosen, sample = objective("cosine", "eps"), grid("ddim", 12)
    start = objectives.visits(chosen, sample)[0]
    assert start.time == 1 and start.gain == pytest.approx(20292, rel=1e-4) and start.share == pytest.approx(1)
    assert computed_error(chosen, sample) > 20
    ratio = sampled(chosen, sample, bf16).std((1, 2, 3)) / sampled(chosen, sample, exact).std((1, 2, 3))
    assert (ratio > 2).all()


def test_min_snr_with_v_on_zero_terminal_snr_is_refused_by_its_weight_at_the_start():
    chosen = objective("zero_terminal_snr", "v", loss_weighting=MIN_SNR)
    found = objectives.visits(chosen, grid("dpm_solver_pp_2m", 25))
    assert found[0].time == 1 and found[0].gain == 1 and found[0].share == pytest.approx(7e-4, rel=0.02)
    assert 1 - objectives.weight_before(0.9, chosen) == pytest.approx(3.3e-4, rel=0.02)
    assert objectives.sample_error(found) == pytest.approx(0.17, abs=0.005)
    assert objectives.loss_weight(chosen, 1.0) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"time_shift": 3.0},
        {"time_sampling": {"kind": "logit_normal", "mean": 0.7, "std": 0.5}, "time_shift": 0.5},
        {"time_sampling": LOG_NORMAL, "schedule": "cosine", "prediction": "v"},
        {"time_sampling": LOG_NORMAL, "schedule": "ve", "prediction": "edm", "time_shift": 2.0},
    ],
)
def test_the_share_before_a_time_is_the_inverse_of_the_training_times(changes: dict[str, object]):
    chosen = objective(**({"schedule": "flow", "prediction": "flow"} | changes))
    u = torch.tensor([0.01, 0.2, 0.5, 0.9, 0.999], dtype=torch.float64)
    times = diffusion.training_times(u, chosen)
    assert [objectives.share_before(t, chosen) for t in times.tolist()] == pytest.approx(u.tolist(), rel=1e-9)


@pytest.mark.parametrize(
    ("schedule", "prediction"), [("flow", "x0"), ("cosine", "eps"), ("zero_terminal_snr", "v"), ("ve", "edm")]
)
@pytest.mark.parametrize("weighting", [UNIFORM, MIN_SNR, P2], ids=["uniform", "min_snr", "p2"])
def test_the_weight_of_a_time_is_that_of_the_loss(schedule: str, prediction: str, weighting: dict[str, object]):
    chosen = objective(schedule, prediction, loss_weighting=weighting)
    t = torch.tensor([0.01, 0.3, 0.9, 0.99], dtype=torch.float64)
    expected = diffusion.loss_weight(Schedule(schedule), chosen, t)
    assert [objectives.loss_weight(chosen, time) for time in t.tolist()] == pytest.approx(expected.tolist(), rel=1e-9)
