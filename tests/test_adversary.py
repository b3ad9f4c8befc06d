"""A training of two players: both from one backward pass, with exact resume, and updates that both take or neither."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ldm.compute import fingerprint
from ldm.compute.state import Run
from ldm.core.errors import Stopped
from ldm.training.history import History
from ldm.training.loop import train
from ldm.training.optimizer import learning_rate_at
from ldm.training.params import AdversaryParams, TrainingParams
from tests.toy_training import Batches, accelerator, params

ADVERSARY = AdversaryParams(start_step=5, learning_rate=3e-3, betas=(0.5, 0.9), max_grad_norm=0.2)


class Players(nn.Module):
    """A generator that maps x to y, and an adversary whose score of it is to fall."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.generator, self.adversary = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 1, 3)

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Of the generator, and of the adversary; each has gradients in the other's weights too."""
        made = self.generator(batch["x"])
        error, score = (made - batch["y"]).square().mean(), self.adversary(made).mean()
        real = self.adversary(batch["y"]).mean()
        return (error - 0.1 * score) * batch["factor"].mean(), score - real

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The two gradients in one loss, as the autoencoder's objective has them."""
        made = self.generator(batch["x"])
        fixed = [weight.detach() for weight in self.adversary.parameters()]
        error, score = (made - batch["y"]).square().mean(), nn.functional.conv2d(made, *fixed).mean()
        theirs = self.adversary(made.detach()).mean() - self.adversary(batch["y"]).mean()
        return {"loss": (error - 0.1 * score) * batch["factor"].mean() + theirs - theirs.detach()}


def run(
    root: Path,
    chosen: TrainingParams,
    *,
    players: Players | None = None,
    bad: Mapping[int, int] | None = None,
    stop: int = -1,
) -> tuple[Players, History]:
    players, batches = players or Players(), Batches(chosen, bad)

    def batch_at_step(step: int, rows: slice) -> dict[str, Tensor]:
        if step == stop:
            raise Stopped("toy", "stopped", "the end", "run it again")
        return batches(step, rows)

    place = Run(root, "toy", fingerprint.of_params(chosen))
    try:
        history = train(
            players, batch_at_step, batches.keys, chosen, accelerator(chosen), place,
            validate=lambda objective: {}, adversary=ADVERSARY, name="toy",
        )  # fmt: skip
    finally:
        place.close()
    return players, history


def test_two_players_train_as_by_two_plain_optimizers(tmp_path: Path) -> None:
    chosen = params(ema_decay=0.0)
    found, history = run(tmp_path, chosen)
    plain = Players()
    own, theirs = list(plain.generator.parameters()), list(plain.adversary.parameters())
    groups = [{"params": [own[0]], "weight_decay": 0.01}, {"params": [own[1]], "weight_decay": 0.0}]
    ours = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99))
    other = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.5, 0.9), weight_decay=0.0)
    for step in range(chosen.num_steps):
        loss, score = plain.losses(Batches(chosen)(step, slice(0, 8)))
        gradients = torch.autograd.grad(loss, own, retain_graph=True)
        for weight, gradient in zip(own + theirs, [*gradients, *torch.autograd.grad(score, theirs)], strict=True):
            weight.grad = gradient
        nn.utils.clip_grad_norm_(own, 0.5)
        nn.utils.clip_grad_norm_(theirs, 0.2)
        for optimizer, rate in ((ours, 1e-2), (other, 3e-3)):
            for group in optimizer.param_groups:
                group["lr"] = rate * learning_rate_at(step, chosen) / 1e-2
        ours.step()
        if step >= ADVERSARY.start_step:
            other.step()
    for name, weight in plain.state_dict().items():
        assert torch.allclose(found.state_dict()[name], weight, atol=1e-6), name
    assert all(row["adversary_grad_norm"] > 0 for row in history.training)


@pytest.mark.parametrize("stop", [3, 5, 11])
def test_resumed_equals_uninterrupted_with_both_optimizers(tmp_path: Path, stop: int) -> None:
    """Stopped before the adversary starts, when it does, and after; a skipped update is on the way."""
    chosen, bad = params(save_every_steps=1), {7: 2}
    whole, history = run(tmp_path / "whole", chosen, bad=bad)
    with pytest.raises(Stopped):
        run(tmp_path / "part", chosen, bad=bad, stop=stop)
    resumed, again = run(tmp_path / "part", chosen, players=Players(seed=3), bad=bad)
    assert all(torch.equal(whole.state_dict()[name], weight) for name, weight in resumed.state_dict().items())
    assert again == history and [row["step"] for row in history.skipped] == [8]


def test_the_average_is_of_the_generator_alone(tmp_path: Path) -> None:
    averaged, last = (run(tmp_path / str(decay), params(ema_decay=decay))[0].state_dict() for decay in (0.9, 0.0))
    assert not torch.equal(averaged["generator.weight"], last["generator.weight"])
    assert torch.equal(averaged["adversary.weight"], last["adversary.weight"])
