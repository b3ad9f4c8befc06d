import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.compute import attention
from ldm.compute.precision import autocast
from ldm.core.errors import MachineError
from tests.agreement import assert_gradients_agree

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Batch, heads, queries, keys, width: self-attention, cross-attention, one key, odd width, longer than is written out.
XFORMERS = "import logging; logging.basicConfig(); import xformers, xformers.ops"
SHAPES = [(2, 3, 16, 16, 32), (2, 3, 16, 7, 32), (1, 2, 5, 1, 8), (2, 1, 9, 12, 20), (1, 1, 300, 280, 8)]


@pytest.fixture(autouse=True)
def restored():
    yield
    attention.select("sdpa", CPU)


def available(device: torch.device) -> list[str]:
    names = []
    for name in ("math", "sdpa", "cudnn", "xformers", "auto"):
        try:
            attention.select(name, device)
        except MachineError:
            continue
        names.append(name)
    return names


def written_out(q, k, v, mask=None):
    """One query at a time, in float64; a masked key has a score of -inf."""
    q, k, v = q.double(), k.double(), v.double()
    rows = []
    for i in range(q.shape[2]):
        scores = torch.einsum("bkd,bkmd->bkm", q[:, :, i], k) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = torch.where(mask[:, None], scores, -torch.inf)
        weights = torch.exp(scores)
        rows.append(torch.einsum("bkm,bkmd->bkd", weights / weights.sum(-1, keepdim=True), v))
    return torch.stack(rows, dim=2)


def inputs(shape, device=CPU):
    b, heads, n, m, d = shape
    generator = torch.Generator().manual_seed(0)
    sizes = [(b, heads, n, d), (b, heads, m, d), (b, heads, m, d)]
    return [torch.randn(size, generator=generator).to(device).requires_grad_() for size in sizes]


def mask_of(shape, device=CPU):
    """Half of the keys, others in every row; the first in all."""
    mask = torch.rand(shape[0], shape[3], generator=torch.Generator().manual_seed(1)) < 0.5
    mask[:, 0] = True
    return mask.to(device)


def value_and_gradients(attend, tensors, *mask):
    out = attend(*tensors, *mask)
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
        attention.select(name, DEVICE)
        assert_gradients_agree(value_and_gradients(attention.attend, inputs(shape, DEVICE)), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_masked_key_has_no_weight_in_any_backend(shape):
    mask = mask_of(shape, DEVICE)
    expected = value_and_gradients(written_out, inputs(shape, DEVICE), mask)
    for name in available(DEVICE):
        attention.select(name, DEVICE)
        found = value_and_gradients(attention.attend, inputs(shape, DEVICE), mask)
        assert_gradients_agree(found, expected)
        assert not found["k"].transpose(1, 2)[~mask].any() and not found["v"].transpose(1, 2)[~mask].any(), name


@pytest.mark.parametrize("shape", SHAPES)
def test_math_and_sdpa_share_the_work_with_a_mask_too(shape):
    attention.select("auto", CPU)
    mask, tensors = mask_of(shape), [tensor.detach().bfloat16().requires_grad_() for tensor in inputs(shape)]
    expected = value_and_gradients(written_out, tensors, mask)["out"]
    found = attention.attend(*tensors, mask)
    assert (found - expected).abs().max() <= 2e-2 * expected.abs().max()


@pytest.mark.parametrize("backend", ["math", "sdpa"])
def test_without_a_mask_the_bits_are_those_of_the_plain_formula(backend):
    q, k, v = inputs(SHAPES[0])
    plain = {
        "math": torch.softmax(q @ (k * q.shape[-1] ** -0.5).transpose(-1, -2), dim=-1) @ v,
        "sdpa": torch.nn.functional.scaled_dot_product_attention(q, k, v),
    }
    attention.select(backend, CPU)
    assert torch.equal(attention.attend(q, k, v), plain[backend])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_xformers_gets_a_mask_in_the_form_that_its_kernels_take(shape, precision, monkeypatch):
    """On a CPU it has no kernel: in its place stands the formula of its documentation, for an added bias."""
    from xformers import ops
    from xformers.ops.fmha.cutlass import _check_bias_alignment

    def documented(q, k, v, attn_bias):
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        assert attn_bias.shape == (*q.shape[:3], k.shape[2]) and attn_bias.dtype == q.dtype
        reasons = []
        _check_bias_alignment(reasons, attn_bias)
        assert reasons == []
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + attn_bias
        return (scores.softmax(-1) @ v).transpose(1, 2)

    monkeypatch.setattr(ops, "memory_efficient_attention", documented)
    tensors, mask = inputs(shape), mask_of(shape)
    expected = value_and_gradients(written_out, tensors, mask)["out"]
    with autocast(CPU, precision):
        found = attention.xformers(*tensors, mask)
    assert (found - expected).abs().max() <= {"fp32": 1e-5, "bf16": 2e-2}[precision] * expected.abs().max()


def test_backends_agree_under_autocast():
    tensors = inputs(SHAPES[0], DEVICE)
    expected = value_and_gradients(attention.math, tensors)
    for name in available(DEVICE):
        attention.select(name, DEVICE)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            found = attention.attend(*tensors)
        assert (found - expected["out"]).abs().max() <= 2e-2 * expected["out"].abs().max(), name


def test_math_sdpa_and_auto_run_on_a_cpu_and_kernels_of_gpus_do_not():
    assert available(CPU) == ["math", "sdpa", "auto"]
    assert attention.select("math", CPU) == "math"
    assert attention.select("auto", CPU) == "math+sdpa"


@pytest.mark.parametrize("asked", ["math", "sdpa", "auto"])
def test_the_backend_in_use_has_the_name_that_was_returned(asked):
    assert attention.select(asked, torch.device("cpu")) == attention.selected()


def test_a_backend_that_cannot_run_is_named_and_the_old_one_stays():
    attention.select("math", CPU)
    with pytest.raises(MachineError, match=r"machine\.attention: xformers cannot run on cpu .*\nfix: set it to auto"):
        attention.select("xformers", CPU)
    q, k, v = inputs(SHAPES[0])
    assert torch.equal(attention.attend(q, k, v), attention.math(q, k, v))


def only(dtype, widest):
    """A backend of one type and of narrow heads, as kernels are; `use` proves any with heads of 32."""

    def attend(q, k, v, mask):
        if q.dtype != dtype or q.shape[-1] > widest:
            raise NotImplementedError(f"no kernel\nfor {q.dtype}, width {q.shape[-1]}")
        return attention.math(q, k, v)

    return attend


def use_instead_of_xformers(monkeypatch, backend):
    monkeypatch.setitem(attention._BACKENDS, "xformers", backend)
    assert attention.select("xformers", CPU) == "xformers"


@pytest.mark.parametrize(
    ("dtype", "widest", "shape", "precision", "reason"),
    [
        (torch.bfloat16, 160, (64, 77, 160), "bf16", None),
        (torch.bfloat16, 160, (64, 77, 160), "fp32", "no kernel for torch.float32, width 160"),
        (torch.float32, 160, (64, 64, 40), "fp32", None),
        (torch.float32, 160, (64, 64, 40), "bf16", "no kernel for torch.bfloat16, width 40"),
        (torch.bfloat16, 160, (256, 256, 512), "bf16", "no kernel for torch.bfloat16, width 512"),
    ],
)
@pytest.mark.parametrize("trains", [True, False])
def test_a_backend_is_proved_with_the_type_and_the_head_width_of_the_run(
    dtype, widest, shape, precision, reason, trains, monkeypatch
):
    """A kernel for bf16 alone is not refused for want of float32, and none passes for what it cannot do."""
    use_instead_of_xformers(monkeypatch, only(dtype, widest))
    if reason is None:
        attention.prove(CPU, [attention.Shape(*shape)], precision, trains=trains)
        return
    n, m, width = shape
    asked = f"{'train' if trains else 'compute'} {precision}, {n} x {m} tokens, head width {width}"
    with pytest.raises(MachineError, match=rf"xformers cannot run on cpu: {asked} \({reason}\).*\nfix: set it to auto"):
        attention.prove(CPU, [attention.Shape(*shape)], precision, trains=trains)


def test_gradients_are_asked_of_a_backend_only_where_a_network_is_trained(monkeypatch):
    def forwards_alone(q, k, v, mask):
        if q.requires_grad and q.shape[-1] > 32:
            raise NotImplementedError("no backward kernel")
        return attention.math(q, k, v)

    use_instead_of_xformers(monkeypatch, forwards_alone)
    attention.prove(CPU, [attention.Shape(16, 16, 64)], "bf16", trains=False)
    with pytest.raises(MachineError, match="train bf16, 16 x 16 tokens, head width 64"):
        attention.prove(CPU, [attention.Shape(16, 16, 64)], "bf16", trains=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_runs_here_runs_the_shapes_of_stable_diffusion(precision):
    shapes = [attention.Shape(256, 77, width) for width in (40, 80, 160)] + [attention.Shape(256, 256, 512)]
    for name in available(DEVICE):
        if name != "xformers":  # what it can run is its own
            attention.select(name, DEVICE)
            attention.prove(DEVICE, shapes, precision, trains=True)


def timed(monkeypatch, backends, milliseconds):
    """As if the CPU were a GPU, where `auto` may choose: these backends, and how long each of them takes."""
    monkeypatch.setattr(attention, "_BACKENDS", attention._BACKENDS | backends)
    monkeypatch.setattr(attention, "_milliseconds", lambda backend, *_: milliseconds[attention._name(backend)])
    attention.select("auto", CPU)
    monkeypatch.setattr(attention, "_candidates", attention._ON_GPUS)


def test_on_a_gpu_auto_takes_the_fastest_backend_that_computes_all_shapes(monkeypatch, capsys):
    narrow = only(torch.bfloat16, 64)
    wide = only(torch.bfloat16, 160)
    timed(monkeypatch, {"cudnn": wide, "xformers": narrow}, {"sdpa": 2.0, "cudnn": 1.5, "xformers": 1.0})
    attention.prove(CPU, [attention.Shape(64, 64, 32), attention.Shape(16, 8, 64)], "bf16", trains=True)
    assert attention.selected() == "xformers"
    line = "attention: xformers (at the shapes of this run: sdpa 4.00 ms, cudnn 3.00 ms, xformers 2.00 ms)"
    assert capsys.readouterr().out.splitlines() == [line]
    attention.prove(CPU, [attention.Shape(16, 8, 64)], "bf16", trains=True)
    assert capsys.readouterr().out == "", "nothing new is asked"
    attention.prove(CPU, [attention.Shape(16, 8, 160)], "bf16", trains=False)
    assert attention.selected() == "cudnn"
    assert capsys.readouterr().out.endswith("sdpa 6.00 ms, cudnn 4.50 ms, not xformers)\n")


def test_auto_leaves_pytorchs_choice_only_for_what_is_clearly_faster():
    assert attention.fastest({"sdpa": 1.0, "cudnn": 0.95, "xformers": 2.0}) == "sdpa"
    assert attention.fastest({"sdpa": 1.0, "cudnn": 0.85, "xformers": 0.8}) == "xformers"
    assert attention.fastest({"cudnn": 1.0, "xformers": 3.0}) == "cudnn"


def test_where_no_backend_computes_a_shape_auto_says_so(monkeypatch):
    refused = only(torch.bfloat16, 8)
    timed(monkeypatch, {"sdpa": refused, "cudnn": refused, "xformers": refused}, {})
    with pytest.raises(MachineError, match="sdpa cannot run on cpu: compute fp32, 4 x 4 tokens, head width 16"):
        attention.prove(CPU, [attention.Shape(4, 4, 16)], "fp32", trains=False)


@pytest.mark.parametrize("backend", ["math", "sdpa"])
def test_a_backend_with_a_name_stays_and_so_does_the_choice_on_a_cpu(backend, monkeypatch):
    def measured(*_):
        raise AssertionError("nothing is timed")

    monkeypatch.setattr(attention, "_milliseconds", measured)
    for asked, name in ((backend, backend), ("auto", "math+sdpa")):
        attention.select(asked, CPU)
        attention.prove(CPU, [attention.Shape(64, 64, 32)], "bf16", trains=True)
        assert attention.selected() == name


@pytest.mark.gpu
@pytest.mark.parametrize("trains", [True, False])
def test_on_a_gpu_backends_are_timed_and_the_chosen_one_agrees_with_math(trains, capsys):
    attention.select("auto", DEVICE)
    attention.prove(DEVICE, [attention.Shape(256, 77, 64), attention.Shape(256, 256, 64)], "bf16", trains=trains)
    name = attention.selected()
    assert capsys.readouterr().out.startswith(f"attention: {name} (at the shapes of this run: sdpa ")
    tensors = inputs((2, 4, 256, 77, 64), DEVICE)
    with autocast(DEVICE, "bf16"):
        found, expected = attention.attend(*tensors), attention.math(*tensors)
    assert (found - expected).abs().max() <= 2e-2 * expected.abs().max()


def test_a_missing_xformers_is_a_machine_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.raises(MachineError, match="xformers cannot run"):
        attention.select("xformers", CPU)


def test_the_installed_xformers_loads_its_kernels():
    """One built for another torch loads none of them and says so in a warning."""
    done = subprocess.run([sys.executable, "-c", XFORMERS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "can't load" not in done.stderr, done.stderr


def test_xformers_on_a_cpu_says_why_it_cannot_run():
    with pytest.raises(MachineError, match=r"cannot run on cpu \(No operator found .*device=cpu") as caught:
        attention.select("xformers", CPU)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.skipif(DEVICE.type == "cpu", reason="xformers has no kernels for CPUs")
@pytest.mark.parametrize("width", [32, 64, 128])
def test_xformers_trains_in_bf16_on_a_gpu(width):
    attention.select("xformers", DEVICE)
    attention.prove(DEVICE, [attention.Shape(1024, 1024, width), attention.Shape(1024, 77, width)], "bf16", trains=True)


@pytest.mark.parametrize(
    ("num_tokens", "trains", "in_bf16", "in_fp32"),
    [
        (16, True, "math", "math"),
        (16, False, "math", "sdpa"),
        (40, True, "math", "math"),
        (42, True, "math", "sdpa"),
        (64, False, "math", "sdpa"),
        (66, False, "sdpa", "sdpa"),
        (256, True, "math", "sdpa"),
        (258, True, "sdpa", "sdpa"),
    ],
)
def test_math_takes_short_sequences_and_sdpa_the_rest(monkeypatch, num_tokens, trains, in_bf16, in_fp32):
    calls = []
    monkeypatch.setattr(attention, "math", lambda q, k, v, mask: calls.append("math"))
    monkeypatch.setattr(attention, "sdpa", lambda q, k, v, mask: calls.append("sdpa"))
    tensors = [tensor.detach() for tensor in inputs((1, 1, num_tokens, num_tokens, 8))]
    for dtype in (torch.bfloat16, torch.float32):
        attention.math_or_sdpa(*(tensor.to(dtype).requires_grad_(trains) for tensor in tensors))
    assert calls == [in_bf16, in_fp32]


@pytest.mark.parametrize(("backend", "written_out"), [("math", True), ("auto", True), ("sdpa", False)])
def test_networks_of_other_packages_write_attention_out_where_ours_do(backend, written_out):
    attention.select(backend, CPU)
    with attention.sdpa_as_attend():
        assert torch.backends.cuda.flash_sdp_enabled() is not written_out
    assert torch.backends.cuda.flash_sdp_enabled()


class Products(TorchDispatchMode):
    """Types of the matrices that are multiplied while it is entered."""

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "mm" in str(function):
            self.types |= {argument.dtype for argument in args if isinstance(argument, torch.Tensor)}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_of_other_packages_multiplies_in_the_type_of_its_inputs(dtype):
    """PyTorch widens bf16 to float32: slower, and on a CPU another library's products."""
    attention.select("auto", CPU)
    q, k, v = (tensor.detach().to(dtype).requires_grad_() for tensor in inputs(SHAPES[0]))
    with attention.sdpa_as_attend(), Products() as products:
        torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
    assert products.types == {dtype}
    assert not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
