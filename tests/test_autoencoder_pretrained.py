"""Autoencoders that others have trained compute here what diffusers computes, from folders and from single files; what
does not fit is refused, and only the decoder is ever trained further."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.autoencoder.model import dc_ae, networks
from ldm.autoencoder.model.network import LOG_VARIANCE_RANGE, Autoencoder
from ldm.autoencoder.training import pretrained, sources
from ldm.autoencoder.training.params import PretrainedAutoencoderParams, TrainAutoencoderParams
from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError, UserError
from ldm.core.hashes import sha256_file
from ldm.exchange import names
from tests.kinds import KINDS
from tests.stage_scripts import script
from tests.test_stages_training import write_params
from tests.training_data import AUTOENCODER, write_all

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def randomised(model: nn.Module) -> Any:
    """The same network with weights that tell layers apart, norms included."""
    torch.manual_seed(0)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2)
    return model.eval()


def kl(**changes: Any) -> AutoencoderKL:
    """Stable Diffusion's autoencoder, narrower: two levels unless `changes` say otherwise."""
    widths = changes.pop("block_out_channels", (32, 64))
    arguments = {
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "block_out_channels": widths,
        "layers_per_block": 2,
    }
    return randomised(AutoencoderKL(**arguments | changes))


def dc() -> AutoencoderDC:
    """A DC-AE with both kinds of block, narrower."""
    blocks = {"block_types": ("ResBlock", "EfficientViTBlock"), "block_out_channels": (16, 32)}
    sides = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in blocks.items()}
    layers = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    scales = {"encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,))}
    return randomised(AutoencoderDC(latent_channels=8, attention_head_dim=8, **sides, **layers, **scales))  # pyright: ignore


KINDS_OF_VAE: dict[str, Callable[[], AutoencoderKL]] = {
    "SD 1, 2 and XL": kl,
    "SD3 and FLUX": lambda: kl(
        latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=0.36
    ),
    "three levels, without attention": lambda: kl(
        block_out_channels=(16, 16, 32), norm_num_groups=8, layers_per_block=1, mid_block_add_attention=False
    ),
}


def params(path: Path, factor: int = 2, latent_channels: int = 4, **changes: Any) -> PretrainedAutoencoderParams:
    values = {"kind": "pretrained", "path": str(path), "factor": factor, "latent_channels": latent_channels}
    return PretrainedAutoencoderParams.model_validate(values | {"reconstruction": None, "training": None} | changes)


def of(model: AutoencoderKL | AutoencoderDC, path: Path) -> PretrainedAutoencoderParams:
    config: Any = model.config
    widths = config.get("block_out_channels") or config["encoder_block_out_channels"]
    return params(path, 2 ** (len(widths) - 1), config["latent_channels"])


@torch.no_grad()
def check_equal(found: Autoencoder, theirs: AutoencoderKL) -> None:
    torch.manual_seed(1)
    signal = torch.rand(2, 3, 32, 24) * 2 - 1
    expected: Any = theirs.encode(signal).latent_dist  # pyright: ignore
    posterior = found.encode(signal)
    assert expected.mean.std() > 0.01
    torch.testing.assert_close(posterior.mean, expected.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(posterior.log_variance, expected.logvar, rtol=1e-5, atol=1e-5)
    decoded: Tensor = theirs.decode(expected.mean).sample  # pyright: ignore
    torch.testing.assert_close(found.decode(expected.mean), decoded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS_OF_VAE)
def test_a_folder_of_diffusers_computes_what_diffusers_does(tmp_path: Path, kind: str) -> None:
    model = KINDS_OF_VAE[kind]()
    model.save_pretrained(tmp_path / "vae")
    for path in (tmp_path, tmp_path / "vae"):
        found, settings, source = pretrained.load(of(model, path))
        check_equal(found, model)
        assert source.sha256 == sha256_file(tmp_path / "vae" / WEIGHTS)
        assert settings.latent_channels == found.encode(torch.zeros(1, 3, 16, 16)).mean.shape[1]


SINGLE: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "diffusers' names": lambda tensors: tensors,
    "names before diffusers 0.17": lambda tensors: {_former(name): tensor for name, tensor in tensors.items()},
    "single file of a VAE": lambda tensors: names.vae_to_single(tensors) | {"loss.logvar": torch.zeros(())},
    "single file of a pipeline": lambda tensors: (
        names.under(names.vae_to_single(tensors), names.VAE) | {"model.diffusion_model.out.2.bias": torch.zeros(4)}
    ),
}


def _former(name: str) -> str:
    for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


@pytest.mark.parametrize("layout", SINGLE)
def test_a_single_file_is_read_in_any_layout(tmp_path: Path, layout: str) -> None:
    model = kl()
    tensors = SINGLE[layout](dict(model.state_dict()))
    save_file({name: tensor.contiguous().half() for name, tensor in tensors.items()}, tmp_path / "vae.safetensors")
    found, _, source = pretrained.load(params(tmp_path / "vae.safetensors"))
    assert source.files == {"vae.safetensors": sha256_file(tmp_path / "vae.safetensors")}
    check_equal(found, model.half().float())


def test_the_published_autoencoder_of_stable_diffusion_has_our_names_and_shapes(tmp_path: Path) -> None:
    """As its config is published; all of its 248 weights, on the meta device. FLUX's lacks four of them."""
    for is_flux in (False, True):
        with torch.device("meta"):
            model = kl(
                block_out_channels=(128, 256, 512, 512),
                latent_channels=16 if is_flux else 4,
                use_quant_conv=not is_flux,
                use_post_quant_conv=not is_flux,
            )
            tensors = dict(model.state_dict())
            source = pretrained.files.Source(tmp_path, names.vae_to_single(tensors), None, {})
            settings, named = pretrained._understood(source, pretrained._SINGLE_FILE_CONFIG)
            ours = networks.build(settings).state_dict()
        assert len(ours) == (244 if is_flux else 248) and not pretrained.files.unfit(named, ours)
        assert settings.factor == 8 and settings.latent_channels == (16 if is_flux else 4)


@torch.no_grad()
def test_a_dc_ae_is_diffusers_own_and_travels_as_an_artefact(tmp_path: Path) -> None:
    model = dc()
    model.save_pretrained(tmp_path / "dc")
    found, settings, _ = pretrained.load(params(tmp_path / "dc", 2, 8))
    signal = torch.rand(1, 3, 16, 24) * 2 - 1
    latent: Tensor = model.encode(signal).latent  # pyright: ignore
    posterior = found.encode(signal)
    assert torch.equal(posterior.mean, latent) and isinstance(found, dc_ae.DCAutoencoder)
    assert posterior.log_variance.unique().tolist() == [LOG_VARIANCE_RANGE[0]] and not found.attention_shapes(8, 8)
    assert torch.equal(found.decode(latent), model.decode(latent).sample)  # pyright: ignore
    artifact.write(tmp_path / "a", networks.KIND, settings.model_dump(mode="json"), found.state_dict(), {}, {})
    again, _ = networks.load(tmp_path / "a", CPU)
    assert torch.equal(again.decode(again.encode(signal).mode()), found.decode(latent))


def refusal(source: PretrainedAutoencoderParams) -> tuple[UserError, str]:
    with pytest.raises(UserError) as caught:
        pretrained.load(source)
    lines = str(caught.value).splitlines()
    assert len(lines) % 2 == 0 and all(line.startswith("fix: ") for line in lines[1::2])
    return caught.value, str(caught.value)


def test_a_factor_or_channels_that_do_not_fit_are_named_with_what_fits(tmp_path: Path) -> None:
    kl().save_pretrained(tmp_path)
    error, text = refusal(params(tmp_path, factor=8, latent_channels=16))
    assert error.exit_code == 2 and isinstance(error, ConfigError)
    assert f"train_autoencoder.source.factor: found 8; expected 2, as {tmp_path} has\nfix: set factor: 2" in text
    assert "train_autoencoder.source.latent_channels: found 16; expected 4" in text


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in artifact.open_tensors(folder / WEIGHTS).items()}
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


NORM = "decoder.conv_norm_out.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing tensor": (lambda folder: edit_weights(folder, lambda t: t.pop(NORM)), f"missing: {NORM}; expected"),
    "a missing level": (
        lambda folder: edit_weights(folder, lambda t: t.pop("encoder.down_blocks.1.resnets.0.conv1.weight")),
        "no encoder.down_blocks.1.resnets.0.conv1.weight",
    ),
    "an unknown tensor": (
        lambda folder: edit_weights(folder, lambda t: t.update({"encoder.more": torch.zeros(1)})),
        "unknown: encoder.more",
    ),
    "another shape": (
        lambda folder: edit_weights(folder, lambda t: t.update({NORM: torch.zeros(5)})),
        f"of another shape: {NORM} 5 instead of 32",
    ),
    "not a number": (
        lambda folder: edit_weights(folder, lambda t: t[NORM].fill_(torch.nan)),
        f"{NORM} not finite; expected numbers",
    ),
    "another class": (
        lambda folder: edit_config(folder, _class_name="AutoencoderKLWan"),
        "a AutoencoderKLWan; expected an autoencoder of diffusers",
    ),
    "no class": (lambda folder: (folder / "config.json").write_text("{}"), "a network without _class_name"),
    "another activation": (lambda folder: edit_config(folder, act_fn="gelu"), "act_fn gelu"),
    "other blocks": (
        lambda folder: edit_config(folder, down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]),
        "down_block_types .*AttnDownEncoderBlock2D",
    ),
    "groups that do not divide": (lambda folder: edit_config(folder, norm_num_groups=7), "not a multiple of"),
    "a DC-AE's class": (lambda folder: edit_config(folder, _class_name="AutoencoderDC"), "expected the config of an"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    kl().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_whole_autoencoder_is_refused(tmp_path: Path, folder: Path, damage: str) -> None:
    harm, said = DAMAGE[damage]
    shutil.copytree(folder, tmp_path / "vae")
    harm(tmp_path / "vae")
    error, text = refusal(params(tmp_path / "vae"))
    assert error.exit_code == 4 and isinstance(error, IntegrityError) and str(tmp_path / "vae") in text
    assert re.search(said, text), text


@pytest.mark.parametrize("changes", [{"made_up": 1}, {"act_fn": ["no", "such"]}], ids=str)
def test_a_dc_ae_whose_config_its_class_does_not_take_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    dc().save_pretrained(tmp_path / "dc")
    edit_config(tmp_path / "dc", **changes)
    error, text = refusal(params(tmp_path / "dc", latent_channels=8))
    assert error.exit_code == 4 and "config.json: " in text and len(text.splitlines()) == 2


def test_a_file_of_something_else_says_what_it_holds(tmp_path: Path) -> None:
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, tmp_path / "unet.safetensors")
    _, text = refusal(params(tmp_path / "unet.safetensors"))
    assert "no autoencoder, but model.diffusion_model.out.2.bias; expected an autoencoder of diffusers" in text


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    write_all(tmp_path / "data")
    kl().save_pretrained(tmp_path / "models/vae")
    return tmp_path


def run(workspace: Path, **changes: Any) -> artifact.Passport:
    source = params(Path("models"), **changes).model_dump(mode="json")
    write_params(workspace, train_autoencoder=AUTOENCODER | {"source": source})
    script("train_autoencoder").main()
    return artifact.read_passport(workspace / "data/autoencoder", KINDS["autoencoder"])


def test_the_stage_keeps_a_brought_autoencoder_and_its_passport_names_the_file(workspace: Path) -> None:
    passport = run(workspace)
    sha256 = sha256_file(workspace / "models/vae" / WEIGHTS)
    assert passport.inputs == {"source": sha256}
    assert passport.facts == {"factor": 2, "latent_channels": 4, "source": {WEIGHTS: sha256}}
    check_equal(networks.load(workspace / "data/autoencoder", CPU)[0], kl())
    results = workspace / "data/autoencoder_results"
    assert {path.name for path in results.iterdir()} == {
        *("metrics.json", "reconstructions.png"),
        *("curves.csv", "validation.csv"),  # empty: DVC's plots look for them
    }
    # The artefact itself can be brought in its turn.
    (workspace / "data/autoencoder").rename(workspace / "models/own")
    write_params(
        workspace,
        train_autoencoder=AUTOENCODER | {"source": params(Path("models/own")).model_dump(mode="json")},
    )
    script("train_autoencoder").main()
    again = artifact.read_passport(workspace / "data/autoencoder", KINDS["autoencoder"])
    assert again.inputs["source"] == passport.content_sha256 == again.content_sha256


def test_only_the_decoder_is_trained_so_that_latents_stay(workspace: Path) -> None:
    trained = AUTOENCODER["source"]
    passport = run(workspace, reconstruction=trained["reconstruction"], training=trained["training"])
    assert passport.inputs.keys() == {"source", "images_train", "images_val"}
    _, after = artifact.read(workspace / "data/autoencoder", KINDS["autoencoder"])
    before = kl().state_dict()
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    assert same == {name for name in before if name.startswith(("encoder.", "quant_conv."))}
    assert (workspace / "data/autoencoder_results/curves.csv").is_file()


def test_a_loss_without_a_training_is_refused(workspace: Path) -> None:
    with pytest.raises(ValueError, match="one of reconstruction and training is null"):
        params(workspace, training=AUTOENCODER["source"]["training"])
    whole = AUTOENCODER | {"source": params(workspace).model_dump(mode="json")}
    assert sources.obtain(TrainAutoencoderParams.model_validate(AUTOENCODER)).inputs == {}
    assert TrainAutoencoderParams.model_validate(whole).training is None
