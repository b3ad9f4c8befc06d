"""Rates, decays and skipped updates of the optimizer, in closed form."""

import pytest
import torch

from ldm.training import optimizer
from ldm.training.optimizer import AdamW, ema_decay_at, learning_rate_at
from tests.toy_training import params


def test_learning_rate() -> None:
    chosen = params(num_steps=103, num_warmup_steps=3, learning_rate=0.3, final_learning_rate_fraction=0.1)
    rates = [learning_rate_at(step, chosen) for step in range(103)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.3])
    assert rates[53] == pytest.approx((0.3 + 0.03) / 2)
    assert rates[102] == pytest.approx(0.03, rel=2e-2)
    assert learning_rate_at(9, params(num_warmup_steps=0, final_learning_rate_fraction=1.0)) == 1e-2


def test_ema_decay() -> None:
    chosen = params(ema_decay=0.9)
    assert ema_decay_at(0, chosen) == pytest.approx(0.1)
    assert ema_decay_at(80, chosen) == ema_decay_at(10**6, chosen) == 0.9


def test_fused_adamw_skips_an_update_whole() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    adamw = AdamW([weight], lr=0.1, fused=True)
    for found_inf in (0.0, 1.0):
        weight.grad = torch.full((3,), torch.nan) if found_inf else torch.ones(3)
        before = [weight.detach().clone(), *(v.clone() for v in adamw.state[weight].values())]
        adamw.found_inf = torch.tensor(found_inf)
        adamw.step()
    after = [weight.detach(), *adamw.state[weight].values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_matrices_decay_and_vectors_do_not() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    adamw = optimizer.build([matrix, vector], params(weight_decay=0.5))
    for group in adamw.param_groups:
        group["lr"] = 0.1
    matrix.grad, vector.grad = torch.zeros_like(matrix), torch.zeros_like(vector)
    adamw.found_inf = torch.tensor(0.0)
    adamw.step()
    assert torch.equal(matrix, torch.full((2, 2), 1 - 0.1 * 0.5)) and torch.equal(vector, torch.ones(2))
