import math
from typing import get_args

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr
from pydantic import ValidationError
from torch import nn

from ldm.denoiser.model import diffusion
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.params import DiffusionParams
from ldm.denoiser.model.schedules import Prediction, ScheduleName

DIFFUSERS = {
    "linear": {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "zero_terminal_snr": {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "rescale_betas_zero_snr": True,
    },
}
SCHEDULES = list(get_args(ScheduleName))
PREDICTIONS = list(get_args(Prediction))


def params(**changes: object) -> DiffusionParams:
    values = {
        "schedule": "flow",
        "prediction": "flow",
        "loss_weighting": {"kind": "uniform"},
        "time_sampling": {"kind": "uniform"},
        "time_shift": 1.0,
        "stratified_times": False,
        "offset_noise": 0.0,
        "caption_dropout": 0.1,
    }
    return DiffusionParams.model_validate(values | changes)


def latents(num: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    z0, noise = torch.randn(2, num, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return z0, noise


@pytest.mark.parametrize("name", DIFFUSERS)
def test_tables_agree_with_diffusers(name: str):
    theirs = DDPMScheduler(num_train_timesteps=1000, **DIFFUSERS[name])
    steps = torch.tensor([0, 1, 10, 250, 500, 998, 999])
    t = (steps + 1).double() / 1000
    schedule = diffusion.Schedule(name)
    z0, noise = latents(len(steps))
    # Their tables are float32 products of 1000 factors.
    torch.testing.assert_close(
        diffusion.add_noise(schedule, z0, noise, t), theirs.add_noise(z0, noise, steps), atol=2e-4, rtol=0
    )
    torch.testing.assert_close(
        diffusion.target(schedule, "v", z0, noise, t), theirs.get_velocity(z0, noise, steps), atol=2e-4, rtol=0
    )
    assert torch.equal(schedule.condition(t).round(), steps.double())


def test_flow_agrees_with_diffusers():
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    z0, noise = latents(3)
    t = theirs.sigmas[[0, 300, 900]].double()
    schedule = diffusion.Schedule("flow")
    expected = theirs.scale_noise(z0, theirs.timesteps[[0, 300, 900]], noise)
    torch.testing.assert_close(diffusion.add_noise(schedule, z0, noise, t), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(schedule.condition(t), theirs.timesteps[[0, 300, 900]].double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_start_at_data_and_lose_signal_monotonically(name: str):
    schedule = diffusion.Schedule(name)
    t = torch.linspace(0, 1, 3001, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert alpha[0] == 1 and sigma[0] == 0
    assert (alpha.diff() < 0).all() or name == "ve"
    assert (sigma.diff() >= 0).all()
    if name == "flow":
        torch.testing.assert_close(alpha + sigma, torch.ones_like(t))
    elif name == "ve":
        assert (alpha == 1).all()
    else:
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    assert schedule.log_snr(t)[0] == math.inf
    assert (schedule.log_snr(t[1:-1]).diff() < 0).all()


@pytest.mark.parametrize(("name", "alpha"), [("flow", 0.0), ("zero_terminal_snr", 0.0), ("scaled_linear", 0.0682652)])
def test_terminal_signal(name: str, alpha: float):
    schedule = diffusion.Schedule(name)
    assert schedule.alpha(torch.ones(1, dtype=torch.float64)).item() == pytest.approx(alpha, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["flow", "zero_terminal_snr"])
def test_a_schedule_without_terminal_signal_ends_at_exactly_none(name: str, dtype: torch.dtype):
    schedule, end = diffusion.Schedule(name), torch.ones(1, dtype=dtype)
    assert schedule.alpha(end).item() == 0 and schedule.sigma(end).item() == 1
    assert schedule.log_snr(end).item() == -math.inf


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictions_are_inverted(name: str, prediction: str):
    schedule = diffusion.Schedule(name)
    z0, noise = latents(5)
    t = torch.tensor([1e-3, 0.1, 0.5, 0.77, 0.98], dtype=torch.float64)
    z = diffusion.add_noise(schedule, z0, noise, t)
    predicted = diffusion.target(schedule, prediction, z0, noise, t)
    z0_hat = diffusion.z0_from_prediction(schedule, prediction, z, predicted, t)
    torch.testing.assert_close(z0_hat, z0)


@pytest.mark.parametrize("prediction", ["v", "x0", "flow", "edm"])
@pytest.mark.parametrize("name", ["flow", "zero_terminal_snr"])
def test_pure_noise_still_gives_a_clean_latent(name: str, prediction: str):
    schedule = diffusion.Schedule(name)
    z0, noise = latents(2)
    t = torch.ones(2, dtype=torch.float64)
    z = diffusion.add_noise(schedule, z0, noise, t)
    torch.testing.assert_close(z, noise)
    predicted = diffusion.target(schedule, prediction, z0, noise, t)
    torch.testing.assert_close(diffusion.z0_from_prediction(schedule, prediction, z, predicted, t), z0)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_the_papers_formula(prediction: str, gamma: float):
    t = torch.tensor([1, 50, 200, 500, 800, 1000], dtype=torch.float64) / 1000
    theirs = DDPMScheduler(num_train_timesteps=1000, **DIFFUSERS["linear"])
    snr = compute_snr(theirs, (t * 1000).long() - 1).double()
    expected = {"x0": 1, "eps": 1 / snr, "v": 1 / (snr + 1)}[prediction] * snr.clamp(max=gamma)
    chosen = params(schedule="linear", prediction=prediction, loss_weighting={"kind": "min_snr", "gamma": gamma})
    weight = diffusion.loss_weight(diffusion.Schedule("linear"), chosen, t)
    torch.testing.assert_close(weight, expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("name", ["flow", "cosine", "zero_terminal_snr"])
def test_min_snr_makes_the_loss_independent_of_the_prediction(name: str):
    """A network that errs by d in z_0 has the same weighted loss whatever it predicts."""
    schedule = diffusion.Schedule(name)
    t = torch.tensor([0.0, 0.2, 0.6, 0.99], dtype=torch.float64)
    z0, noise = latents(4)
    z = diffusion.add_noise(schedule, z0, noise, t[1:].repeat(2)[:4])
    losses = []
    for prediction in ("v", "x0", "flow", "edm"):
        chosen = params(schedule=name, prediction=prediction, loss_weighting={"kind": "min_snr", "gamma": 5.0})
        times = t[1:].repeat(2)[:4]
        right = diffusion.target(schedule, prediction, z0, noise, times)
        wrong = right + 0.1 * z0
        error = diffusion.z0_from_prediction(schedule, prediction, z, wrong, times) - z0
        snr = torch.exp(schedule.log_snr(times)).clamp(max=5)
        weighted = diffusion.loss_weight(schedule, chosen, times) * (wrong - right).square().flatten(1).mean(1)
        torch.testing.assert_close(weighted, snr * error.square().flatten(1).mean(1))
        losses.append(diffusion.loss_weight(schedule, chosen, t))
        assert torch.isfinite(losses[-1]).all()


@pytest.mark.parametrize("name", ["linear", "vp", "flow", "ve"])
@pytest.mark.parametrize(("k", "gamma"), [(1.0, 1.0), (1.0, 0.5), (0.25, 2.0)])
def test_p2_weighs_the_error_of_the_noise_by_the_papers_formula_whatever_is_predicted(
    name: str, k: float, gamma: float
):
    schedule, t = diffusion.Schedule(name), torch.tensor([0.01, 0.3, 0.7, 0.99], dtype=torch.float64)
    z0, noise = latents(4)
    z, snr = diffusion.add_noise(schedule, z0, noise, t), schedule.log_snr(t).exp()
    for prediction in ["edm"] if name == "ve" else ["eps", "v", "x0", "edm"] if name != "flow" else ["v", "flow"]:
        chosen = params(schedule=name, prediction=prediction, loss_weighting={"kind": "p2", "k": k, "gamma": gamma})
        right = diffusion.target(schedule, prediction, z0, noise, t)
        wrong = right + 0.1 * z0
        z0_hat = diffusion.z0_from_prediction(schedule, prediction, z, wrong, t)
        alpha, sigma = (x.reshape(-1, 1, 1, 1) for x in (schedule.alpha(t), schedule.sigma(t)))
        of_noise = ((z - alpha * z0_hat) / sigma - noise).square().flatten(1).mean(1)
        weighted = diffusion.loss_weight(schedule, chosen, t) * (wrong - right).square().flatten(1).mean(1)
        torch.testing.assert_close(weighted, of_noise / (k + snr) ** gamma, rtol=1e-6, atol=0)
        ends = torch.tensor([diffusion.TIME_MARGIN, 1 - diffusion.TIME_MARGIN])
        assert torch.isfinite(diffusion.loss_weight(schedule, chosen, ends)).all()


SIGMAS = torch.tensor([0.01, 0.3, 1.0, 7.0, 79.0], dtype=torch.float64)


def test_edm_is_the_table_of_karras_and_the_scheduler_of_diffusers():
    """With alpha = 1 and sigma_data = 1."""
    schedule, (z0, noise) = diffusion.Schedule("ve"), latents(len(SIGMAS))
    t = schedule.time_at(-SIGMAS.log())
    z = diffusion.add_noise(schedule, z0, noise, t)
    torch.testing.assert_close(z, z0 + SIGMAS.reshape(-1, 1, 1, 1) * noise)
    c_skip, c_out, c_in = (x.reshape(-1, 1, 1, 1) for x in karras(SIGMAS))
    seen = diffusion.network_input(schedule, "edm", z, t)
    torch.testing.assert_close(seen, c_in * z)
    predicted = torch.tanh(seen)
    z0_hat = diffusion.z0_from_prediction(schedule, "edm", z, predicted, t)
    torch.testing.assert_close(z0_hat, c_skip * z + c_out * predicted)
    torch.testing.assert_close(diffusion.target(schedule, "edm", z0, noise, t), (z0 - c_skip * z) / c_out)
    theirs = EDMEulerScheduler(sigma_data=1.0, prediction_type="epsilon")
    for row, sigma in enumerate(SIGMAS):
        torch.testing.assert_close(theirs.precondition_inputs(z[row], sigma), seen[row])
        torch.testing.assert_close(theirs.precondition_outputs(z[row], predicted[row], sigma), z0_hat[row])


def karras(sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """c_skip, c_out and c_in of Karras et al. 2022, table 1, with sigma_data = 1."""
    return 1 / (sigma**2 + 1), sigma / (sigma**2 + 1).sqrt(), 1 / (sigma**2 + 1).sqrt()


@pytest.mark.parametrize("name", ["vp", "linear", "cosine", "zero_terminal_snr"])
def test_edm_is_minus_v_where_variance_is_preserved(name: str):
    schedule, (z0, noise) = diffusion.Schedule(name), latents(4)
    t = torch.tensor([0.01, 0.4, 0.8, 1.0], dtype=torch.float64)
    v, edm = (diffusion.target(schedule, prediction, z0, noise, t) for prediction in ("v", "edm"))
    torch.testing.assert_close(edm, -v)
    z = diffusion.add_noise(schedule, z0, noise, t)
    torch.testing.assert_close(diffusion.network_input(schedule, "edm", z, t), z)
    assert diffusion.network_input(schedule, "v", z, t) is z


def test_uniform_weights_of_edm_are_those_of_karras_for_the_clean_latent():
    """lambda(sigma) = (sigma^2 + 1) / sigma^2, table 1."""
    schedule, (z0, noise) = diffusion.Schedule("ve"), latents(len(SIGMAS))
    t, z = schedule.time_at(-SIGMAS.log()), z0
    right = diffusion.target(schedule, "edm", z0, noise, t)
    error = diffusion.z0_from_prediction(schedule, "edm", z, right + 0.1, t)
    error = error - diffusion.z0_from_prediction(schedule, "edm", z, right, t)
    expected = (SIGMAS**2 + 1) / SIGMAS**2 * error.square().flatten(1).mean(1)
    torch.testing.assert_close(torch.full_like(SIGMAS, 0.01), expected)


@pytest.mark.parametrize(("schedule", "prediction"), [("ve", "edm"), ("cosine", "v"), ("vp", "eps")])
def test_log_normal_times_have_the_right_quantiles_of_sigma(schedule: str, prediction: str):
    u = torch.tensor([0.158655, 0.5, 0.841345], dtype=torch.float64)
    sampling = {"kind": "log_normal", "mean": -1.2, "std": 1.2}
    t = diffusion.training_times(u, params(schedule=schedule, prediction=prediction, time_sampling=sampling))
    ratio = -diffusion.Schedule(schedule).log_snr(t) / 2
    torch.testing.assert_close(ratio, torch.tensor([-2.4, -1.2, 0.0]).double(), atol=1e-4, rtol=0)


def test_log_normal_times_of_flow_are_logit_normal():
    u = torch.tensor([0.1, 0.5, 0.99], dtype=torch.float64)
    found = [
        diffusion.training_times(u, params(time_sampling={"kind": kind, "mean": 0.3, "std": 0.8}))
        for kind in ("log_normal", "logit_normal")
    ]
    torch.testing.assert_close(found[0], found[1])


def test_uniform_times_are_their_uniform_numbers():
    u = torch.rand(100)
    torch.testing.assert_close(diffusion.training_times(u, params()), u)


def test_logit_normal_times_have_the_right_quantiles():
    u = torch.tensor([0.0, 0.158655, 0.5, 0.841345], dtype=torch.float64)
    t = diffusion.training_times(u, params(time_sampling={"kind": "logit_normal", "mean": 0.5, "std": 2.0}))
    expected = torch.tensor([0.0, 1 / (1 + math.exp(1.5)), 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-2.5))])
    torch.testing.assert_close(t, expected.double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"time_shift": 1.5},
        {"time_shift": 100.0},
        {"time_shift": 0.01},
        {"time_sampling": {"kind": "logit_normal", "mean": 0.0, "std": 1.0}},
        {"time_sampling": {"kind": "logit_normal", "mean": 5.0, "std": 5.0}},
        {"time_sampling": {"kind": "logit_normal", "mean": -5.0, "std": 5.0}},
        {"time_sampling": {"kind": "log_normal", "mean": -1.2, "std": 1.2}, "schedule": "ve", "prediction": "edm"},
        {"time_sampling": {"kind": "log_normal", "mean": 10.0, "std": 10.0}, "schedule": "linear", "prediction": "v"},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_lie_between_data_and_noise_whatever_is_rounded(changes: dict[str, object], dtype: torch.dtype):
    # What torch.rand may give, its ends included, and what stratification makes of its largest number: 1.
    u = torch.tensor([0.0, 2**-24, 2**-10, 0.5, 1 - 2**-10, 1 - 2**-24, (2047 + (1 - 2**-24)) / 2048, 1.0], dtype=dtype)
    chosen = params(**changes)
    t = diffusion.training_times(u, chosen)
    assert (t > 0).all() and (t < 1).all() and (t.diff() >= 0).all()
    for name in SCHEDULES:
        assert torch.isfinite(diffusion.Schedule(name).log_snr(t)).all()


def test_shift_keeps_the_snr_ratio_of_flow():
    """Esser et al. 2024: a shift by s divides alpha / sigma by s at every time."""
    u = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    t = diffusion.training_times(u, params(time_shift=3.0))
    torch.testing.assert_close((1 - t) / t, (1 - u) / u / 3)


class Oracle(nn.Module):
    """Predicts perfectly up to `error`, and remembers what it was told."""

    def __init__(self, answer: torch.Tensor, error: float) -> None:
        super().__init__()
        self.answer, self.error = answer, error

    def forward(self, z: torch.Tensor, time: torch.Tensor, condition: Condition) -> torch.Tensor:
        self.seen = (z, time, condition)
        return self.answer + self.error


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_objective_is_the_weighted_squared_error(prediction: str):
    chosen = params(schedule="cosine", prediction=prediction, loss_weighting={"kind": "min_snr", "gamma": 5.0})
    z0, noise = (x.float() for x in latents())
    t, tokens, pooled = torch.linspace(0.1, 0.9, 6), torch.randn(6, 5, 8), torch.randn(6, 3)
    schedule = diffusion.Schedule("cosine")
    unet = Oracle(diffusion.target(schedule, prediction, z0, noise, t), error=0.5)
    objective = diffusion.DenoisingObjective(unet, chosen)
    dropped = torch.tensor([True, False, False, True, False, False])
    parts = {"tokens": tokens, "pooled": pooled}
    result = objective({"z0": z0, "noise": noise, "t": t, "dropped": dropped, **parts})
    assert result["caption_dropout"].item() == pytest.approx(1 / 3)
    assert result["mse"].item() == pytest.approx(0.25, rel=1e-5)
    expected = 0.25 * diffusion.loss_weight(schedule, chosen, t).mean()
    assert result["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(unet.seen[0], diffusion.add_noise(schedule, z0, noise, t))
    torch.testing.assert_close(unet.seen[1], 1000 * t - 1)
    assert unet.seen[2].parts == parts
    assert objective.state_dict().keys() == {f"unet.{k}" for k in unet.state_dict()}


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_denoiser_returns_the_clean_latent(prediction: str):
    schedule = diffusion.Schedule("scaled_linear")
    z0, noise = latents()
    t, condition = torch.full((6,), 0.4, dtype=torch.float64), Condition(torch.randn(6, 5, 8))
    unet = Oracle(diffusion.target(schedule, prediction, z0, noise, t), error=0.0)
    z = diffusion.add_noise(schedule, z0, noise, t)
    torch.testing.assert_close(diffusion.denoiser(unet, schedule, prediction, condition)(z, t), z0)
    assert unet.seen[2] is condition


@pytest.mark.parametrize("schedule", ["flow", "zero_terminal_snr"])
def test_eps_is_refused_where_no_signal_is_left(schedule: str):
    with pytest.raises(ValidationError, match=f"eps cannot be used with schedule {schedule}"):
        params(schedule=schedule, prediction="eps")


@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "flow"])
def test_latents_of_ve_need_the_input_scale_of_edm(prediction: str):
    with pytest.raises(ValidationError, match=f"prediction {prediction} cannot be used with schedule ve"):
        params(schedule="ve", prediction=prediction)
    params(schedule="ve", prediction="edm")
