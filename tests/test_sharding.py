"""Networks that are split over two processes train as whole ones do, and their states are read by both."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from ldm.compute import launcher, ranks
from ldm.core import artifact
from ldm.core.errors import Stopped
from ldm.denoiser.model.unet import UNet as Network
from ldm.training import sharding
from tests.forked import run_two
from tests.kinds import KINDS
from tests.stage_scripts import script
from tests.test_stages_training import MACHINE, stopped_at, write_params
from tests.toy_training import Batches, Toy, accelerator, params, run_toy
from tests.training_data import UNET, unet_params, write_all

TRAINING = UNET["training"] | {"num_steps": 8, "log_every_steps": 1, "validate_every_steps": 5}
NETWORK = UNET["network"] | {"channels": [16], "attention_levels": [True]}
SPLIT = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
PATIENCE_SECONDS = 360.0
"""Every step has dozens of exchanges, each of which waits for a core on a busy machine."""
STOPPED = 75


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    write_all(tmp_path / "data")
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What two processes make of a whole UNet."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_all(root / "data")
        ask(root)
        train(root, is_split=False)
    yield root


def ask(root: Path, **changes: Any) -> None:
    """Params of a training whose last state is kept."""
    given = UNET | {"training": TRAINING, "network": NETWORK} | changes
    write_params(root, machine=MACHINE | {"keep_finished_states": True}, train_unet=given)


def train(root: Path, *, is_split: bool, kill_at: int = -1) -> str:
    """Stage `train_unet` in two processes; returns what the first one said. kill_at: at the batch of which step the
    second one is told to stop."""

    def work(rank: int) -> None:
        os.environ |= SPLIT if is_split else {}
        module = script("train_unet")
        if rank == 1 and kill_at >= 0:
            vars(module)["train"] = stopped_at(module.train, kill_at)
        module.main()

    ended = run_two(root / "said", work, PATIENCE_SECONDS)
    code = STOPPED if kill_at >= 0 else 0
    assert [each.code for each in ended] == [code, code], "\n".join(each.said for each in ended)
    return ended[0].said


def weights(root: Path, of: str = "unet") -> dict[str, Tensor]:
    return artifact.open_tensors(root / "data" / of / "model.safetensors")


def trained(root: Path, *, is_split: bool, of: str = "unet") -> dict[str, Tensor]:
    """Weights of a training from the first step on."""
    train(root, is_split=is_split)
    (run,) = (root / "runs/train_unet").iterdir()
    run.rename(root / f"run-{is_split}")
    return {name: weight.clone() for name, weight in weights(root, of).items()}


def rows(root: Path, table: str) -> list[dict[str, float]]:
    with (root / f"data/unet_results/{table}.csv").open() as file:
        return [{key: float(value or "nan") for key, value in row.items()} for row in csv.DictReader(file)]


def last_state(root: Path) -> dict[str, Tensor]:
    """Weights, averages, moments and counts at the end of the one run."""
    (run,) = (root / "runs/train_unet").iterdir()
    return artifact.open_tensors(sorted(run.glob("step-*"))[-1] / "tensors.safetensors")


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


def assert_equal_up_to_rounding(a: Path, b: Path) -> None:
    """Weights, averages and moments of the last state, the artefact with its passport, and the curves."""
    assert_close(last_state(a), last_state(b))
    assert_close(weights(a), weights(b))
    ours, theirs = (artifact.read_passport(root / "data/unet", KINDS["unet"]) for root in (a, b))
    assert (ours.config, ours.facts, ours.inputs) == (theirs.config, theirs.facts, theirs.inputs)
    for table in ("curves", "validation"):
        for one, other in zip(rows(a, table), rows(b, table), strict=True):
            assert one == pytest.approx(other, abs=1e-5, nan_ok=True)


def test_a_split_training_equals_a_whole_one_also_after_a_stop(root: Path, whole: Path) -> None:
    ask(root)
    assert "unet: split over 2 processes" in train(root, is_split=True, kill_at=3)
    assert "going on from step 4" in train(root, is_split=True)
    assert_equal_up_to_rounding(whole, root)
    assert (root / "data/unet_results/z0_hat.png").is_file()


def test_states_are_read_by_split_and_whole_networks_on_any_number_of_processes(root: Path, whole: Path) -> None:
    ask(root)
    train(root, is_split=True, kill_at=1)
    module = script("train_unet")
    vars(module)["train"] = stopped_at(module.train, 3)
    with pytest.raises(Stopped):
        module.main()
    assert "going on from step 4" in train(root, is_split=True, kill_at=5)
    said = train(root, is_split=False)
    assert "going on from step 6" in said and "'split': 1" in said
    assert_equal_up_to_rounding(whole, root)


def test_rounded_products_recomputed_blocks_and_several_passes_fit_a_split_network(root: Path) -> None:
    training = TRAINING | {"precision": "bf16", "num_accumulation_steps": 2, "num_steps": 6}
    ask(root, training=training, network=NETWORK | {"gradient_checkpointing": True})
    made = [trained(root, is_split=is_split) for is_split in (False, True)]
    assert_close(*made, tolerance=2e-3)


@pytest.mark.parametrize("kind", ["lora", "averages"])
def test_adapters_and_averages_of_several_lengths(root: Path, whole: Path, kind: str) -> None:
    """The base of an adapter, which is not trained, is split too; the result of the others is made of averages that the
    run has kept, in half precision."""
    changes: dict[str, Any] = {
        "lora": {
            "lora": {"rank": 2, "alpha": 4.0, "targets": ["to_q", "to_v", "conv1"]},
            "init_from": {"path": str(whole / "data/unet"), "may_differ": []},
        },
        "averages": {"averages": {"lengths": [0.05, 0.1], "every_steps": 3, "result": 0.08}},
    }[kind]
    ask(root, **changes)
    made = [
        trained(root, is_split=is_split, of="unet/adapter" if kind == "lora" else "unet") for is_split in (False, True)
    ]
    assert_close(*made, tolerance=1e-5 if kind == "lora" else 1e-3)


def test_muon_is_refused_where_no_process_has_a_whole_matrix(tmp_path: Path) -> None:
    def work(_: int) -> None:
        os.environ |= SPLIT
        run_toy(tmp_path / "two", params(muon={"learning_rate": 0.01, "momentum": 0.95, "num_iterations": 5}))

    for each in run_two(tmp_path / "said", work):
        assert each.code == 5
        assert "training.muon: Muon for a network that is split over processes; expected null" in each.said


def test_an_update_that_is_bad_on_one_process_is_skipped_by_all(tmp_path: Path) -> None:
    chosen, bad = params(log_every_steps=1), {4: 7}

    def work(rank: int) -> None:
        os.environ |= SPLIT
        toy, history = run_toy(tmp_path / "two", chosen, batches=Batches(chosen, bad))
        assert [row["num_skipped"] for row in history.training] == [0] * 4 + [1] * 16
        assert not any(isinstance(weight, DTensor) for weight in toy.parameters())
        save_file(toy.state_dict(), tmp_path / f"{rank}.safetensors")

    assert [each.code for each in run_two(tmp_path / "said", work, PATIENCE_SECONDS)] == [0, 0]
    one, _ = run_toy(tmp_path / "one", chosen, batches=Batches(chosen, bad))
    for rank in range(2):
        assert_close(dict(one.state_dict()), load_file(tmp_path / f"{rank}.safetensors"))


def test_a_process_holds_a_part_of_every_weight(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        os.environ |= SPLIT
        both, toy = accelerator(params()), Toy()
        parted = sharding.split(toy, both.device)
        before = {name: weight.detach().clone() for name, weight in toy.named_parameters()}
        parts = {name: w for name, w in parted.named_parameters() if sharding.is_part(w)}
        assert parts.keys() == {name for name in before if name.startswith("net.")}
        held = [weight.to_local().numel() for weight in parts.values() if isinstance(weight, DTensor)]
        assert sum(ranks.gather(sum(held))) == sum(before[name].numel() for name in parts)
        assert sum(held) == sum(before[name].numel() for name in parts) // 2, "all lengths are even"
        gathered = sharding.gathered(dict(parted.named_parameters()), is_kept=rank == 0)
        assert gathered.keys() == (before.keys() if rank == 0 else before.keys() - parts.keys())
        assert all(torch.equal(gathered[name], before[name]) for name in gathered)
        for weight in parts.values():
            weight.detach().copy_(sharding.like(weight, torch.full(weight.shape, 3.0)))
        assert all(torch.equal(toy.get_parameter(name), before[name]) for name in parts), "not joined yet"
        sharding.join(parted, toy, both.device)
        assert all(toy.get_parameter(name).eq(3).all() for name in parts)

    assert [each.code for each in run_two(tmp_path / "said", work)] == [0, 0]


def test_whole_networks_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy()
    assert sharding.split(toy, torch.device("cpu")) is toy, "nobody asked"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert sharding.split(toy, torch.device("cpu")) is toy, "one process"
    with launcher.whole_models():
        assert not launcher.splits()
    assert launcher.splits()


def test_every_block_of_the_network_is_one_that_can_be_split_off() -> None:
    """Blocks hold nearly all weights, and those within others come first, as `fully_shard` asks."""
    unet = Network(unet_params().network)
    blocks = unet.blocks()
    for place, block in enumerate(blocks):
        assert not any(inner is later for inner in block.modules() for later in blocks[place + 1 :])
    in_blocks = {id(weight) for block in blocks for weight in block.parameters()}
    held = sum(weight.numel() for weight in unet.parameters() if id(weight) in in_blocks)
    assert held > 0.8 * sum(weight.numel() for weight in unet.parameters())
