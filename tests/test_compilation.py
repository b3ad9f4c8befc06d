"""Networks that are compiled, or whose convolutions work channels-last, compute what they computed before."""

from typing import Any

import pytest
import torch
from torch import nn

from ldm.autoencoder.model.networks import build as build_autoencoder
from ldm.autoencoder.model.params import KLAutoencoderParams
from ldm.compute import compilation
from ldm.compute.precision import autocast
from ldm.core.params import MachineParams
from ldm.denoiser.model.params import UNetParams
from ldm.denoiser.model.unet import UNet
from tests.agreement import TOLERANCE, assert_gradients_agree, randomise
from tests.test_unet import TINY, inputs, values_and_gradients
from tests.training_data import KEPT

SMALL = {"channels": [16], "attention_levels": [True], "num_context_layers": 1}
"""A UNet of four residual blocks of two shapes, three spatial transformers of one, and a context layer."""
GPU = torch.device("cuda")


def machine(**changes: Any) -> MachineParams:
    given = {"threads": 1, "num_workers": 0, "attention": "sdpa", "compile": False} | KEPT
    return MachineParams.model_validate(given | changes)


def unet(**changes: Any) -> UNet:
    torch.manual_seed(0)
    network = UNet(UNetParams.model_validate(TINY | SMALL | changes))
    randomise(network)
    return network


def autoencoder() -> Any:
    torch.manual_seed(0)
    params = {"kind": "kl", "patch_px": 1, "channels": [8, 16], "num_res_blocks": 1, "latent_channels": 4}
    network = build_autoencoder(
        KLAutoencoderParams.model_validate(params | {"middle_attention": True, "quant_conv": True, "norm_groups": 4})
    )
    randomise(network)
    return network


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """From now on what is compiled runs as the graphs that torch has traced, which this list collects."""
    torch.compiler.reset()
    traced: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        traced.append(graph)
        return graph.forward

    plain = torch.compile

    def compile_by_tracing(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **{name: value for name, value in kwargs.items() if name == "dynamic"}, backend=backend)

    monkeypatch.setattr(torch, "compile", compile_by_tracing)
    return traced


def compiled(network: nn.Module) -> list[str]:
    return [type(part).__name__ for part in network.modules() if part._compiled_call_impl is not None]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"compile": True}, ", compile: true"),
        ({"compile": "blocks", "channels_last": True}, ", compile: blocks, channels last"),
    ],
)
def test_a_stage_says_how_it_computes(changes, words):
    assert compilation.described(machine(**changes)) == words


def test_by_default_nothing_is_compiled_and_no_layout_changes():
    network = unet()
    compilation.prepare(machine(), network)
    assert compiled(network) == [] and not any(layer._forward_pre_hooks for layer in network.modules())


@pytest.mark.parametrize(
    ("how", "names"),
    [(True, {"UNet"}), ("blocks", {"ResBlock", "SpatialTransformer", "ContextLayer"})],
)
def test_what_is_compiled_has_the_names_and_the_weights_that_it_had(how, names, graphs):
    network, plain = unet(), unet()
    compilation.prepare(machine(compile=how), network)
    assert set(compiled(network)) == names
    found, expected = network.state_dict(), plain.state_dict()
    assert [*found] == [*expected] and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("how", "num_graphs"), [(True, 1), ("blocks", 4)])
def test_traced_it_computes_the_same_and_equal_blocks_share_a_graph(how, num_graphs, checkpointing, graphs):
    """Two shapes of residual blocks, a spatial transformer and a context layer."""
    network = unet(gradient_checkpointing=checkpointing)
    data = inputs(UNetParams.model_validate(TINY | SMALL))
    expected = values_and_gradients(network, network, *data)
    compilation.prepare(machine(compile=how), network)
    for _ in range(2):
        network.zero_grad()
        found = values_and_gradients(network, network, *data)
        assert (found[0] - expected[0]).abs().max() <= TOLERANCE * expected[0].abs().max()
        assert_gradients_agree(found[1], expected[1])
    assert len(graphs) == num_graphs or checkpointing


@pytest.mark.parametrize("how", [True, "blocks"])
def test_a_prepared_condition_is_compiled_too_and_another_one_not_anew(how, graphs):
    network = unet()
    z, time, condition = inputs(UNetParams.model_validate(TINY | SMALL))
    with torch.no_grad():
        expected = network(z, time, condition)
        compilation.prepare(machine(compile=how), network)
        counts = []
        for _ in range(3):
            found = network(z, time, network.prepare(condition))
            assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
            counts.append(len(graphs))
    assert counts[0] == counts[2]


@pytest.mark.parametrize("how", [True, "blocks"])
def test_an_autoencoder_encodes_and_decodes_as_before(how, graphs):
    network, x = autoencoder(), torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    with torch.no_grad():
        z = network.encode(x).mode()
        expected = z, network.decode(z)
        compilation.prepare(machine(compile=how), *network.halves)
        found = network.encode(x).mode(), network.decode(z)
    assert len(graphs) >= 2
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= TOLERANCE * other.abs().max()


def test_more_shapes_of_blocks_than_torch_allows_are_compiled_all_the_same(graphs):
    widths = list(range(8, 8 * 13, 8))
    assert len(widths) > 8
    blocks = nn.ModuleList(type(unet().mid_block.resnets[0])(width, width, 4, 1e-5, 16) for width in widths)
    compilation.prepare(machine(compile="blocks"), blocks)
    for width, block in zip(widths, blocks, strict=True):
        block(torch.ones(1, width, 4, 4), torch.ones(1, 16))
    assert len(graphs) == len(widths)


def test_a_network_that_is_no_graph_has_its_blocks_compiled_alone(graphs):
    for how in (True, "blocks"):
        network = unet()
        compilation.prepare(machine(compile=how), network, as_wholes=False)
        assert set(compiled(network)) == {"ResBlock", "SpatialTransformer", "ContextLayer"}, how
    plain = nn.Sequential(nn.Linear(2, 2))
    compilation.prepare(machine(compile="blocks"), plain)
    assert compiled(plain) == ["Sequential"], "a network without blocks is one"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_channels_last_reaches_every_convolution_and_changes_rounding_alone(precision):
    network, plain = (
        unet(channels=[8, 16], attention_levels=[False, True]),
        unet(channels=[8, 16], attention_levels=[False, True]),
    )
    compilation.prepare(machine(channels_last=True), network)
    seen: list[bool] = []
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        layer.register_forward_pre_hook(
            lambda _, given: seen.append(given[0].is_contiguous(memory_format=torch.channels_last))
        )
    data = inputs(UNetParams.model_validate(TINY | SMALL))
    with autocast(torch.device("cpu"), precision):
        found, gradients = values_and_gradients(network, network, *data)
        expected, others = values_and_gradients(plain, plain, *data)
    assert seen == [True] * len(layers)
    assert all(weight.is_contiguous() for weight in network.parameters()), "states are saved as before"
    if precision == "fp32":
        assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
        assert_gradients_agree(gradients, others)
    else:
        assert (found - expected).abs().max() <= 5e-2 * expected.abs().max()


def test_a_compiler_makes_of_a_block_what_pytorch_computes(monkeypatch):
    """By g++, as on every CPU, which takes seconds for a single kernel."""
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)
    monkeypatch.setattr(torch._inductor.config, "cpp_cache_precompile_headers", False)
    torch.compiler.reset()
    block, x = unet().mid_block.resnets[0], torch.ones(2, 16, 4, 4).cumsum(2)
    with torch.no_grad():
        expected = block(x, torch.ones(2, 64))
        compilation.prepare(machine(compile="blocks"), block)
        found = block(x, torch.ones(2, 64))
    assert compiled(block) == ["ResBlock"]
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("how", [True, "blocks"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_steps_of_a_compiled_network_are_those_of_a_plain_one(precision, how, channels_last):
    """Updates, and between them calls without gradients and with weights that lie elsewhere, as a validation has."""

    def losses(network: UNet) -> list[float]:
        optimizer, found = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True), []
        others = {name: weight.detach().clone() for name, weight in network.named_parameters()}
        z, time, condition = inputs(UNetParams.model_validate(TINY | SMALL))
        z, time, condition = z.detach().to(GPU), time.to(GPU), condition.to(GPU)
        for _ in range(5):
            for name, weight in network.named_parameters():
                weight.data, others[name] = others[name], weight.data
            with torch.no_grad(), autocast(GPU, precision):
                found.append(float(network.eval()(z, time, condition).square().mean()))
            for name, weight in network.named_parameters():
                weight.data, others[name] = others[name], weight.data
            with autocast(GPU, precision):
                loss = network.train()(z, time, condition).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(loss))
        return found

    torch.compiler.reset()
    network, plain = unet().to(GPU), unet().to(GPU)
    compilation.prepare(machine(compile=how, channels_last=channels_last), network)
    tolerance = {"fp32": 1e-3, "bf16": 3e-2}[precision]
    assert losses(network) == pytest.approx(losses(plain), rel=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("how", [True, "blocks"])
def test_on_a_gpu_two_calls_of_a_compiled_network_leave_two_results(how):
    torch.compiler.reset()
    network = unet().to(GPU)
    z, time, condition = inputs(UNetParams.model_validate(TINY | SMALL))
    z, time, condition = z.detach().to(GPU), time.to(GPU), condition.to(GPU)
    with torch.no_grad():
        expected = network(z, time, condition), network(2 * z, time, condition)
        compilation.prepare(machine(compile=how), network)
        for _ in range(4):
            found = network(z, time, condition), network(2 * z, time, condition)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
