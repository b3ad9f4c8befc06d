"""Rates, decays and skipped updates of the optimizer, in closed form."""

import pytest
import torch
from torch import nn

from ldm.training import muon
from ldm.training.muon import Muon, is_for_matrices, orthogonalised
from ldm.training.optimizer import AdamW, Optimizers, ema_decay_at, learning_rate_at
from ldm.training.params import AdversaryParams, MuonParams
from tests.toy_training import accelerator, params

ADVERSARY = AdversaryParams(start_step=0, learning_rate=0.02, betas=(0.5, 0.9), max_grad_norm=0.3)
MUON = MuonParams(learning_rate=0.005, momentum=0.9, num_iterations=5)


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
    weights = {"matrix": nn.Parameter(torch.ones(2, 2)), "vector": nn.Parameter(torch.ones(2))}
    chosen = params(weight_decay=0.5, learning_rate=0.1, num_warmup_steps=0)
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)
    good, _ = Optimizers(weights, chosen, None).update(0, accelerator(chosen), chosen.precision)
    assert good and torch.equal(weights["matrix"], torch.full((2, 2), 1 - 0.1 * 0.5))
    assert torch.equal(weights["vector"], torch.ones(2))


@pytest.mark.parametrize("bad", ["own.w", "adversary.w"])
def test_both_optimizers_take_an_update_or_neither_does(bad: str) -> None:
    """A gradient that is not finite in one of them leaves weights, moments and step counts of both as they were."""
    chosen = params(num_warmup_steps=0)
    weights = {name: nn.Parameter(torch.ones(3, 3)) for name in ("own.w", "adversary.w")}
    optimizers = Optimizers(weights, chosen, ADVERSARY)
    for broken in (False, True):
        before = [{"w": w.detach().clone(), **clones(optimizers.moments(w))} for w in weights.values()]
        for name, weight in weights.items():
            weight.grad = torch.full((3, 3), torch.inf if broken and name == bad else 1.0)
        good, norms = optimizers.update(0, accelerator(chosen), chosen.precision)
        assert bool(good) != broken and norms.keys() == {"grad_norm", "adversary_grad_norm"}
        after = [{"w": w.detach(), **optimizers.moments(w)} for w in weights.values()]
        same = [
            all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(after, before, strict=True) if a.keys() == b.keys()
        ]
        assert same == ([True, True] if broken else [])
    assert all(weight.grad is None for weight in weights.values())


def test_an_adversary_has_its_own_rate_norm_and_start() -> None:
    chosen = params(num_warmup_steps=0, learning_rate=0.1, weight_decay=0.0, final_learning_rate_fraction=0.0)
    weights = {name: nn.Parameter(torch.ones(2, 2)) for name in ("own.w", "adversary.w")}
    optimizers = Optimizers(weights, chosen, ADVERSARY.model_copy(update={"start_step": 10}))
    moved = []
    for step in (9, 10):
        for weight in weights.values():
            weight.grad = torch.ones(2, 2)
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        optimizers.update(step, accelerator(chosen), chosen.precision)
        moved.append({name: (before[name] - weight).max().item() for name, weight in weights.items()})
    assert moved[0]["own.w"] > 0 == moved[0]["adversary.w"] and len(optimizers.moments(weights["adversary.w"])) == 3
    # The first update of AdamW is the learning rate, which is halfway down the cosine for both.
    assert moved[1]["adversary.w"] == pytest.approx(0.02 * learning_rate_at(10, chosen) / 0.1, rel=1e-5)
    first_moment = optimizers.moments(weights["adversary.w"])["exp_avg"]
    assert first_moment.norm().item() == pytest.approx(0.5 * ADVERSARY.max_grad_norm, rel=1e-5)


@pytest.mark.parametrize("shape", [(40, 64), (64, 40)])
def test_muon_is_that_of_torch_for_matrices(shape: tuple[int, int]) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = Muon([ours], 0.9, 5)
    optimizer.found_inf, optimizer.param_groups[0]["lr"] = torch.tensor(0.0), 0.01
    optimizer.dtype = torch.bfloat16
    other = torch.optim.Muon([theirs], lr=0.01, weight_decay=0, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        ours.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1 + step))
        theirs.grad = ours.grad.clone()
        optimizer.step()
        other.step()
    # Both iterate in bf16, and may round differently.
    assert (ours - theirs).norm() < 0.01 * (theirs - start).norm()


def test_an_orthogonalised_matrix_has_singular_values_of_about_one() -> None:
    values = torch.linalg.svdvals(orthogonalised(torch.randn(2, 32, 100), 5).float())
    assert values.min() > 0.6 and values.max() < 1.25


@pytest.mark.parametrize("num_processes", [2, 3])
def test_each_process_orthogonalises_its_share_of_the_matrices(num_processes: int, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 32, 32), (1, 32, 40), (4, 32, 64)
    stacks = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    alone = muon._orthogonalised_together(stacks, 5)
    shares, sizes = [], []

    def one(stack: torch.Tensor, num_iterations: int) -> torch.Tensor:
        sizes[-1] += len(stack)
        return orthogonalised(stack, num_iterations)

    monkeypatch.setattr(muon, "orthogonalised", one)
    monkeypatch.setattr(muon.ranks, "count", lambda: num_processes)
    monkeypatch.setattr(muon.distributed, "all_reduce", lambda flat: None)
    for rank in range(num_processes):
        sizes.append(0)
        monkeypatch.setattr(muon.distributed, "get_rank", lambda own=rank: own)
        shares.append(muon._orthogonalised_together(stacks, 5))
    assert sum(sizes) == 8 and max(sizes) - min(sizes) <= 1
    for whole, parts in zip(alone, zip(*shares, strict=True), strict=True):
        torch.testing.assert_close(sum(parts), whole, rtol=1e-2, atol=1e-3)
        assert all(sum(bool(part[i].any()) for part in parts) == 1 for i in range(len(whole)))


def test_a_kernel_is_the_matrix_of_its_output_channels() -> None:
    flat = nn.Parameter(torch.zeros(32, 36))
    kernel = nn.Parameter(torch.zeros(32, 4, 3, 3))
    optimizer = Muon([kernel, flat], 0.9, 5)
    optimizer.found_inf, optimizer.param_groups[0]["lr"] = torch.tensor(0.0), 0.01
    optimizer.dtype = torch.bfloat16
    flat.grad = torch.randn(32, 36)
    kernel.grad = flat.grad.view_as(kernel)
    optimizer.step()
    assert flat.abs().sum() > 0 and torch.equal(kernel.flatten(1), flat)


def test_muon_is_for_wide_matrices_that_are_no_embeddings() -> None:
    shapes = {"to_q.weight": (64, 32), "conv.weight": (32, 4, 3, 3), "conv_in.weight": (64, 3, 3, 3), "bias": (64,)}
    shapes |= {"time_embedding.linear_1.weight": (64, 64), "context_encoder.positions": (32, 64)}
    taken = [name for name, shape in shapes.items() if is_for_matrices(name, nn.Parameter(torch.zeros(shape)))]
    assert taken == ["to_q.weight", "conv.weight"]


@pytest.mark.parametrize("shape", [(16, 64), (64, 64)])
def test_muon_may_find_no_matrix_and_leave_none_to_adamw(shape: tuple[int, int]) -> None:
    """Low-rank adapters alone are trained: all of them are narrow, or all are wide."""
    chosen = params(num_warmup_steps=0, muon=MUON.model_dump())
    weight = nn.Parameter(torch.ones(shape))
    weight.grad = torch.ones(shape)
    good, _ = Optimizers({"lora_A": weight}, chosen, None).update(0, accelerator(chosen), chosen.precision)
    assert good and (weight < 1).all()


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_muon_multiplies_in_the_precision_of_the_training(precision, dtype, monkeypatch) -> None:
    """A CPU without kernels for bf16 would take 17 times as long."""
    types = []

    def recorded(stack: torch.Tensor, num_iterations: int) -> torch.Tensor:
        types.append(stack.dtype)
        return orthogonalised(stack, num_iterations)

    monkeypatch.setattr(muon, "orthogonalised", recorded)
    chosen = params(num_warmup_steps=0, muon=MUON.model_dump())
    weight = nn.Parameter(torch.zeros(32, 32))
    weight.grad = torch.eye(32)
    Optimizers({"matrix": weight}, chosen, None).update(0, accelerator(chosen), precision)
    assert types == [dtype] and weight.dtype == torch.float32


def test_muon_takes_matrices_at_its_own_rate_and_skips_with_adamw() -> None:
    chosen = params(num_warmup_steps=0, muon=MUON.model_dump())
    weights = {"matrix": nn.Parameter(torch.zeros(32, 32)), "vector": nn.Parameter(torch.zeros(32))}
    optimizers = Optimizers(weights, chosen, None)
    for broken in (False, True):
        before = [{"w": w.detach().clone(), **clones(optimizers.moments(w))} for w in weights.values()]
        weights["matrix"].grad = torch.eye(32)
        weights["vector"].grad = torch.full((32,), torch.nan if broken else 1.0)
        good, _ = optimizers.update(0, accelerator(chosen), chosen.precision)
        assert bool(good) != broken
        after = [{"w": w.detach(), **optimizers.moments(w)} for w in weights.values()]
        if broken:
            assert all(torch.equal(a[k], b[k]) for a, b in zip(after, before, strict=True) for k in b)
    assert optimizers.moments(weights["matrix"]).keys() == {"momentum"}
    # The identity has singular values of one, of which the iterations make about one.
    moved = -weights["matrix"].detach().diagonal() / (MUON.learning_rate * 0.2 * 32**0.5)
    assert 0.6 < moved.min() <= moved.max() < 1.25
    assert all(weight.grad is None for weight in weights.values())


def clones(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}
