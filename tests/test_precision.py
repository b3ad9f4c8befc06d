import os
from typing import Any

import pytest
import torch
from torch import nn

from ldm.compute import precision
from ldm.compute.precision import DTYPES, Rates, autocast, cast_products

CPU = torch.device("cpu")


@pytest.mark.parametrize("named", DTYPES)
def test_products_are_of_the_named_type_whatever_autocast_is_around(named):
    x = torch.ones(2, 2)
    for outer in DTYPES:
        with autocast(CPU, outer), autocast(CPU, named):
            assert (x @ x).dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[named]
    assert (x @ x).dtype == torch.float32


@pytest.mark.parametrize("keeps_casts", [True, False])
def test_casts_are_kept_as_long_as_asked_for(keeps_casts: bool):
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with autocast(x.device, "bf16", keeps_casts=keeps_casts):
        before = layer(x)
        layer.weight.data.zero_()
        assert torch.equal(before, layer(x)) is keeps_casts


def test_weights_that_are_cast_once_give_the_bits_of_autocast():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(2), nn.Linear(36, 5), nn.LayerNorm(5)
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    x, cast = torch.randn(2, 3, 8, 8), cast_products(network, "bf16")
    with autocast(CPU, "bf16"), torch.no_grad():
        assert torch.equal(cast(x), network(x))
    assert [p.dtype for p in network.parameters()] == [torch.float32] * 8
    assert [p.dtype == torch.float32 for p in cast.parameters()] == [False] * 2 + [True] * 2 + [False] * 2 + [True] * 2


@pytest.mark.parametrize(
    ("bf16", "fp32", "chosen"),
    [
        (84, 160, "fp32"),
        (219, 98, "bf16"),
        (100, 100, "bf16"),
        (100, 114, "bf16"),
        (100, 116, "fp32"),
        (100, 1, "bf16"),
    ],
)
def test_auto_takes_fp32_where_it_is_clearly_faster_and_bf16_otherwise(bf16: float, fp32: float, chosen: str):
    found, why = precision.compare({"bf16": bf16, "fp32": fp32})
    assert found == chosen and f"{bf16} GFLOP/s in bf16" in why and f"{fp32} in fp32" in why


def test_the_speed_of_a_network_is_that_of_its_own_products():
    rates = Rates(convolution=100, linear=25)
    kernel, matrix = nn.Conv2d(8, 8, 3), nn.Linear(24, 24)  # 576 weights each
    assert rates.of(kernel) == pytest.approx(100) and rates.of(matrix) == pytest.approx(25)
    assert rates.of(nn.Sequential(kernel, matrix)) == pytest.approx(40), "each takes half of the products"
    assert rates.of(nn.Sequential(kernel, nn.GroupNorm(1, 8))) == pytest.approx(100), "vectors multiply nothing"


def test_two_networks_may_take_two_precisions_on_one_cpu(monkeypatch: pytest.MonkeyPatch):
    measured = {"fp32": Rates(convolution=140, linear=20), "bf16": Rates(convolution=70, linear=80)}
    monkeypatch.setattr(precision, "rates", lambda: measured)
    monkeypatch.setattr(precision, "is_measured", lambda device: True)
    assert precision.choose(nn.Conv2d(8, 8, 3), CPU)[0] == "fp32"
    assert precision.choose(nn.Linear(8, 8), CPU)[0] == "bf16"


@pytest.mark.parametrize(("has_units", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_on_a_gpu_its_units_decide(has_units: bool, chosen: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_units)
    assert precision.choose(nn.Linear(2, 2), torch.device("cuda"))[0] == chosen


def test_a_cpu_without_kernels_for_bf16_is_not_measured(monkeypatch: pytest.MonkeyPatch):
    """Emulated products take ten times as long, and so would the measurement."""
    monkeypatch.setattr(precision, "is_measured", lambda device: False)
    monkeypatch.setattr(precision, "rates", lambda: pytest.fail("measured"))
    found, why = precision.choose(nn.Linear(2, 2), CPU)
    assert found == "fp32" and "no units for bf16" in why
    assert precision.possible("auto", CPU) == ("fp32",) and precision.possible("bf16", CPU) == ("bf16",)


def test_only_cpus_are_measured():
    assert precision.is_measured(CPU) is bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    assert not precision.is_measured(torch.device("cuda"))


@pytest.mark.parametrize(
    ("asked", "is_measured", "set_to", "left"),
    [
        ("auto", False, "COMPATIBLE", "AUTO"),
        ("auto", True, "COMPATIBLE", "COMPATIBLE"),
        ("fp32", False, "COMPATIBLE", "COMPATIBLE"),
        ("auto", False, "AVX2", "AVX2"),
    ],
)
def test_mkl_is_free_where_a_training_falls_back_to_float32(
    asked: Any, is_measured: bool, set_to: str, left: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MKL_CBWR", set_to)
    monkeypatch.setattr(precision, "is_measured", lambda device: is_measured)
    precision.let_mkl_choose_its_code(asked)
    assert os.environ["MKL_CBWR"] == left


def test_a_measurement_changes_neither_threads_nor_random_numbers():
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    precision.rates.cache_clear()
    with torch.inference_mode():
        rates = precision.rates()
    assert all(rate > 0 for each in rates.values() for rate in each) and rates.keys() == DTYPES.keys()
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), random)


def test_nothing_is_computed_in_a_precision_that_is_not_settled():
    with pytest.raises(AssertionError, match="settled"):
        autocast(CPU, "auto")
