"""Averages that a training keeps, and those that are made of them."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm.compute.saved import check, read
from ldm.compute.state import Run
from ldm.core import artifact
from ldm.core.errors import IntegrityError, Stopped
from ldm.training import averages as kept_averages
from ldm.training.averages import mixed
from ldm.training.profiles import decay_at
from tests.forked import run_two
from tests.test_training_loop import ask, equal
from tests.toy_training import Batches, Toy, averages, made_by, params, run_toy

LONG = params(num_steps=200, log_every_steps=50, validate_every_steps=200, save_every_steps=100)


def _write(root: Path, chosen=LONG, **changes: object) -> Path:
    """The folder that a stage would write of a run in `root`."""
    kept, folder = averages(**changes), root / "averages"
    run = Run(root, "toy", {**made_by(chosen, kept), "code.toy": "1"})
    kept_averages.write(folder, run, kept, chosen.num_steps, {"network": {}}, {}, {})
    return folder


def _distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Relative to the norm of all weights."""
    a, b = (torch.cat([each[name].flatten().float() for name in wanted]) for each in (found, wanted))
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A run that keeps two lengths, and the weights of the average of `ema_decay`."""
    root = tmp_path_factory.mktemp("trained")
    toy, _ = run_toy(root, LONG, kept=averages())
    _write(root)
    return root, toy.state_dict()


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, float], dict[str, Tensor]]:
    """Averages of other lengths, which the same training tracked."""
    root, lengths = tmp_path_factory.mktemp("tracked"), [0.03, 0.07, 0.15]
    run_toy(root, LONG, kept=averages(lengths=lengths, every_steps=100))
    return dict(kept_averages.read(_write(root, lengths=lengths, every_steps=100))[1])


@pytest.mark.parametrize(("step", "length"), [(200, 0.03), (200, 0.07), (200, 0.15), (100, 0.07)])
def test_an_average_made_afterwards_equals_the_tracked_one(
    trained: tuple[Path, dict[str, Tensor]],
    tracked: dict[tuple[int, float], dict[str, Tensor]],
    step: int,
    length: float,
) -> None:
    """To 1e-3 of the weights' norm; one that is off by a third of its length is further away than that."""
    found = kept_averages.read(trained[0] / "averages")[1]
    assert _distance(mixed(found, step, length), tracked[step, length]) < 1e-3
    assert _distance(mixed(found, step, length * 1.3), tracked[step, length]) > 1.5e-3


def test_a_tracked_average_is_the_sum_that_the_paper_writes(tmp_path: Path) -> None:
    """Equation 4, over the weights after each step; the last average is kept in half precision."""
    chosen = params(num_steps=12, ema_decay=0.0, save_every_steps=1, num_kept_states=12)
    run_toy(tmp_path, chosen, kept=averages(lengths=[0.1], every_steps=100))
    saved = {path.name: read(check(path)).tensors for path in tmp_path.rglob("step-*") if path.is_dir()}
    found = kept_averages.read(_write(tmp_path, chosen, lengths=[0.1], every_steps=100))[1]
    assert [base for base, _ in found] == [(12, 0.1)] and len(saved) == 12
    for name, value in found[0][1].items():
        expected = torch.zeros(value.shape)
        for step in range(12):
            weight = saved[f"step-{step + 1:09d}"][f"weights.net.{name}"]
            expected = decay_at(step, 0.1) * expected + (1 - decay_at(step, 0.1)) * weight
        assert torch.allclose(saved["step-000000012"][f"average_0_1.net.{name}"], expected, atol=1e-6)
        assert torch.equal(value, saved["step-000000012"][f"average_0_1.net.{name}"].half())


def test_the_training_is_the_same_in_every_bit_with_and_without(
    tmp_path: Path, trained: tuple[Path, dict[str, Tensor]]
) -> None:
    toy, _ = run_toy(tmp_path, LONG)
    assert equal(toy.state_dict(), trained[1])


def test_a_resumed_run_keeps_the_same_averages_in_every_bit(
    tmp_path: Path, trained: tuple[Path, dict[str, Tensor]]
) -> None:
    for stop in (19, 20, 130):
        with pytest.raises(Stopped):
            run_toy(tmp_path, LONG, kept=averages(), kill_at=stop)
    toy, _ = run_toy(tmp_path, LONG, kept=averages(), toy=Toy(seed=3))
    (whole, one), (resumed, other) = (kept_averages.read(each) for each in (trained[0] / "averages", _write(tmp_path)))
    assert whole.content_sha256 == resumed.content_sha256
    assert [base for base, _ in one] == [(step, length) for step in range(20, 201, 20) for length in (0.05, 0.1)]
    assert equal(toy.state_dict(), trained[1]) and all(equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True))


def test_the_result_is_the_average_that_the_params_choose_without_another_step(
    tmp_path: Path, trained: tuple[Path, dict[str, Tensor]]
) -> None:
    _, first = run_toy(tmp_path, LONG, kept=averages())
    batches = Batches(LONG)
    toy, history = run_toy(tmp_path, LONG, kept=averages(result=0.07), batches=batches)
    assert batches.asked == [], "the finished run had it all"
    found = mixed(kept_averages.read(trained[0] / "averages")[1], 200, 0.07)
    weights = {name.partition(".")[2]: value for name, value in toy.named_parameters() if value.requires_grad}
    assert all(torch.equal(weights[name].detach(), value) for name, value in found.items())
    assert [row["step"] for row in history.validation] == [200]
    validated = toy(Batches(LONG)(10**6, slice(0, 8)))["loss"].item()
    assert history.validation[0]["loss"] == pytest.approx(validated) != first.validation[0]["loss"]
    again, _ = run_toy(tmp_path, LONG, kept=averages())
    assert equal(again.state_dict(), trained[1])


def test_a_run_that_goes_on_under_other_params_takes_its_averages_along(tmp_path: Path) -> None:
    run_toy(tmp_path, LONG, kept=averages(every_steps=40))
    ask(tmp_path, "step-000000200")
    longer = LONG.model_copy(update={"num_steps": 230})
    run_toy(tmp_path, longer, kept=averages(every_steps=40))
    found = kept_averages.read(_write(tmp_path, longer, every_steps=40))[1]
    assert sorted({step for (step, _), _ in found}) == [40, 80, 120, 160, 200, 230]


def test_a_state_without_these_averages_is_refused(tmp_path: Path) -> None:
    chosen = params()
    run_toy(tmp_path, chosen)
    ask(tmp_path, "step-000000014")
    with pytest.raises(IntegrityError, match=r"average_0_05\.net\.0\.weight of shape None"):
        run_toy(tmp_path, chosen, kept=averages(every_steps=4))


def test_damaged_averages_are_reported_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = params()
    run_toy(tmp_path, chosen, kept=averages(every_steps=5))
    damaged = next(tmp_path.rglob("unit-averages-000000010")) / "tensors.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    found = kept_averages.read(_write(tmp_path, chosen, every_steps=5))[1]
    assert [step for (step, _), _ in found] == [5, 5, 15, 15, 20, 20]
    assert "averages-000000010" in capsys.readouterr().err


def test_a_result_is_not_made_of_what_damage_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_toy(tmp_path, LONG, kept=averages())
    for unit in sorted(tmp_path.rglob("unit-averages-*"))[3:]:
        (unit / "tensors.safetensors").write_bytes(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(kept_averages.Averages, "save", lambda *_, **__: None)
        with pytest.raises(
            IntegrityError, match=r"misfit 1\.\d+ of length 0\.07 at step 200, made of those of steps 20, 40, 60"
        ):
            run_toy(tmp_path, LONG, kept=averages(result=0.07))
    run_toy(tmp_path, LONG, kept=averages())
    passport, found = kept_averages.read(_write(tmp_path))
    assert passport.config["num_steps"] == 200
    assert {step for (step, _), _ in found} == {20, 40, 60, 200}, "the last one is in the state, too"


def test_processes_that_can_read_different_averages_make_nothing_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, real = params(), kept_averages._kept

    def work(rank: int) -> None:
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        monkeypatch.setattr(kept_averages, "_kept", lambda *given: list(real(*given))[2 * rank :])
        run_toy(tmp_path / "two", chosen, kept=averages(every_steps=5, result=0.07))

    for each in run_two(tmp_path / "said", work):
        assert each.code == 4, each.said
        assert "averages that are whole is [[5, 0.05], [5, 0.1], [10, 0.05]" in each.said


def test_a_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    chosen = params()
    run_toy(tmp_path, chosen, kept=averages(every_steps=10))
    folder = _write(tmp_path, chosen, every_steps=10)
    entry = json.loads((folder / artifact.PASSPORT).read_text())["config"]["averages"][0]
    (folder / entry["file"]).write_bytes(b"x")
    with pytest.raises(IntegrityError, match="average_0_05-000000010"):
        kept_averages.read(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"result": 0.01}, "result 0.01 cannot be made of lengths"),
        ({"lengths": [0.1, 0.1]}, "has one of them twice"),
        ({"lengths": [0.3]}, "less than or equal to 0.28"),
    ],
)
def test_params_that_cannot_be_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        averages(**changes).check_result(200)
