"""How a training runs: shared by every stage that trains."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from ldm.core.config import BESIDE, Section
from ldm.core.params import AskedPrecision
from ldm.training.profiles import MAX_LENGTH, MAX_MISFIT, MIN_LENGTH, mixture

Length = Annotated[float, Field(ge=MIN_LENGTH, le=MAX_LENGTH)]
"""Of an average: the standard deviation of what each step counts in it, as a share of the steps so far. 0.1 is about
the last quarter of them; 0.28 is nearly the mean over all."""


class MuonParams(Section):
    """Muon, for matrices and kernels of at least 32 rows and columns that are no embeddings; the rest stays with AdamW.

    It orthogonalises the momentum of each (Jordan et al. 2024), which takes time beside a small batch, and needs far
    fewer updates.
    """

    learning_rate: float = Field(gt=0, le=1)
    """Peak of its learning rate, which follows warm-up and cosine of the other. Updates are scaled so that rates of
    AdamW are of the right order."""
    momentum: float = Field(ge=0, lt=1)
    """Decay of the momentum; 0.95 is usual."""
    num_iterations: int = Field(ge=1, le=10)
    """Newton-Schulz iterations that orthogonalise an update; 5 is usual."""


class TrainingParams(Section):
    """Steps, batch, optimizer, averaging, and how often to log, validate and save."""

    num_steps: int = Field(gt=0, le=10**9)
    """Optimizer updates in all."""
    batch_size: int = Field(gt=0, le=2**20)
    """Samples per update over all processes and accumulation steps."""
    num_accumulation_steps: int = Field(gt=0, le=2**14)
    """Forward-backward passes per update: more passes need less memory and give the same result."""
    learning_rate: float = Field(gt=0, le=1)
    """Peak of the learning rate, reached after the warm-up."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    """Decay of AdamW's first and second moment."""
    weight_decay: float = Field(ge=0, le=1)
    """Decoupled decay of weight matrices and kernels; vectors (norms, biases) are never decayed."""
    muon: MuonParams | None
    """Muon instead of AdamW for matrices and kernels, without weight decay; null = AdamW for all."""
    num_warmup_steps: int = Field(ge=0)
    """Updates of linear warm-up."""
    final_learning_rate_fraction: float = Field(ge=0, le=1)
    """Where the cosine ends, as a fraction of the peak; 1 keeps the rate constant after the warm-up."""
    max_grad_norm: float = Field(gt=0)
    """Gradients are scaled down to this L2 norm."""
    ema_decay: float = Field(ge=0, lt=1)
    """Decay per update of the averaged weights, which are the result; 0 keeps the last weights."""
    precision: AskedPrecision
    """Precision of matrix products and convolutions, those of Muon too; weights and losses are float32. auto = bf16 on
    a GPU that has it; on a CPU fp32 if it has no kernels for bf16, else the faster one, measured as the training
    begins. A resumed one goes on with it."""
    seed: int = Field(ge=0, lt=2**63)
    """Seed of everything random in this stage."""
    log_every_steps: int = Field(gt=0, json_schema_extra=BESIDE)
    """Updates per row of the loss curve (the mean over them)."""
    validate_every_steps: int = Field(gt=0, json_schema_extra=BESIDE)
    """Updates between validations and pictures; both always follow the last update."""
    save_every_steps: int = Field(gt=0, json_schema_extra=BESIDE)
    """Updates between saved states."""
    num_kept_states: int = Field(ge=1, le=1000, json_schema_extra=BESIDE)
    """Saved states kept in the run directory."""
    max_nonfinite_steps: int = Field(ge=1, json_schema_extra=BESIDE)
    """Updates in a row with a non-finite loss or gradient after which the stage gives up."""
    loss_band: str | None = Field(json_schema_extra=BESIDE)
    """CSV file of `recipes/bands/` with least and greatest losses of a known run of these params: the training says
    when its loss leaves them, and goes on. null = none, as for data and params of your own."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size % self.num_accumulation_steps:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of num_accumulation_steps "
                f"{self.num_accumulation_steps}: every pass takes equally many samples"
            )
        if self.num_warmup_steps >= self.num_steps:
            raise ValueError(f"num_warmup_steps {self.num_warmup_steps} leaves nothing of num_steps {self.num_steps}")
        return self


class AdversaryParams(Section):
    """Optimizer of a network that is trained against the others, in the same updates: AdamW without weight decay."""

    start_step: int = Field(ge=0, le=10**9)
    """Updates before the adversary takes part; until then it is neither trained nor heard."""
    learning_rate: float = Field(gt=0, le=1)
    """Peak of its learning rate, which follows the warm-up and the cosine of the other networks."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    """Decay of its first and second moment."""
    max_grad_norm: float = Field(gt=0)
    """Its gradients are scaled down to this L2 norm."""


class AveragesParams(Section):
    """Averages of the weights by power functions, beside the one of `ema_decay`, which are kept on the way. One of any
    other length is made of them afterwards (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of
    Diffusion Models")."""

    lengths: list[Length] = Field(min_length=1, max_length=8)
    """Lengths of those that are kept; each takes the memory of the weights, and half of it on the disk every time it is
    kept. 0.05 and 0.1 make any length from 0.03 to 0.2."""
    every_steps: int = Field(gt=0)
    """Updates after which they are kept, and once more at the end. A tenth of the training is enough."""
    result: Length | None = Field(json_schema_extra=BESIDE)
    """Length of the average that becomes the result, made of those that were kept; null = the one of `ema_decay`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.lengths)) < len(self.lengths):
            raise ValueError(f"lengths {self.lengths} has one of them twice; expected each once")
        return self

    def steps(self, num_steps: int) -> list[int]:
        """After how many updates they are kept in a training of `num_steps`."""
        return [*range(self.every_steps, num_steps, self.every_steps), num_steps]

    def check_result(self, num_steps: int) -> None:
        """ValueError: the result of a training of `num_steps` cannot be made of what is kept."""
        if self.result is None:
            return
        kept = [(step, length) for step in self.steps(num_steps) for length in self.lengths]
        misfit = mixture(kept, num_steps, self.result).misfit
        if misfit > MAX_MISFIT:
            found = f"result {self.result} cannot be made of lengths {self.lengths} every {self.every_steps} steps"
            raise ValueError(
                f"{found} (misfit {misfit:.2f}); expected one nearer to the lengths, or fewer steps between (misfit at \
most {MAX_MISFIT})"
            )
