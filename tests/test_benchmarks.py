"""Benchmarks at reduced size: each runs to its ratios and its JSON, and the page shows what the JSONs say."""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg

from benchmarks import __main__ as all_benchmarks
from benchmarks import attention, busy, gpu, measuring, operations, page, pipeline, scaling, steps, train_step
from ldm.compute.attention import Backend, Shape, math
from ldm.core import config
from ldm.denoiser.training.params import TrainUNetParams
from tests.import_closure import ROOT

RATIOS = {
    "train_step": {"train_step", "train_step_equal_fp32", "train_step_equal_bf16", "unet_of_product"},
    "operations": {"small_operations_unet_fp32", "small_operations_autoencoder_bf16"},
    "attention": {"attention_fp32", "attention_bf16"},
    "sample": {"sample", "sample_1", "sample_2"},
    "data": {"prepare", "prepare_bytes", "data_wait"},
    "scaling": {"scaling_images", "scaling_resolution", "scaling_parameters", "two_processes_over_one"},
    "pipeline": {"pipeline_overhead_tiny", "noop_repro_seconds"},
    "busy": {"busy_step", "busy_later"},
}
"""Benchmark -> ratios that it ends with on a CPU."""
PRECISIONS = steps.precisions()
"""A CPU without kernels for bf16 leaves out what it would have to emulate."""
TRIED_HERE = [name for name in RATIOS if name not in gpu.BENCHMARKS]
"""CI tries the others by `make gpu`."""


@pytest.mark.parametrize("name", TRIED_HERE)
def test_a_small_run_ends_in_its_ratios_and_writes_them(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--small", "--out", str(tmp_path)]
    places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": places, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    printed = dict(re.findall(r"^ratio (\S+) (\S+)$", done.stdout, flags=re.MULTILINE))
    wanted = {ratio for ratio in RATIOS[name] if "bf16" in PRECISIONS or not ratio.endswith("bf16")}
    assert wanted <= set(printed) and all(float(value) >= 0 for value in printed.values())
    written = json.loads((tmp_path / f"cpu/{name}.json").read_text())
    assert set(written["ratios"]) == set(printed) and written["machine"]["torch"] == torch.__version__.split("+")[0]
    assert all(row for rows in written["tables"].values() for row in rows)
    text = page.block(name, {"cpu": {name: written}})
    assert all(f"| `{ratio}` |" in text for ratio in printed)


def test_every_benchmark_of_the_page_is_a_module_and_tried_here() -> None:
    assert set(page.NAMES) <= {*page.BLOCKS, *page.ON_GPUS}
    assert {name for name in page.BLOCKS + page.ON_GPUS if not (ROOT / f"benchmarks/{name}.py").is_file()} == set()
    known = {ratio for ratios in RATIOS.values() for ratio in ratios}
    assert set(page.TARGETS["cpu"]) <= known | {"autoencoder_of_product", "pipeline_overhead_default"}


def test_the_page_says_what_the_results_say() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.refreshed(text, page.results()) == text, "run `python -m benchmarks.page`"


def test_sides_take_turns_in_both_orders_and_the_first_round_is_not_counted() -> None:
    called: list[str] = []
    found = measuring.turns({name: lambda name=name: called.append(name) for name in "ab"}, 2)
    assert called == [*"ba", *"ab", *"ba"]
    assert {name: len(times) for name, times in found.items()} == {"a": 2, "b": 2}


def test_the_clock_of_one_thread_stands_while_it_sleeps_and_that_of_several_does_not() -> None:
    before = torch.get_num_threads()
    try:
        for threads, is_counted in ((1, False), (2, True)):
            torch.set_num_threads(threads)
            assert (measuring.seconds(lambda: time.sleep(0.05)) > 0.04) == is_counted
    finally:
        torch.set_num_threads(before)


def test_a_quotient_is_paired_by_rounds() -> None:
    """A machine that becomes ten times slower in the third round does not change it."""
    above, below = [2.0, 2.0, 20.0, 2.0, 2.0], [1.0, 1.0, 10.0, 1.0, 1.0]
    assert measuring.quotient(above, below) == (2.0, 2.0, 2.0)
    assert measuring.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, 2.0, 4.0)


def test_a_verdict_knows_target_floor_and_direction() -> None:
    more, less = page.Target("", 1.25, 1.1), page.Target("", 0.3, None, less_is_better=True)
    assert [page.verdict(value, more) for value in (1.3, [1.2, 1.0, 1.4], 1.0)] == [
        "reached",
        "above the floor",
        "missed",
    ]
    assert [page.verdict(value, less) for value in (0.2, 0.4)] == ["reached", "missed"]


def test_targets_that_nothing_measured_say_so() -> None:
    text = page.targets({"cpu": {"busy": {"ratios": {"busy_step": [1.5, 1.4, 1.6]}}}, "cuda": {}})
    assert "| ≤ 1.9 | 1.5 (1.4 to 1.6) | reached |" in text and "| not measured |" in text


def test_the_page_has_the_target_of_what_only_a_gpu_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda/many.json").write_text('{"ratios": {"many_images_seconds": 42.0}}')
    text = page.refreshed(page.PAGE.read_text(encoding="utf-8"), page.results())
    assert "| `many_images_seconds` |" in text and "| ≤ 60 | 42 | reached |" in text


def test_operations_are_counted_forwards_and_backwards() -> None:
    """A product of 8 x 16 and 16 x 4 has 2 x 8 x 16 x 4 operations; its backward pass two products of as many."""
    a, b = torch.randn(8, 16, requires_grad=True), torch.randn(16, 4, requires_grad=True)
    assert steps.flops(lambda: (a @ b).sum().backward()) == 3 * 2 * 8 * 16 * 4


@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_operations_of_attention_are_as_many_fused_as_written_out(backend: Backend) -> None:
    attend = attention.BACKENDS[backend]
    q, k, v = (torch.randn(2, 3, tokens, 8, requires_grad=True) for tokens in (16, 24, 24))
    forwards = 2 * 2 * (2 * 3) * 16 * 24 * 8
    assert steps.flops(lambda: attend(q, k, v, None)) == forwards
    assert steps.flops(lambda: attend(q, k, v, None).sum().backward()) == 3 * forwards


@pytest.mark.parametrize("is_small", [True, False])
def test_attention_is_measured_with_the_heads_that_the_network_has(
    is_small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[tuple[Shape, int]] = set()

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        asked.add((Shape(q.shape[2], k.shape[2], q.shape[3]), q.shape[1]))
        return math(q, k, v, mask)

    monkeypatch.setattr("ldm.compute.attention._selected", attend)
    monkeypatch.setattr(attention, "DEVICE", torch.device("cpu"))
    ((network, measured),) = attention.shapes(is_small)
    steps.our_loss(steps.ours(network.params), network.data())()
    assert set(measured) == asked and len({heads for _, heads in measured}) > 1


def test_levels_without_attention_have_no_heads_to_measure_but_the_middle_has() -> None:
    params = steps.default(channels=[32, 64, 128], attention_levels=[False, True, False], context_width=96).params
    assert attention.widths(params) == [64, 64, 128, 128, 96]
    assert attention.widths(steps.stable_diffusion(64, 8).params) == [320, 320, 640, 640, *[1280] * 4]


def test_a_backend_without_enough_memory_is_not_measured() -> None:
    def greedy() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert list(attention.able({"math": greedy, "sdpa": lambda: None})) == ["sdpa"]


def test_both_networks_compute_the_same_and_every_side_learns() -> None:
    """The sides of `train_step` start from equal weights: their first losses agree."""
    from ldm.denoiser.model.networks import build

    torch.manual_seed(0)
    shape = steps.small().of_diffusers()
    reference, ours, data = steps.theirs(shape.params), build(shape.params), shape.data()
    ours.load_state_dict(reference.state_dict())
    losses = [steps.our_loss(ours, data)()]
    losses += [forward() for forward in train_step.processed(reference, steps.their_loss(reference, data)).values()]
    assert all(abs(loss.item() - losses[0].item()) < 1e-5 for loss in losses) and len(losses) == 3
    forward = steps.our_loss(ours, data)
    before, step = forward().item(), steps.step(ours, forward, "fp32")
    for _ in range(5):
        step()
    assert forward().item() < before


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::convolution_backward", "convolutions"),
        ("aten::mm", "matrix products"),
        ("aten::bmm", "attention"),
        ("aten::native_group_norm_backward", "norms"),
        ("aten::_fused_adamw_", "optimizer, clipping, averages"),
        ("aten::copy_", "copies"),
        ("aten::silu_backward", "other pointwise work and sums"),
        ("aten::view", operations.REST),
    ],
)
def test_operations_have_kinds(name: str, kind: str) -> None:
    assert operations.kind_of(name) == kind


def test_the_time_of_a_kernel_counts_once() -> None:
    """torch's profiler gives it to the operation that launched the kernel, to annotations, and to the kernel."""
    events: list[FunctionEventAvg] = []
    for key, device, is_annotation in (
        ("aten::mm", DeviceType.CPU, False),
        ("gemm_kernel", DeviceType.CUDA, False),
        ("ProfilerStep#1", DeviceType.CUDA, True),
    ):
        event = FunctionEventAvg()
        event.key, event.device_type, event.is_user_annotation = key, device, is_annotation
        event.self_cpu_time_total, event.self_device_time_total = 3, 20
        events.append(event)
    assert [operations.microseconds(event, torch.device("cuda")) for event in events] == [0, 20, 0]
    assert operations.microseconds(events[0], torch.device("cpu")) == 3


def test_times_of_stages_are_read_as_stages_write_them(tmp_path: Path) -> None:
    (tmp_path / "times").write_text(
        f"{'prepare':20} {1.5:8.1f}\n{'sample':20} {22.0:8.1f}\n{'sample':20} {20.0:8.1f}\n"
    )
    assert pipeline.stage_seconds(tmp_path / "times") == {"prepare": 1.5, "sample": 20.0}


def test_the_commit_tells_of_changes_to_benchmarks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "ROOT", tmp_path)
    for name in ("benchmarks", "docs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "steps.py").touch()
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "--quiet"], ["add", "--all"], [*author, "commit", "--quiet", "--message", "state"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "docs/steps.py").write_text("1")
    assert not measuring.facts()["commit"].endswith(" with changes")
    (tmp_path / "benchmarks/steps.py").write_text("1")
    assert measuring.facts()["commit"].endswith(" with changes")


def test_the_default_is_that_of_its_recipe_whatever_params_are_there() -> None:
    section = config.read(TrainUNetParams, "train_unet", ROOT / "recipes/default.yaml")
    assert steps.default().params == section.network and steps.PARAMS == ROOT / "recipes/default.yaml"


def test_times_of_another_recipe_are_not_the_default_s(tmp_path: Path) -> None:
    for name in ("runs", "recipes"):
        (tmp_path / name).mkdir()
    (tmp_path / "recipes/default.yaml").write_text("a: 1\n")
    (tmp_path / "params.yaml").write_text("a: 1\n")
    assert pipeline.default_seconds(tmp_path) == {}
    (tmp_path / pipeline.TIMES).write_text("prepare 1.5\n")
    assert pipeline.default_seconds(tmp_path) == {"prepare": 1.5}
    (tmp_path / "params.yaml").write_text("a: 2\n")
    assert pipeline.default_seconds(tmp_path) == {}


def test_sides_take_turns_beside_a_busy_process_in_both_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, int]] = []

    class Named:
        process = subprocess.Popen(["true"])

        def __init__(self, setting: dict[str, str], is_small: bool) -> None:
            self.name = setting["name"]

        def turn(self, num_threads: int, seconds: float) -> float:
            called.append((self.name, num_threads))
            return float(len(called))

    monkeypatch.setattr(busy, "Side", Named)
    found, _ = busy.turns({name: {"name": name} for name in "ab"}, [1, 2], 2, 1.0, True)
    first = [(name, count) for name in "ab" for count in (1, 2)]
    assert called[2:] == [*first, *first, *first[::-1], *first[::-1]]
    assert found["a", 1, "alone"] == [3.0, 18.0] and found["a", 1, "busy"] == [7.0, 14.0]


def test_a_step_on_a_gpu_is_over_when_the_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    cuda = torch.device("cuda")
    for module in (busy, measuring):
        monkeypatch.setattr(module, "DEVICE", cuda)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: called.append("synchronised"))
    monkeypatch.setattr(busy.attention, "select", lambda name, device: called.append(f"{name} for {device}"))
    monkeypatch.setattr(steps, "unet_step", lambda *given: lambda: called.append("step"))
    monkeypatch.setattr(steps, "precision", lambda: "fp32")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{torch.get_num_threads()} 0\n"))
    busy.work(is_small=True)
    assert called == ["auto for cuda", *("step", "synchronised") * 2]


def test_a_busy_neighbour_is_busy_and_gone_afterwards() -> None:
    import psutil

    def children() -> list[psutil.Process]:
        return psutil.Process().children()

    before = len(children())
    with busy.busy(1):
        (other,) = children()[before:] or [None]
        assert other is not None
        time.sleep(1.0)
        assert sum(other.cpu_times()[:2]) > 0.05
    assert len(children()) == before


def test_one_benchmark_that_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def run(command: list[str], **_: Any) -> Any:
        begun.append(command[-1].removeprefix("benchmarks."))
        return SimpleNamespace(returncode=int(begun[-1] == page.NAMES[1]))

    written: list[bool] = []
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(page, "main", lambda: written.append(True))
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    with pytest.raises(SystemExit, match=f"failed: {page.NAMES[1]};"):
        all_benchmarks.main()
    assert begun == list(page.NAMES) and written


def test_one_process_and_two_are_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def run(*_: Any, num_processes: int, **__: Any) -> Any:
        asked.append(num_processes)
        return SimpleNamespace(samples_per_second=float(num_processes))

    monkeypatch.setattr(scaling.training, "write_inputs", lambda *_, **__: None)
    monkeypatch.setattr(scaling.training, "run", run)
    scaling._processes(argparse.Namespace(small=False), {})
    assert asked == [1, 2, 2, 1, 1, 2]
