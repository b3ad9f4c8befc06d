"""The two training stages on tiny data: what they write, that they resume, that they refuse, that processes agree."""

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import squeezenet1_1

from ldm.autoencoder.model.kl import KLAutoencoder
from ldm.autoencoder.model.params import KLAutoencoderParams
from ldm.autoencoder.training.discriminator import HEALTH
from ldm.compute import attention
from ldm.core import artifact
from ldm.core.errors import ConfigError, MachineError, Stopped
from ldm.denoiser import adapters
from ldm.denoiser.model.params import UNetParams
from ldm.denoiser.model.unet import UNet
from ldm.tools import runs
from ldm.training.plots import read_table
from tests.import_closure import ROOT
from tests.kinds import KINDS
from tests.stage_scripts import script
from tests.training_data import AUTOENCODER, KEPT, UNET, write_all, write_images

NAMES = ["images", "captions", "autoencoder", "latents", "embeddings", "unet"]
RESULTS = {
    "train_autoencoder": {
        "curves.csv",
        "curves.png",
        "metrics.json",
        "skipped_updates.json",
        "reconstructions.png",
        "validation.csv",
    },
    "train_unet": {"curves.csv", "curves.png", "metrics.json", "skipped_updates.json", "validation.csv", "z0_hat.png"},
}
MACHINE = {"threads": 1, "num_workers": 0, "attention": "math", "compile": False}
# One level, since tracing takes long. 5 validation samples at 4 a pass leave one over, as the autoencoder's 6 do.
COMPILED_UNET = UNET | {
    "network": UNET["network"] | {"channels": [16], "attention_levels": [True], "num_context_layers": 0},
    "training": UNET["training"] | {"num_accumulation_steps": 2},
}
OBJECT = {"train_autoencoder": "ReconstructionObjective", "train_unet": "UNet"}
OUT = {"train_autoencoder": "autoencoder", "train_unet": "unet"}


MACHINE = {"threads": 1, "num_workers": 0, "attention": "math", "compile": False} | KEPT


def write_params(root: Path, **sections: Any) -> None:
    given = YAML(typ="safe").load((ROOT / "paths.yaml").read_text())
    paths = {key: f"other/{Path(value).name}" for key, value in given["paths"].items()}
    paths |= {name: f"data/{name}" for name in NAMES} | {"runs": "runs"}
    paths |= {f"{name}_results": f"data/{name}_results" for name in ("autoencoder", "unet")}
    content = {"machine": MACHINE, "train_autoencoder": AUTOENCODER, "train_unet": UNET} | sections
    (root / "params.yaml").write_text(json.dumps(content))
    (root / "paths.yaml").write_text(json.dumps({"paths": paths}))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    write_all(tmp_path / "data")
    write_params(tmp_path)
    return tmp_path


def weights(root: Path, name: str) -> dict[str, Tensor]:
    return artifact.read(root / "data" / OUT[name], KINDS[OUT[name]])[1]


def files(root: Path, name: str) -> dict[str, bytes]:
    folders = (root / "data" / OUT[name], root / "data" / f"{OUT[name]}_results")
    return {path.name: path.read_bytes() for folder in folders for path in folder.iterdir()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def stopped_at(train: Callable[..., Any], step: int) -> Callable[..., Any]:
    """`train`, and SIGTERM reaches this process while it draws the batch of a step."""

    def stopped(objective: Any, batches: Any, *args: Any, **kwargs: Any) -> Any:
        def batch_at_step(at: int, rows: slice) -> dict[str, Tensor]:
            if at == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return batches(at, rows)

        return train(objective, batch_at_step, *args, **kwargs)

    return stopped


def test_train_autoencoder_writes_model_and_results(workspace: Path):
    line = script("train_autoencoder").main()
    passport, tensors = artifact.read(workspace / "data/autoencoder", KINDS["autoencoder"])
    network = KLAutoencoder(KLAutoencoderParams.model_validate(passport.config))
    network.load_state_dict(tensors)
    assert passport.facts == {"factor": 4, "latent_channels": 4, "precision": "fp32"}
    assert passport.inputs.keys() == {"images_train", "images_val"}
    results = workspace / "data/autoencoder_results"
    assert {path.name for path in results.iterdir()} == RESULTS["train_autoencoder"]
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics.keys() == {"psnr_db", "ssim"} and f"{metrics['psnr_db']:.2f} dB" in line
    assert (results / "curves.csv").read_text().startswith("step,loss,l1,mse,kl,gradient,log_variance,grad_norm,")
    assert not list((workspace / "runs/train_autoencoder").iterdir()), "a finished run leaves nothing"


@pytest.fixture
def photographic(workspace: Path) -> Path:
    """Every term of the autoencoder's loss, with a random backbone of LPIPS; the discriminator starts on the way."""
    torch.manual_seed(0)
    backbone = workspace / "squeezenet.safetensors"
    save_file(squeezenet1_1().state_dict(), backbone)
    terms = {
        "perceptual": {"backbone": "squeeze", "weights": str(backbone), "weight": 1.0},
        "adversarial": {
            "start_step": 2, "learning_rate": 1e-3, "betas": [0.5, 0.9], "max_grad_norm": 1.0,
            "weight": 0.5, "channels": 8, "num_layers": 1,
        },
        "equivariance": {"probability": 0.5, "min_scale": 0.8},
    }  # fmt: skip
    write_images(workspace / "data/images", side_px=24)
    given = json.loads(json.dumps(AUTOENCODER))
    given["source"]["reconstruction"] |= terms
    write_params(workspace, train_autoencoder=given)
    return backbone


def test_photographic_losses_are_trained_resumed_and_reported(
    photographic: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stopped after the discriminator's start, it ends in the same bytes, health of both players included."""
    script("train_autoencoder").main()
    plain = files(workspace, "train_autoencoder")
    module = script("train_autoencoder")
    monkeypatch.setattr(module, "train", stopped_at(module.train, 4))
    with pytest.raises(Stopped):
        module.main()
    script("train_autoencoder").main()
    assert files(workspace, "train_autoencoder") == plain
    passport, tensors = artifact.read(workspace / "data/autoencoder", KINDS["autoencoder"])
    assert passport.inputs["lpips"] == artifact.sha256_file(photographic)
    assert not any(name.startswith(("adversary", "perceptual")) for name in tensors)
    metrics = json.loads(plain["metrics.json"])
    health = {*HEALTH, "grad_norm", "adversary_grad_norm", "num_skipped"}
    assert metrics.keys() == {"psnr_db", "ssim", "lpips"} | health and metrics["lpips"] > 0
    assert metrics["adversarial_weight"] > 0 and metrics["adversary_grad_norm"] > 0


def test_images_too_small_for_a_loss_and_a_late_start_are_the_user_s_errors(photographic: Path, workspace: Path):
    given = json.loads((workspace / "params.yaml").read_text())["train_autoencoder"]
    given["source"]["reconstruction"]["equivariance"]["min_scale"] = 0.3
    write_params(workspace, train_autoencoder=given)
    with pytest.raises(ConfigError, match=r"perceptual: images of 8 px; expected at least 17 px"):
        script("train_autoencoder").main()
    given["source"]["reconstruction"]["adversarial"]["start_step"] = 6
    write_params(workspace, train_autoencoder=given)
    with pytest.raises(ConfigError, match=r"start_step 6 is never reached; expected less than num_steps 6"):
        script("train_autoencoder").main()


def test_train_unet_writes_model_and_results(workspace: Path):
    script("train_unet").main()
    passport, tensors = artifact.read(workspace / "data/unet", KINDS["unet"])
    network = UNet(UNetParams.model_validate(passport.config["network"]))
    network.load_state_dict(tensors)
    assert passport.config["diffusion"]["prediction"] == "flow"
    assert passport.facts["caption_dropout"] == 0.25 and passport.facts["context_tokens"] == 5
    results = workspace / "data/unet_results"
    assert {path.name for path in results.iterdir()} == RESULTS["train_unet"]
    metrics = json.loads((results / "metrics.json").read_text())
    assert {"validation_loss", "validation_mse_bucket_2", "caption_dropout_observed"} <= metrics.keys()
    assert not list((workspace / "runs/train_unet").iterdir())


@pytest.mark.parametrize("name", ["train_autoencoder", "train_unet"])
def test_every_tensor_moves(workspace: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    module = script(name)
    before: dict[str, Tensor] = {}
    real: Callable[..., Any] = module.train

    def spy(objective: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        before.update({key: value.clone() for key, value in objective.state_dict().items()})
        history = real(objective, *args, **kwargs)
        after = objective.state_dict()
        assert not [key for key in before if torch.equal(before[key], after[key])]
        return history

    monkeypatch.setattr(module, "train", spy)
    module.main()
    assert before


@pytest.mark.parametrize("name", ["train_autoencoder", "train_unet"])
def test_a_stopped_stage_gives_the_same_files(workspace: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    script(name).main()
    whole = files(workspace, name)
    for step in (1, 4):
        module = script(name)
        monkeypatch.setattr(module, "train", stopped_at(module.train, step))
        with pytest.raises(Stopped):
            module.main()
    assert len(list((workspace / "runs" / name).iterdir())) == 1
    script(name).main()
    again = files(workspace, name)
    assert [file for file in whole if whole[file] != again[file]] == []
    assert not list((workspace / "runs" / name).iterdir())


def test_a_stopped_training_does_not_go_on_with_latents_of_another_scale(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    module = script("train_unet")
    monkeypatch.setattr(module, "train", stopped_at(module.train, 4))
    with pytest.raises(Stopped):
        module.main()
    path = workspace / "data/latents/train" / artifact.PASSPORT
    passport = json.loads(path.read_text())
    passport["facts"]["latent_scale"]["std"] = [5.0] * 4
    artifact.write_json(path, artifact.sealed(passport))
    script("train_unet").main()
    assert "going on" not in capsys.readouterr().out
    assert artifact.read_passport(workspace / "data/unet", KINDS["unet"]).facts["latent_scale"]["std"] == [5.0] * 4


@pytest.mark.parametrize(
    ("name", "width", "asked"),
    [("train_autoencoder", 16, "train fp32, 16 x 16 tokens"), ("train_unet", 8, "train fp32, 4 x 4 tokens")],
)
def test_a_backend_that_cannot_train_the_network_is_refused_before_the_first_step(
    workspace: Path, name: str, width: int, asked: str, monkeypatch: pytest.MonkeyPatch
):
    def kernels(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if q.requires_grad and q.shape[-1] == width:
            raise NotImplementedError("no backward kernel for this width")
        return attention.math(q, k, v)

    monkeypatch.setitem(attention._BACKENDS, "xformers", kernels)
    write_params(workspace, machine=MACHINE | {"attention": "xformers"})
    with pytest.raises(MachineError, match=f"{asked}, head width {width} .no backward kernel for this width"):
        script(name).main()
    assert not (workspace / "runs").exists()
    attention.select("math", torch.device("cpu"))


def compiled(workspace: Path, how: bool | str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on stages compile their networks as with `machine.compile`, but with PyTorch's own kernels, since
    inductor's C++ takes minutes to build; returns, call by call, which ones."""
    calls = list[str]()
    plain = torch.nn.Module.compile

    def compile_as_eager(module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        calls.append(type(module).__name__)
        plain(module, *args, backend="aot_eager", **kwargs)

    torch.compiler.reset()
    monkeypatch.setattr(torch.nn.Module, "compile", compile_as_eager)
    write_params(workspace, machine=MACHINE | {"compile": how}, train_unet=COMPILED_UNET)
    return calls


@pytest.mark.parametrize(("name", "is_stopped"), [("train_autoencoder", True), ("train_unet", False)])
def test_a_compiled_training_equals_a_plain_one_in_every_bit(
    workspace: Path, name: str, is_stopped: bool, monkeypatch: pytest.MonkeyPatch
):
    """Accumulation 2, averaged weights swapped in for validation, a last validation batch of another size, a stop and
    a resume. Names of weights are those of the plain network."""
    write_params(workspace, train_unet=COMPILED_UNET)
    script(name).main()
    plain = files(workspace, name)
    calls = compiled(workspace, True, monkeypatch)
    if is_stopped:
        module = script(name)
        monkeypatch.setattr(module, "train", stopped_at(module.train, 4))
        with pytest.raises(Stopped):
            module.main()
    script(name).main()
    assert calls == [OBJECT[name]] * (1 + is_stopped)
    again = files(workspace, name)
    assert [file for file in plain if plain[file] != again[file]] == []


def test_a_training_with_compiled_blocks_equals_a_plain_one_up_to_rounding(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
):
    """Gradients of what several blocks read are summed in another order. Names of weights are those of the plain
    network."""
    write_params(workspace, train_unet=COMPILED_UNET)
    script("train_unet").main()
    plain, expected = weights(workspace, "train_unet"), losses(workspace)
    calls = compiled(workspace, "blocks", monkeypatch)
    script("train_unet").main()
    assert set(calls) == {"ResBlock", "SpatialTransformer"}
    assert weights(workspace, "train_unet").keys() == plain.keys()
    assert losses(workspace) == pytest.approx(expected, rel=1e-4)


def losses(workspace: Path) -> list[float]:
    """Of all rows of a UNet's training, and of its validations."""
    tables = (workspace / "data/unet_results" / name for name in ("curves.csv", "validation.csv"))
    return [value for table in tables for column in read_table(table).values() for _, value in column]


@pytest.mark.parametrize("name", ["train_autoencoder", "train_unet"])
def test_a_finished_training_is_extended_and_its_passport_says_so(workspace: Path, name: str):
    params = {"train_autoencoder": AUTOENCODER, "train_unet": UNET}[name]
    kept = MACHINE | {"keep_finished_states": True}
    write_params(workspace, machine=kept)
    script(name).main()
    short = artifact.read_passport(workspace / "data" / OUT[name], KINDS[OUT[name]])
    assert "resumed_from" not in short.facts
    state = next((workspace / "runs" / name).glob("*/step-000000006"))
    owner = params.get("source", params)
    longer = {"training": owner["training"] | {"num_steps": 9}}
    changed = params | ({"source": owner | longer} if owner is not params else longer) | {"num_pictures": 1}
    write_params(workspace, machine=kept, **{name: changed})
    runs.ask(workspace / "runs", name)
    script(name).main()
    passport = artifact.read_passport(workspace / "data" / OUT[name], KINDS[OUT[name]])
    sha256 = artifact.sha256_file(state / "manifest.json")
    key = f"params.{'' if owner is params else 'source.'}training.num_steps"
    differs = {key: [6, 9]}
    assert passport.facts["resumed_from"] == [{"step": 6, "manifest_sha256": sha256, "differs": differs}]
    rows = (workspace / "data" / f"{OUT[name]}_results" / "curves.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "3", "6", "9"]
    assert passport.content_sha256 != short.content_sha256


def test_another_seed_gives_other_weights(workspace: Path):
    script("train_unet").main()
    first = weights(workspace, "train_unet")
    write_params(workspace, train_unet=UNET | {"training": UNET["training"] | {"seed": 1}})
    script("train_unet").main()
    assert not equal(first, weights(workspace, "train_unet"))


def test_training_goes_on_from_a_trained_unet(workspace: Path):
    script("train_unet").main()
    (workspace / "data/unet").rename(workspace / "models")
    init_from = {"path": "models", "may_differ": []}
    write_params(workspace, train_unet=UNET | {"init_from": init_from})
    script("train_unet").main()
    passport = artifact.read_passport(workspace / "data/unet", KINDS["unet"])
    assert passport.inputs["init_from"] == artifact.read_passport(workspace / "models", KINDS["unet"]).content_sha256


def test_lora_changes_an_adapter_and_the_base_stays(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    script("train_unet").main()
    (workspace / "data/unet").rename(workspace / "models")
    init_from = {"path": "models", "may_differ": []}
    lora = {"rank": 2, "alpha": 4.0, "targets": ["to_q", "to_v", "conv1"]}
    write_params(workspace, train_unet=UNET | {"init_from": init_from, "lora": lora})
    before = {path.name: path.read_bytes() for path in (workspace / "models").iterdir()}
    script("train_unet").main()
    assert {path.name: path.read_bytes() for path in (workspace / "models").iterdir()} == before
    passport, trained = artifact.read(workspace / "models", KINDS["unet"])
    adapter, of_adapter = adapters.load(workspace / "data/unet/adapter")
    assert of_adapter.inputs["init_from"] == passport.content_sha256
    assert of_adapter.config == {"rank": 2, "alpha": 4.0, "targets": ["to_q", "to_v", "conv1"]}
    assert adapter.layers and all(up.any() and len(down) == 2 for down, up in adapter.layers.values())
    # What the later stages read is the base with the adapter, and nothing else of it has changed.
    unet = UNet(UNetParams.model_validate(passport.config["network"]))
    unet.load_state_dict(trained)
    adapter.add_to(unet, 1.0, "adapter")
    merged = weights(workspace, "train_unet")
    assert equal(dict(unet.state_dict()), merged)
    changed = {
        name.removesuffix(".weight") for name, weight in merged.items() if not torch.equal(weight, trained[name])
    }
    assert changed == adapter.layers.keys()
    # A stop and a resume lead to the same adapter.
    whole = (workspace / "data/unet/adapter/model.safetensors").read_bytes()
    module = script("train_unet")
    monkeypatch.setattr(module, "train", stopped_at(module.train, 4))
    with pytest.raises(Stopped):
        module.main()
    script("train_unet").main()
    assert (workspace / "data/unet/adapter/model.safetensors").read_bytes() == whole


def test_a_wrong_width_is_one_line(workspace: Path):
    write_params(workspace, train_unet=UNET | {"network": UNET["network"] | {"context_width": 16}})
    with pytest.raises(ConfigError, match="context_width: found 16; expected 8, as the embeddings have"):
        script("train_unet").main()


def test_a_direct_launch_with_two_processes_agrees_with_one(workspace: Path):
    training = UNET["training"] | {"num_steps": 20, "log_every_steps": 1, "validate_every_steps": 10}
    write_params(workspace, train_unet=UNET | {"training": training})
    script("train_unet").main()
    one = weights(workspace, "train_unet")
    curves = (workspace / "data/unet_results/curves.csv").read_text().splitlines()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", port, str(ROOT / "stages/train_unet.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    two = weights(workspace, "train_unet")
    again = (workspace / "data/unet_results/curves.csv").read_text().splitlines()
    losses = [[float(line.split(",")[1]) for line in lines[1:]] for lines in (curves, again)]
    assert len(losses[0]) == 20
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert max((one[key] - two[key]).abs().max().item() for key in one) < 1e-4


@pytest.mark.parametrize("name", ["train_autoencoder", "train_unet"])
def test_trackers_show_rows_and_pictures_and_change_no_byte(workspace: Path, name: str):
    script(name).main()
    plain = files(workspace, name)
    write_params(workspace, machine=MACHINE | {"trackers": ["tensorboard", "dvclive"]})
    script(name).main()
    assert files(workspace, name) == plain
    (events,) = (workspace / f"runs/trackers/tensorboard/{name}").glob("*/events.*")
    (live,) = (workspace / f"runs/trackers/dvclive/{name}").iterdir()
    assert events.stat().st_size > 0
    rows = list(csv.DictReader(io.StringIO(plain["curves.csv"].decode())))
    for column in rows[0].keys() - {"step"}:
        shown = list(csv.DictReader((live / f"plots/metrics/training/{column}.tsv").open(), delimiter="\t"))
        assert [row["step"] for row in shown] == [row["step"] for row in rows]
        assert [f"{float(row[column]):.9g}" for row in shown] == [f"{float(row[column]):.9g}" for row in rows]
    pictures = sorted((live / "plots/images/picture").iterdir(), key=lambda path: int(path.stem))
    assert [path.stem for path in pictures] == ["4", "6"]
    if name == "train_unet":  # the last picture, and the column of what is drawn from noise
        with Image.open(pictures[-1]) as shown, Image.open(workspace / "data/unet_results/z0_hat.png") as last:
            assert shown.width == last.width + 132
