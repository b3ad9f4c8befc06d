import sys

import pytest
import torch

from ldm import attention
from ldm.errors import MachineError
from tests.agreement import assert_gradients_agree

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Batch, heads, queries, keys, width: self-attention, cross-attention, one key, odd width, longer than is written out.
SHAPES = [(2, 3, 16, 16, 32), (2, 3, 16, 7, 32), (1, 2, 5, 1, 8), (2, 1, 9, 12, 20), (1, 1, 300, 280, 8)]


@pytest.fixture(autouse=True)
def restored():
    yield
    attention.use("sdpa", CPU)


def available(device: torch.device) -> list[str]:
    names = []
    for name in ("math", "sdpa", "xformers", "auto"):
        try:
            attention.use(name, device)
        except MachineError:
            continue
        names.append(name)
    return names


def written_out(q, k, v):
    """One query at a time, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    rows = []
    for i in range(q.shape[2]):
        weights = torch.exp(torch.einsum("bkd,bkmd->bkm", q[:, :, i], k) / q.shape[-1] ** 0.5)
        rows.append(torch.einsum("bkm,bkmd->bkd", weights / weights.sum(-1, keepdim=True), v))
    return torch.stack(rows, dim=2)


def inputs(shape, device=CPU):
    b, heads, n, m, d = shape
    generator = torch.Generator().manual_seed(0)
    sizes = [(b, heads, n, d), (b, heads, m, d), (b, heads, m, d)]
    return [torch.randn(size, generator=generator).to(device).requires_grad_() for size in sizes]


def value_and_gradients(attend, tensors):
    out = attend(*tensors)
    weight = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape)
    gradients = torch.autograd.grad((out * weight).sum(), tensors)
    return dict(zip(("out", "q", "k", "v"), (out.detach(), *gradients), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_math_is_the_formula(shape):
    expected = value_and_gradients(written_out, inputs(shape))
    assert_gradients_agree(value_and_gradients(attention.math, inputs(shape)), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_available_backend_agrees_with_math_in_value_and_gradient(shape):
    expected = value_and_gradients(attention.math, inputs(shape, DEVICE))
    for name in available(DEVICE):
        attention.use(name, DEVICE)
        assert_gradients_agree(value_and_gradients(attention.attend, inputs(shape, DEVICE)), expected)


def test_backends_agree_under_autocast():
    tensors = inputs(SHAPES[0], DEVICE)
    expected = value_and_gradients(attention.math, tensors)
    for name in available(DEVICE):
        attention.use(name, DEVICE)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            found = attention.attend(*tensors)
        assert (found - expected["out"]).abs().max() <= 2e-2 * expected["out"].abs().max(), name


def test_math_sdpa_and_auto_run_on_a_cpu_and_xformers_does_not():
    assert available(CPU) == ["math", "sdpa", "auto"]
    assert attention.use("math", CPU) == "math"
    assert attention.use("auto", CPU) == "math+sdpa"


@pytest.mark.parametrize("asked", ["math", "sdpa", "auto"])
def test_the_backend_in_use_has_the_name_that_was_returned(asked):
    assert attention.use(asked, torch.device("cpu")) == attention.active()


def test_a_backend_that_cannot_run_is_named_and_the_old_one_stays():
    attention.use("math", CPU)
    with pytest.raises(MachineError, match=r"machine\.attention: xformers cannot run on cpu .*\nfix: set it to auto"):
        attention.use("xformers", CPU)
    q, k, v = inputs(SHAPES[0])
    assert torch.equal(attention.attend(q, k, v), attention.math(q, k, v))


def test_a_missing_xformers_is_a_machine_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.raises(MachineError, match="xformers cannot run"):
        attention.use("xformers", CPU)


def test_math_trains_short_bf16_sequences_and_sdpa_does_the_rest(monkeypatch):
    calls = []
    monkeypatch.setattr(attention, "math", lambda q, k, v: calls.append("math"))
    monkeypatch.setattr(attention, "sdpa", lambda q, k, v: calls.append("sdpa"))
    short, long = ([tensor.bfloat16() for tensor in inputs(shape)] for shape in (SHAPES[0], SHAPES[-1]))
    for tensors in (short, [tensor.detach() for tensor in short], [tensor.float() for tensor in short], long):
        attention.math_or_sdpa(*tensors)
    assert calls == ["math", "sdpa", "sdpa", "sdpa"]


@pytest.mark.parametrize(("backend", "written_out"), [("math", True), ("auto", True), ("sdpa", False)])
def test_networks_of_other_packages_write_attention_out_where_ours_do(backend, written_out):
    attention.use(backend, CPU)
    with attention.kernels_of_others():
        assert torch.backends.cuda.flash_sdp_enabled() is not written_out
    assert torch.backends.cuda.flash_sdp_enabled()
