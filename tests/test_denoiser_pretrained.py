"""A training starts from Stable Diffusion's UNet: from folders of diffusers and from single files, at other sizes and
with other channels; what does not fit is refused by name."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.autoencoder.encoding.latents import LatentScale
from ldm.autoencoder.model.network import to_image
from ldm.autoencoder.training import pretrained
from ldm.autoencoder.training.params import PretrainedAutoencoderParams
from ldm.compute import attention
from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError, UserError
from ldm.core.hashes import sha256_file
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.diffusion import Schedule, denoiser
from ldm.denoiser.model.networks import build
from ldm.denoiser.model.unet import UNet
from ldm.denoiser.training import pretrained as pretrained_unets
from ldm.denoiser.training.inputs import Inputs
from ldm.denoiser.training.params import InitFromParams, TrainUNetParams
from ldm.denoiser.training.start import load_weights
from ldm.exchange import files, names
from ldm.sampling import grids, trajectory
from ldm.sampling.samplers import ancestral
from ldm.tools.recipe import Recipe
from tests.import_closure import ROOT
from tests.kinds import KINDS
from tests.stage_scripts import script
from tests.test_stages_training import write_params
from tests.training_data import AUTOENCODER, UNET, load_all, unet_params, write_all

WEIGHTS = "diffusion_pytorch_model.safetensors"
TRAITS = ["schedule", "prediction", "text_encoder", "autoencoder", "latent_scale"]
OURS: dict[str, Any] = {
    "channels": [16, 32],
    "norm_groups": 8,
    "head_width": 8,
    "num_context_layers": 0,
    "position_embedding": False,
    "linear_projection": True,
}
SD_1: dict[str, Any] = {"attention_head_dim": 8, "cross_attention_dim": 768}
SD_2: dict[str, Any] = {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
PUBLISHED_1: dict[str, Any] = Recipe("stable-diffusion", ROOT).data["train_unet"]["network"]
PUBLISHED_2 = PUBLISHED_1 | {"head_width": 64, "linear_projection": True, "context_width": 1024}


def randomised(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.1)
    return model.eval()


def theirs(**changes: Any) -> UNet2DConditionModel:
    """Stable Diffusion's UNet as it fits `OURS`, unless `changes` say otherwise."""
    arguments: dict[str, Any] = {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 8,
        "norm_num_groups": 8,
        "use_linear_projection": True,
        "sample_size": 4,
    }
    return UNet2DConditionModel(**arguments | changes)


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    attention.select("math", torch.device("cpu"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return load_all(tmp_path_factory.mktemp("inputs"))


def ours(**network: Any) -> TrainUNetParams:
    return unet_params(network=OURS | network)


def init_from(path: Path, *may_differ: str) -> InitFromParams:
    return InitFromParams.model_validate({"path": str(path), "may_differ": may_differ})


def start(path: Path, inputs: Inputs, params: TrainUNetParams | None = None) -> UNet:
    """A UNet with the weights at a path, whatever they were trained for."""
    params = params or ours()
    network = build(params.network)
    assert isinstance(network, UNet)
    load_weights(network, init_from(path, *TRAITS), params, inputs)
    return network.eval()


@torch.no_grad()
def outputs(ours: nn.Module, model: UNet2DConditionModel) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(2, 4, 8, 8, generator=generator)
    tokens, time = (
        torch.randn(2, 5, model.config["cross_attention_dim"], generator=generator),
        torch.tensor([3.0, 907.0]),
    )
    expected: Tensor = model(z, time, tokens).sample
    assert expected.std() > 0.01
    return ours(z, time, Condition(tokens)), expected


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_a_folder_of_diffusers_computes_what_diffusers_does(
    tmp_path: Path, inputs: Inputs, precision: torch.dtype
) -> None:
    model = randomised(theirs()).to(precision)
    model.save_pretrained(tmp_path / "unet")
    for path in (tmp_path, tmp_path / "unet"):
        network = build(ours().network)
        sha256 = load_weights(network, init_from(path, *TRAITS), ours(), inputs)
        assert sha256 == sha256_file(tmp_path / "unet" / WEIGHTS)
        found, expected = outputs(network, model.float())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_single_file_has_the_heads_of_stable_diffusion_1_or_2(tmp_path: Path, inputs: Inputs) -> None:
    """At its own first width, 320, where the time embedding is no power of two."""
    first = {"block_out_channels": (320,), "norm_num_groups": 32}
    first |= {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    network = {"channels": [320], "attention_levels": [True], "norm_groups": 32}
    for heads, is_linear, width in ((8, False, 40), (5, True, 64)):
        model = randomised(theirs(**first, attention_head_dim=heads, use_linear_projection=is_linear))
        path = tmp_path / "model.safetensors"
        single = names.under(names.unet_to_single(model.state_dict()), names.UNET)
        save_file(
            {name: tensor.contiguous() for name, tensor in single.items()} | {"model_ema.decay": torch.ones(1)}, path
        )
        params = ours(**network, head_width=width, linear_projection=is_linear)
        found, expected = outputs(start(path, inputs, params), model)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        with pytest.raises(ConfigError, match=rf"head_width: found 32; expected {width}, as in {re.escape(str(path))}"):
            start(path, inputs, ours(**network, head_width=32))


def test_projections_may_be_linear_or_convolutions_on_either_side(tmp_path: Path, inputs: Inputs) -> None:
    for is_linear in (True, False):
        model = randomised(theirs(use_linear_projection=is_linear))
        model.save_pretrained(tmp_path)
        found, expected = outputs(start(tmp_path, inputs, ours(linear_projection=not is_linear)), model)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_new_channels_start_at_zero_and_those_of_a_mask_are_left_out(tmp_path: Path, inputs: Inputs) -> None:
    model = randomised(theirs())
    model.save_pretrained(tmp_path / "four")
    wide = start(tmp_path / "four", inputs, ours(latent_channels=6))
    z = torch.randn(2, 6, 8, 8)
    tokens, time = torch.randn(2, 5, 8), torch.tensor([3.0, 907.0])
    expected = model(z[:, :4], time, tokens).sample
    found = wide(z, time, Condition(tokens))
    torch.testing.assert_close(found[:, :4], expected, rtol=1e-4, atol=1e-5)
    assert not found[:, 4:].any()
    inpainting = randomised(theirs(in_channels=9))
    inpainting.save_pretrained(tmp_path / "nine")
    expected = inpainting(torch.cat([z[:, :4], torch.zeros(2, 5, 8, 8)], 1), time, tokens).sample
    found = start(tmp_path / "nine", inputs)(z[:, :4], time, Condition(tokens))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("config", "network"), [(SD_1, PUBLISHED_1), (SD_2, PUBLISHED_2)], ids=["SD 1.5", "SD 2.1"])
@pytest.mark.parametrize("is_single", [False, True])
def test_the_whole_published_unet_fits(config: dict[str, Any], network: dict[str, Any], is_single: bool) -> None:
    """As their configs are published: all 686 names and shapes, on the meta device."""
    params = ours(**network).network
    with torch.device("meta"):
        model = UNet2DConditionModel(**config)
        expected = build(params).state_dict()
    tensors = dict(model.state_dict())
    if is_single:
        tensors = names.unet_from_single(names.unet_to_single(tensors))
    assert len(tensors) == 686 and files.unfit(tensors, expected) == ""
    stated = {} if is_single else dict(model.config)
    found = pretrained_unets._network(Path("unet"), tensors, stated)
    head_widths = params.model_copy(update={"head_width": found["head_width"]}).head_widths
    assert head_widths == params.head_widths and found["norm_groups"] == 32
    assert found == params.model_dump(include=set(found)) | {"head_width": found["head_width"]}


def write_pipeline(folder: Path, scheduler: dict[str, Any] | None = None, vae: dict[str, Any] | None = None) -> Path:
    model = randomised(theirs())
    model.save_pretrained(folder / "unet")
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    DDIMScheduler(**betas | (scheduler or {})).save_pretrained(folder / "scheduler")
    if vae is not None:
        randomised(AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, **vae)).save_pretrained(folder / "vae")
    return folder


def refused(path: Path, inputs: Inputs, params: TrainUNetParams, *may_differ: str) -> list[str]:
    network = build(params.network)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    with pytest.raises(ConfigError) as caught:
        load_weights(network, init_from(path, *may_differ), params, inputs)
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    return str(caught.value).splitlines()[::2]


def test_what_the_files_do_not_tell_must_be_vouched_for(tmp_path: Path, inputs: Inputs) -> None:
    randomised(theirs()).save_pretrained(tmp_path)
    lines = refused(tmp_path, inputs, ours())
    told = [match[1] for line in lines if (match := re.match(r".*init_from: (\w+) .*whose files do not tell it", line))]
    assert told == TRAITS
    assert len(refused(tmp_path, inputs, ours(), *TRAITS[:-1])) == 1


def test_a_pipeline_tells_what_its_unet_was_trained_with(tmp_path: Path, inputs: Inputs) -> None:
    write_pipeline(tmp_path, vae={"scaling_factor": 0.5, "shift_factor": 0.25})
    lines = refused(tmp_path, inputs, ours(), "text_encoder")
    said = [
        "schedule flow; expected scaled_linear, as in",
        "prediction flow; expected eps, as in",
        rf"autoencoder \w{{64}}; expected of SHA-256 {sha256_file(tmp_path / 'vae' / WEIGHTS)}, as in",
        "latent_scale of mean 1, 1, 1, 1 and deviation 3, 3, 3, 3; expected of mean 0.25, 0.25, 0.25, 0.25 and "
        "deviation 2, 2, 2, 2, as in",
    ]
    assert len(lines) == 4 and all(re.search(text, line) for text, line in zip(said, lines, strict=True)), lines


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, ("linear", "eps")),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, ("scaled_linear", "eps")),
        (
            {
                "beta_schedule": "scaled_linear",
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "rescale_betas_zero_snr": True,
                "prediction_type": "v_prediction",
            },
            ("zero_terminal_snr", "v"),
        ),
        ({"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}, ("cosine", "x0")),
        ({"beta_schedule": "scaled_linear"}, ("scaled_linear from 0.0001 to 0.02", "eps")),
        ({"rescale_betas_zero_snr": True}, ("linear, rescaled to zero terminal SNR", "eps")),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, ("flow", "flow")),
    ],
    ids=str,
)
def test_a_scheduler_is_a_schedule_and_a_prediction_of_ours(config: dict[str, Any], expected: tuple[str, str]) -> None:
    assert pretrained_unets._objective(config) == expected


REFUSED: dict[str, tuple[Callable[[], UNet2DConditionModel], str]] = {
    "SDXL": (
        lambda: theirs(
            addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=16
        ),
        "config.json: addition_embed_type text_time; expected a UNet of diffusers",
    ),
    "classes": (lambda: theirs(num_class_embeds=7), "unknown: class_embedding.weight; expected the weights of"),
    "other blocks": (
        lambda: theirs(down_block_types=("DownBlock2D", "SimpleCrossAttnDownBlock2D")),
        "config.json: down_block_types .*SimpleCrossAttnDownBlock2D",
    ),
    "narrower": (
        lambda: theirs(block_out_channels=(16, 16), attention_head_dim=(2, 2)),
        r"network.channels: found \[16, 32\]; expected \[16, 16\], as in",
    ),
    "other heads": (lambda: theirs(attention_head_dim=2), r"network.head_width: found 8; expected \[8, 16\]"),
    "heads of other levels": (
        lambda: theirs(attention_head_dim=(2, 2)),
        r"config.json: attention_head_dim \[2, 2, 2\] of 2 levels; expected a UNet of diffusers",
    ),
    "no heads": (lambda: theirs(), r"config.json: attention_head_dim 0 of 2 levels"),
    "other groups": (lambda: theirs(norm_num_groups=4), "network.norm_groups: found 8; expected 4"),
    "other text": (lambda: theirs(cross_attention_dim=16), "network.context_width: found 8; expected 16"),
}


HEADS: dict[str, Any] = {"heads of other levels": [2, 2, 2], "no heads": 0}


@pytest.mark.parametrize("kind", REFUSED)
def test_another_network_is_refused_by_name(tmp_path: Path, inputs: Inputs, kind: str) -> None:
    make, said = REFUSED[kind]
    make().save_pretrained(tmp_path)
    if (changed := HEADS.get(kind)) is not None:  # which diffusers itself would not write
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"attention_head_dim": changed}))
    with pytest.raises(UserError) as caught:
        start(tmp_path, inputs)
    assert re.search(said, str(caught.value)), caught.value
    assert caught.value.exit_code == (4 if "config.json" in said else 2)


def test_context_layers_and_positions_are_not_in_it(tmp_path: Path, inputs: Inputs) -> None:
    theirs().save_pretrained(tmp_path)
    lines = refused(tmp_path, inputs, ours(num_context_layers=1, position_embedding=True), *TRAITS)
    assert [re.search(r"network\.(\w+): found (\w+); expected (\w+)", line).groups() for line in lines] == [  # pyright: ignore
        ("num_context_layers", "1", "0"),
        ("position_embedding", "True", "False"),
    ]


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path, inputs: Inputs) -> None:
    save_file({"first_stage_model.decoder.conv_in.weight": torch.zeros(1)}, tmp_path / "vae.safetensors")
    with pytest.raises(IntegrityError, match=r"no mid_block.*, but first_stage_model\.decoder\.conv"):
        start(tmp_path / "vae.safetensors", inputs)
    model = theirs()
    model.save_pretrained(tmp_path / "unet")
    content = (tmp_path / "unet" / WEIGHTS).read_bytes()
    (tmp_path / "unet" / WEIGHTS).write_bytes(content[:-100])
    with pytest.raises(IntegrityError, match="a download that was cut"):
        start(tmp_path / "unet", inputs)
    tensors = dict(model.state_dict())
    tensors["conv_out.bias"] = torch.full_like(tensors["conv_out.bias"], torch.inf)
    save_file(tensors, tmp_path / "unet" / WEIGHTS)
    with pytest.raises(IntegrityError, match=r"conv_out\.bias not finite"):
        start(tmp_path / "unet", inputs)
    (tmp_path / "unet/config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(IntegrityError, match="_class_name FluxTransformer2DModel; expected a UNet of diffusers"):
        start(tmp_path / "unet", inputs)


def test_stages_start_from_one_folder_and_only_the_text_is_vouched_for(
    tmp_path: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale that `encode_latents` states and the autoencoder that was brought are those of the UNet's pipeline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    write_all(tmp_path / "data")
    write_pipeline(tmp_path / "sd", vae={"scaling_factor": 0.18215})
    source = {"kind": "pretrained", "path": "sd", "factor": 1, "latent_channels": 4}
    autoencoder = {"source": source | {"reconstruction": None, "training": None}}
    stated = {"kind": "stated", "factor": 0.18215, "shift": 0.0}
    encode = {"batch_size": 4, "precision": "fp32", "mirrored": False, "scale": stated, "statistics_tolerance": 1e-6}
    network = UNET["network"] | OURS | {"latent_size": 16}
    unet = UNET | {"network": network, "init_from": {"path": "sd", "may_differ": ["text_encoder"]}}
    unet["diffusion"] = UNET["diffusion"] | {"schedule": "scaled_linear", "prediction": "eps"}
    write_params(tmp_path, train_autoencoder=AUTOENCODER | autoencoder, encode_latents=encode, train_unet=unet)
    for stage in ("train_autoencoder", "encode_latents", "train_unet"):
        script(stage).main()
    latents = artifact.read_passport(tmp_path / "data/latents/train", KINDS["latents"])
    assert latents.facts["latent_scale"] == {"mean": [0.0] * 4, "std": [1 / 0.18215] * 4}
    assert latents.config["scale"] == stated
    passport = artifact.read_passport(tmp_path / "data/unet", KINDS["unet"])
    assert passport.inputs["init_from"] == sha256_file(tmp_path / "sd/unet" / WEIGHTS)
    write_params(tmp_path, train_unet=unet | {"init_from": {"path": "sd", "may_differ": []}})
    with pytest.raises(ConfigError, match=r"init_from: text_encoder .*whose files do not tell it") as caught:
        script("train_unet").main()
    assert len(str(caught.value).splitlines()) == 2


@torch.no_grad()
def test_a_folder_of_stable_diffusion_gives_the_image_of_diffusers(tmp_path: Path, inputs: Inputs) -> None:
    """Both networks from one folder, eps and v, guidance, the same noise and times."""
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=16,
    )
    for prediction in ("epsilon", "v_prediction"):
        betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        options = {"clip_sample": False, "timestep_spacing": "trailing", "prediction_type": prediction}
        scheduler = DDIMScheduler(**betas, **options)  # pyright: ignore[reportArgumentType]
        unet = randomised(theirs())
        pipeline = StableDiffusionPipeline(
            randomised(vae),
            None,
            None,
            unet,
            scheduler,
            None,
            None,
            requires_safety_checker=False,  # pyright: ignore
        )
        pipeline.set_progress_bar_config(disable=True)
        pipeline.save_pretrained(tmp_path / "sd")
        generator = torch.Generator().manual_seed(4)
        tokens, null = torch.randn(2, 1, 5, 8, generator=generator)
        noise = torch.randn(1, 4, 8, 8, generator=generator)
        expected: Tensor = pipeline(  # pyright: ignore
            prompt_embeds=tokens,
            negative_prompt_embeds=null,
            latents=noise,
            num_inference_steps=7,
            guidance_scale=3.0,
            output_type="pt",
            height=16,
            width=16,
        ).images
        source = {"kind": "pretrained", "path": str(tmp_path / "sd"), "factor": 2, "latent_channels": 4}
        source |= {"reconstruction": None, "training": None}
        decoder, _, _ = pretrained.load(PretrainedAutoencoderParams.model_validate(source))
        network, schedule = start(tmp_path / "sd", inputs), Schedule("scaled_linear")
        name = pretrained_unets.read(tmp_path / "sd").traits["prediction"]
        cond, uncond = (denoiser(network, schedule, name, Condition(text)) for text in (tokens, null))  # pyright: ignore

        def guided(z: Tensor, t: Tensor, cond: Any = cond, uncond: Any = uncond) -> Tensor:
            return uncond(z, t) + 3.0 * (cond(z, t) - uncond(z, t))

        times = grids.times("scaled_linear", 7, "trailing", 1.0)  # pyright: ignore[reportArgumentType]
        z = trajectory.follow(ancestral.ddim, guided, schedule, noise, times)
        scale = LatentScale(torch.zeros(4), torch.full((4,), 1 / 0.18215))
        image = decoder.decode(scale.denormalise(z))
        assert expected.std() > 0.02
        torch.testing.assert_close((image / 2 + 0.5).clamp(0, 1), expected, rtol=0, atol=1e-3)
        assert (to_image(image).float() / 255 - expected).abs().max() < 3e-3
