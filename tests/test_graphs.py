"""Networks whose calls a GPU records and replays compute what they computed before."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ldm.autoencoder.training.loss_params import ReconstructionParams
from ldm.autoencoder.training.objective import ReconstructionObjective
from ldm.compute import compilation, graphs, launcher, ranks
from ldm.compute.precision import autocast
from ldm.denoiser.model.condition import Condition, Prepared
from ldm.denoiser.model.params import UNetParams
from ldm.denoiser.model.unet import UNet
from tests.test_compilation import GPU, SMALL, autoencoder, machine, unet
from tests.test_unet import TINY, inputs
from tests.training_data import AUTOENCODER

PARAMS = UNetParams.model_validate(TINY | SMALL)
GRAPHS = machine(compile="graphs")

LOSS = ReconstructionParams.model_validate(AUTOENCODER["source"]["reconstruction"] | {"turned_colours": 1.0})


def images_of(step: int) -> dict[str, Tensor]:
    """A batch of an autoencoder's training, on the GPU."""
    generator = torch.Generator().manual_seed(step)
    given = {
        "image": torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8, generator=generator),
        "noise": torch.randn(2, 4, 8, 8, generator=generator),
        "hues": torch.rand(2, generator=generator),
        "latent_noise": torch.randn(2, 4, 8, 8, generator=generator),
    }
    return {name: value.to(GPU) for name, value in given.items()}


def on_gpu() -> tuple[Tensor, Tensor, Condition]:
    z, time, condition = inputs(PARAMS)
    return z.detach().to(GPU), time.to(GPU), condition.to(GPU)


@pytest.mark.parametrize("mask", [None, torch.ones(2, 3, dtype=torch.bool)])
def test_the_tensors_of_a_condition_are_found_and_put_back(mask):
    tokens, (one, other) = torch.ones(2, 3, 4), (nn.Linear(1, 1), nn.Linear(1, 1))
    condition = Condition(tokens, mask, pooled=torch.zeros(2, 5))
    pairs = {layer: (torch.ones(2, i + 1, 3, 4), torch.zeros(2, i + 1, 3, 4)) for i, layer in enumerate((one, other))}
    for whole, count in ((condition, 2), (Prepared(pairs, mask), 4)):
        tensors, structure = pytree.tree_flatten((whole,))
        assert len(tensors) == count + (mask is not None)
        (again,) = pytree.tree_unflatten(tensors, structure)
        assert again == whole if mask is None and isinstance(whole, Prepared) else type(again) is type(whole)
        assert all(a is b for a, b in zip(pytree.tree_leaves(again), tensors, strict=True))
        assert hash(structure) == hash(pytree.tree_flatten((again,))[1])


def test_on_a_cpu_calls_stay_as_they_are():
    network, plain = unet(), unet()
    compilation.prepare(GRAPHS, network)
    for _ in range(3):
        assert torch.equal(network(*inputs(PARAMS)), plain(*inputs(PARAMS)))
    assert [*network.state_dict()] == [*plain.state_dict()]


def test_one_process_on_a_gpu_replays_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert compilation.described(machine(compile=None)) == ", compile: graphs"
    assert compilation.described(machine(compile=False)) == ""
    with monkeypatch.context() as split:
        split.setattr(launcher, "splits", lambda: True)
        assert compilation.described(machine(compile=None)) == ""
    monkeypatch.setattr(ranks, "count", lambda: 2)
    assert compilation.described(machine(compile=None)) == ""


def test_what_is_no_single_graph_is_not_recorded():
    network = unet()
    compilation.prepare(GRAPHS, network, as_wholes=False)
    assert "forward" not in vars(network)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """From now on tensors count as those of a GPU, and what is recorded is listed and computed as before."""
    found: list[Any] = []

    def record(self: graphs.Calls, tensors: list[Tensor], structure: Any) -> Callable[..., Any]:
        found.append([tuple(each.shape) for each in tensors])
        return lambda *given: self._plain(*pytree.tree_unflatten(given, structure))

    monkeypatch.setattr(graphs, "_is_on_gpu", lambda _: True)
    monkeypatch.setattr(graphs.Calls, "_record", record)
    return found


def test_a_call_is_recorded_when_its_kind_comes_for_the_second_time(recorded, monkeypatch):
    def in_bf16(network: nn.Module, x: Tensor) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(graphs, "_autocast", lambda: (True, torch.bfloat16))
            return network(x)

    network = nn.Linear(2, 3)
    graphs.replay(network)
    x = torch.ones(4, 2)
    calls: list[Callable[[], Any]] = [
        lambda: network(x),
        lambda: network(x[:3]),  # another shape
        lambda: network.eval()(x),  # another mode
        lambda: torch.no_grad()(network)(x),
        lambda: in_bf16(network, x),
    ]
    for call in calls:
        call()
    assert recorded == []
    for _ in range(2):
        for call in calls:
            network.train()
            call()
    assert len(recorded) == len(calls)
    network.weight.data = network.weight.data.clone()  # weights that lie elsewhere
    assert network(x).shape == (4, 3) and len(recorded) == len(calls)
    network(x)
    assert len(recorded) == len(calls) + 1


def test_no_more_kinds_are_recorded_than_memory_is_for(recorded):
    network = nn.Linear(2, 3)
    graphs.replay(network)
    for _ in range(2):
        for rows in range(1, graphs.MAX_RECORDED + 5):
            assert network(torch.ones(rows, 2)).shape == (rows, 3)
    assert len(recorded) == graphs.MAX_RECORDED


class Eager:
    """Stands for a CUDA graph: it computes anew, and writes into the same memory."""

    def __init__(self, compute: Callable[[], list[Tensor | None]], places: list[Tensor | None]) -> None:
        self.compute, self.places = compute, places

    def replay(self) -> None:
        for to, value in zip(self.places, self.compute(), strict=True):
            if to is not None:
                to.data.copy_(value)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], None]:
    """From now on calls with gradients are replayed, by a CPU, for the network that is given to it."""
    networks: list[nn.Module] = []

    def both_ways(call: Callable[[], Any], own: list[Tensor], weights: list[Tensor], memory: Any) -> graphs._Pass:
        assert all(a.data_ptr() == b.data_ptr() for a, b in zip(weights, networks[0].parameters(), strict=True))
        with torch.no_grad():
            results, structure = pytree.tree_flatten(call())
        given = [torch.ones_like(each) for each in results]
        gradients = [torch.empty_like(each) for each in (*own, *weights)]
        last: list[Any] = []

        def forwards() -> list[Tensor]:
            with torch.enable_grad():
                last[:] = pytree.tree_leaves(call())
            return last

        def backwards() -> list[Tensor]:
            return list(torch.autograd.grad(last, [*own, *networks[0].parameters()], given))

        ways = Eager(forwards, results), own, results, Eager(backwards, gradients), given, gradients, structure
        return graphs._Pass(*ways)

    monkeypatch.setattr(graphs, "_is_on_gpu", lambda _: True)
    monkeypatch.setattr(graphs, "_both_ways", both_ways)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    return networks.append


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor([2.0, 3.0])), nn.Parameter(torch.tensor(1.0))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        value = batch["x"] * self.w + self.b
        return {"loss": value.square().sum(), "value": value}


def test_a_replay_has_the_gradients_of_a_call_and_adds_them_up(eager):
    network, plain = Affine(), Affine()
    eager(network)
    graphs.replay(network)
    for step in range(6):
        for each in (network, plain):
            x = torch.tensor([1.0, step], requires_grad=True)
            found = each({"x": x})
            (found["loss"] + 3 * found["value"].sum()).backward()
            each.given = x.grad
        assert torch.equal(network.given, plain.given)
        for own, other in zip(network.parameters(), plain.parameters(), strict=True):
            assert torch.equal(own.grad, other.grad), step
        if step in (2, 3):
            network.zero_grad()
            plain.zero_grad()
    assert len(network.forward._recorded) == 1


def test_what_another_replay_has_written_over_has_no_gradients(eager):
    network = Affine()
    eager(network)
    graphs.replay(network)
    x = torch.ones(2, requires_grad=True)
    _, _, first = network({"x": x}), network({"x": x}), network({"x": x})["loss"]
    second = network({"x": x})["loss"]
    with pytest.raises(AssertionError, match="another replay"):
        first.backward()
    second.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="another replay"):
        second.backward()


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_steps_are_equal_in_every_bit(precision, checkpointing):
    """Updates, and between them calls without gradients and with other weights in their place, as a validation has."""

    def losses(network: UNet) -> list[float]:
        optimizer, found = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True), []
        z, time, condition = on_gpu()
        for step in range(6):
            with torch.no_grad(), autocast(GPU, precision):
                network.conv_in.bias.mul_(2)
                found.append(float(network.eval()(z, time, condition).square().mean()))
                network.conv_in.bias.div_(2)
            with autocast(GPU, precision):
                loss = network.train()((step + 1) * z, time, condition).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(loss.detach()))
        return found

    network, plain = (unet(gradient_checkpointing=checkpointing).to(GPU) for _ in range(2))
    compilation.prepare(GRAPHS, network)
    assert losses(network) == losses(plain)
    assert len(network.forward._recorded) == 2


@pytest.mark.gpu
def test_on_a_gpu_gradients_of_several_calls_add_up():
    found = []
    for how in (GRAPHS, machine()):
        network, (z, time, condition) = unet().to(GPU), on_gpu()
        compilation.prepare(how, network)
        for step in range(8):
            network((step + 1) * z, time, condition).square().mean().backward()
            if step == 3:
                network.zero_grad()
        found.append([weight.grad for weight in network.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.gpu
def test_on_a_gpu_two_calls_leave_two_results():
    network, (z, time, condition) = unet().to(GPU), on_gpu()
    with torch.no_grad():
        expected = network(z, time, condition), network(2 * z, time, condition)
        compilation.prepare(GRAPHS, network)
        for _ in range(4):
            prepared = network.prepare(condition)
            found = network(z, time, prepared), network(2 * z, time, prepared)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_on_a_gpu_an_autoencoder_and_its_loss_are_replayed():
    x = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16).to(GPU)
    network, plain = autoencoder().to(GPU), autoencoder().to(GPU)
    with torch.no_grad():
        compilation.prepare(GRAPHS, *network.halves)
        for _ in range(3):
            z = network.encode(x).mode()
            assert torch.equal(z, plain.encode(x).mode()) and torch.equal(network.decode(z), plain.decode(z))
    found = []
    for how in (GRAPHS, machine()):
        objective = ReconstructionObjective(autoencoder(), LOSS).to(GPU)
        compilation.prepare(how, objective)
        optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3, fused=True)
        found.append([])
        for step in range(5):
            scalars = objective(images_of(step))
            scalars["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            found[-1].append({name: float(value) for name, value in scalars.items()})
    assert found[0] == found[1]


@pytest.mark.gpu
def test_on_a_gpu_another_thread_may_fill_pinned_memory_meanwhile():
    network, (z, time, condition), is_done = unet().to(GPU), on_gpu(), threading.Event()

    def fill() -> None:
        size = 1
        while not is_done.is_set():
            size = size % 1000 + 1
            torch.zeros(size, 1000).pin_memory()

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        compilation.prepare(GRAPHS, network)
        for _ in range(3):
            network(z, time, condition).square().mean().backward()
    finally:
        is_done.set()
        thread.join()
    assert len(network.forward._recorded) == 1
