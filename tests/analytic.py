"""A sampler of each kind, for all that must hold for every sampler."""

from ldm.sampling import samplers
from ldm.sampling.samplers.ancestral import DDIMParams, DDPMParams, EulerAncestralParams, EulerParams
from ldm.sampling.samplers.dpm_solver import DPMSolver2SParams, DPMSolverParams, DPMSolverSDEParams
from ldm.sampling.samplers.edm import EDMParams, HeunParams
from ldm.sampling.samplers.pndm import PLMSParams, PNDMParams
from ldm.sampling.samplers.reverse_sde import (
    AnnealedLangevinParams,
    EulerMaruyamaParams,
    PredictorCorrectorParams,
)
from ldm.sampling.samplers.unipc import UniPCParams

SAMPLERS: dict[str, tuple[samplers.SamplerParams, int]] = {
    "ddpm, beta-tilde": (DDPMParams(kind="ddpm", variance=0), 1),
    "ddpm, beta": (DDPMParams(kind="ddpm", variance=1), 1),
    "ddim": (DDIMParams(kind="ddim", eta=0), 0),
    "ddim, ancestral": (DDIMParams(kind="ddim", eta=1), 1),
    "euler": (EulerParams(kind="euler"), 0),
    "euler_ancestral": (EulerAncestralParams(kind="euler_ancestral", eta=1), 1),
    "heun": (HeunParams(kind="heun"), 0),
    "edm": (EDMParams(kind="edm", churn=40, low=0.05, high=50, noise=1), 1),
    "plms": (PLMSParams(kind="plms"), 0),
    "pndm": (PNDMParams(kind="pndm"), 0),
    "dpm_solver_pp_2m": (DPMSolverParams(kind="dpm_solver_pp_2m"), 0),
    "dpm_solver_pp_2s": (DPMSolver2SParams(kind="dpm_solver_pp_2s"), 0),
    "dpm_solver_pp_sde_2m": (DPMSolverSDEParams(kind="dpm_solver_pp_sde_2m"), 1),
    "unipc, order 2": (UniPCParams(kind="unipc", order=2), 0),
    "unipc, order 3": (UniPCParams(kind="unipc", order=3), 0),
    "euler_maruyama": (EulerMaruyamaParams(kind="euler_maruyama"), 1),
    "annealed_langevin": (AnnealedLangevinParams(kind="annealed_langevin", snr=0.3, num_repeats=10), 10),
    "predictor_corrector": (PredictorCorrectorParams(kind="predictor_corrector", snr=0.16, num_corrections=1), 2),
}
"""Every kind of sampler, and how many noises a step of it asks for."""
