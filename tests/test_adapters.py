"""Adapters of `train_unet` and of others on a loaded pipeline: images, origins, replay, and what is refused."""

import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError
from ldm.denoiser import adapters
from ldm.denoiser.adapters import Adapter
from ldm.denoiser.model.unet import UNet
from ldm.sampling.origin import Origin
from ldm.tools import cli
from ldm.tools.adapters import adapted
from ldm.tools.pipeline import Pipeline

PROMPTS = ["a red star", "a blue cross"]
RANK = 2


def layers_of(unet: nn.Module, *ends: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Random thin matrices for all layers whose names end so."""
    generator, found = torch.Generator().manual_seed(3), dict[str, tuple[Tensor, Tensor]]()
    for name, module in unet.named_modules():
        if name.endswith(ends) and isinstance(module, nn.Linear | nn.Conv2d):
            weight = module.weight
            down = torch.randn(RANK, *weight.shape[1:], generator=generator)
            up = torch.randn(len(weight), RANK, *[1] * (weight.dim() - 2), generator=generator)
            found[name] = down, up
    return found


@pytest.fixture(scope="module")
def adapter(loaded: Pipeline) -> Adapter:
    return Adapter(layers_of(loaded.generator.unet, "to_q", "to_v", "conv1"))


def saved(folder: Path, adapter: Adapter, base: str) -> Path:
    adapters.write(folder, adapter, {"rank": RANK, "alpha": 2.0, "targets": ["to_q"]}, {"init_from": base})
    return folder


@pytest.fixture(scope="module")
def of_stage(loaded: Pipeline, adapter: Adapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("adapter"), adapter, loaded.generator.passport.content_sha256)


def weights(pipeline: Pipeline) -> dict[str, Tensor]:
    return dict(pipeline.generator.unet.state_dict())


def test_images_are_those_of_the_merged_weights_and_say_which_adapter(root, loaded, adapter, of_stage):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_half = adapted(Pipeline.load(root), {of_stage: 0.5})
    unet = with_half.generator.unet
    assert isinstance(unet, UNet)
    expected = Pipeline.load(root)
    adapter.add_to(expected.generator.unet, 0.5, "here")
    pictures = with_half(PROMPTS)
    assert torch.equal(pictures, expected(PROMPTS)) and not torch.equal(pictures, loaded(PROMPTS))
    (png,) = with_half.pngs(PROMPTS[:1])
    origin = Origin.read(png, "png")
    sha256 = artifact.read_passport(of_stage, adapters.KIND).content_sha256
    assert origin.adapters == {sha256: 0.5} and origin.models["unet"] == loaded.generator.passport.content_sha256
    assert torch.equal(with_half.replay(origin), with_half(PROMPTS[:1])[0])
    for other in (loaded, adapted(Pipeline.load(root), {of_stage: 1})):
        with pytest.raises(IntegrityError, match=f"adapter {sha256} times 0.5; expected"):
            other.replay(origin)


def test_the_command_line_adds_adapters_and_replays_with_them(root, of_stage, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(root)
    chosen = ["--adapter", f"{of_stage},scale=0.5"]
    assert cli.main(["generate", PROMPTS[0], *chosen, "--output", str(tmp_path / "out")]) == 0
    path = tmp_path / "out" / "0000.png"
    assert [*Origin.read(path.read_bytes(), "png").adapters.values()] == [0.5]
    assert cli.main(["replay", str(path), *chosen]) == 0
    capsys.readouterr()
    assert cli.main(["replay", str(path)]) == 4
    finding, fix = capsys.readouterr().err.splitlines()[-2:]
    assert "times 0.5; expected no adapter" in finding and "--adapter" in fix
    missing = ["--adapter", str(tmp_path / "none")]
    assert cli.main(["generate", PROMPTS[0], *missing, "--output", str(tmp_path / "out")]) == 4
    twice = ["--adapter", f"{of_stage},scale=0.25", *chosen]
    assert cli.main(["generate", PROMPTS[0], *twice, "--output", str(tmp_path / "twice")]) == 0
    assert [*Origin.read((tmp_path / "twice/0000.png").read_bytes(), "png").adapters.values()] == [0.75]


@pytest.mark.parametrize("scale", ["much", "nan", "inf", ""])
def test_a_scale_that_is_no_number_is_refused(scale: str, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["generate", PROMPTS[0], "--adapter", f"a,scale={scale}", "--output", str(tmp_path / "out")])
    assert caught.value.code == 2 and f"found scale {scale!r}; expected a number" in capsys.readouterr().err


def test_a_png_without_an_adapter_is_as_before(loaded):
    (png,) = loaded.pngs(PROMPTS[:1])
    assert b"adapters" not in png


def test_two_adapters_add_up_and_none_changes_nothing(root, loaded, of_stage, tmp_path):
    second = saved(tmp_path / "second", Adapter(layers_of(loaded.generator.unet, "to_k")), "0" * 64)
    with pytest.warns(UserWarning, match="was trained on UNet 000000000000, and this is"):
        both = adapted(Pipeline.load(root), {of_stage: 1, second: 0.25})
    assert sorted(both.generator.adapters.values()) == [0.25, 1]
    expected = Pipeline.load(root)
    for path, scale in ((of_stage, 1), (second, 0.25)):
        adapters.load(path)[0].add_to(expected.generator.unet, scale, "here")
    assert all(torch.equal(weight, weights(expected)[name]) for name, weight in weights(both).items())
    plain = adapted(Pipeline.load(root), {})
    assert all(torch.equal(weight, weights(loaded)[name]) for name, weight in weights(plain).items())


def test_the_pipeline_given_stays_as_it_is(root, loaded, of_stage, tmp_path):
    given = Pipeline.load(root)
    adapted(given, {of_stage: 1})
    other = saved(tmp_path / "other", Adapter({"no_layer": (torch.zeros(2, 4), torch.zeros(4, 2))}), "0" * 64)
    with pytest.raises(ConfigError, match="no such layer"), pytest.warns(UserWarning, match="was trained on UNet"):
        adapted(given, {of_stage: 1, other: 1})
    assert given.generator.adapters == {}
    assert all(torch.equal(weight, weights(loaded)[name]) for name, weight in weights(given).items())


def foreign(adapter: Adapter, kind: str, alpha: float) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a LoRA as others save it."""
    if kind == "kohya":
        tensors: dict[str, Tensor] = {}
        for name, (down, up) in adapter.layers.items():
            key = f"lora_unet_{name.replace('.', '_')}"
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
        return tensors, {}
    prefix = "base_model.model." if kind == "peft" else "unet."
    tensors = {
        f"{prefix}{name}.{end}": part
        for name, pair in adapter.layers.items()
        for end, part in zip(("lora_A.weight", "lora_B.weight"), pair, strict=True)
    }
    header = {"format": "pt"}
    if kind == "diffusers":
        header["lora_adapter_metadata"] = json.dumps({"unet.r": RANK, "unet.lora_alpha": alpha})
    return tensors, header


@pytest.mark.parametrize("kind", ["diffusers", "peft", "kohya"])
def test_files_of_others_add_what_they_state(kind: str, root, loaded, adapter, tmp_path):
    alpha = 6.0
    tensors, header = foreign(adapter, kind, alpha)
    path = tmp_path / ("adapter_model.safetensors" if kind == "peft" else "lora.safetensors")
    save_file(tensors, path, header)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": alpha}))
    found = adapted(Pipeline.load(root), {path: 0.1})
    assert found.generator.adapters == {artifact.sha256_file(path): 0.1}
    expected = Pipeline.load(root)
    adapter.add_to(expected.generator.unet, 0.1 * alpha / RANK, "here")
    for name, weight in weights(found).items():
        torch.testing.assert_close(weight, weights(expected)[name])
    layer = f"{next(iter(adapter.layers))}.weight"
    assert not torch.allclose(weights(found)[layer], weights(loaded)[layer])


def test_a_folder_that_peft_writes_is_read(root, loaded, tmp_path):
    peft: Any = pytest.importorskip("peft")
    config = peft.LoraConfig(r=RANK, lora_alpha=6.0, target_modules=["to_q", "conv1"], init_lora_weights=False)
    model = peft.get_peft_model(Pipeline.load(root).generator.unet, config)
    model.save_pretrained(tmp_path)
    expected = model.merge_and_unload().state_dict()
    found = adapted(Pipeline.load(root), {tmp_path: 1})
    assert found.generator.adapters == {artifact.sha256_file(tmp_path / "adapter_model.safetensors"): 1}
    for name, weight in weights(found).items():
        torch.testing.assert_close(weight, expected[name])
    assert any(not torch.allclose(weight, weights(loaded)[name]) for name, weight in weights(found).items())


def test_a_file_that_diffusers_writes_is_read(root, adapter, tmp_path):
    from diffusers import StableDiffusionPipeline

    pairs = {
        f"{name}.{end}": part
        for name, pair in adapter.layers.items()
        for end, part in zip(("lora_A.weight", "lora_B.weight"), pair, strict=True)
    }
    metadata = {"r": RANK, "lora_alpha": 4.0}
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=pairs, unet_lora_adapter_metadata=metadata)
    found = adapted(Pipeline.load(root), {tmp_path / "pytorch_lora_weights.safetensors": 1})
    expected = Pipeline.load(root)
    adapter.add_to(expected.generator.unet, 2.0, "here")
    for name, weight in weights(found).items():
        torch.testing.assert_close(weight, weights(expected)[name])


@pytest.mark.parametrize("is_former", [False, True])
def test_a_file_of_a_training_script_of_diffusers_is_read(is_former: bool, root, loaded, tmp_path):
    """Their scripts rename what peft gives; names before that had a processor in them."""
    peft, utils = pytest.importorskip("peft"), pytest.importorskip("diffusers.utils")
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(Pipeline.load(root).generator.unet, config)
    tensors = utils.convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(model))
    tensors = {f"unet.{name.removeprefix('base_model.model.')}": part.contiguous() for name, part in tensors.items()}
    assert any(name.endswith(".to_out.0.lora.down.weight") for name in tensors)
    if is_former:
        former = re.compile(r"\.(to_\w+?)(?:\.0)?\.lora\.(down|up)\.weight$")
        tensors = {former.sub(r".processor.\1_lora.\2.weight", name): part for name, part in tensors.items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    found, expected = adapted(Pipeline.load(root), {tmp_path / "lora.safetensors": 1}), model.merge_and_unload()
    for name, weight in weights(found).items():
        torch.testing.assert_close(weight, expected.state_dict()[name])
    layers = [name for name in weights(found) if name.endswith(tuple(f"{end}.weight" for end in targets))]
    assert layers and not any(torch.allclose(weights(found)[name], weights(loaded)[name]) for name in layers)


def test_layers_of_a_text_encoder_are_left_out_with_a_warning(root, adapter, tmp_path):
    tensors, header = foreign(adapter, "kohya", 2.0)
    tensors["lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "lora.safetensors", header)
    with pytest.warns(UserWarning, match="1 tensors of a text encoder are left out"):
        adapted(Pipeline.load(root), {tmp_path / "lora.safetensors": 1})


def refusals() -> dict[str, tuple[dict[str, Tensor], dict[str, str], type[Exception], str]]:
    down, up = torch.zeros(2, 8), torch.zeros(8, 2)
    down_name, up_name = (f"unet.conv_in.lora_{letter}.weight" for letter in "AB")
    whole = {down_name: down, up_name: up}
    pattern = {"lora_adapter_metadata": json.dumps({"unet.alpha_pattern": {"to_q": 3}})}
    return {
        "weights": ({"conv_in.weight": down}, {}, IntegrityError, r"a tensor conv_in\.weight"),
        "half": ({"unet.conv_in.lora_A.weight": down}, {}, IntegrityError, "conv_in with down alone"),
        "text": ({"lora_te_layer.lora_down.weight": down}, {}, IntegrityError, "no layer of a UNet"),
        "other": ({f"unet.x{name[4:]}": part for name, part in whole.items()}, {}, ConfigError, "no such layer"),
        "shape": (
            whole,
            {},
            ConfigError,
            r"layer conv_in of .8, 2. times .2, 8.; expected one that adds to .8, 4",
        ),
        "kind": (whole, pattern, ConfigError, "alpha_pattern {'to_q': 3}"),
        "no JSON": (whole, {"lora_adapter_metadata": "{"}, IntegrityError, "lora_adapter_metadata '{' in its header"),
        "list": (whole, {"lora_adapter_metadata": "[1]"}, IntegrityError, r"header; expected a JSON object"),
        "rank": ({down_name: down[:0], up_name: up[:, :0]}, {}, IntegrityError, r"conv_in of .8, 0. times .0, 8."),
        "scalar": ({down_name: down[0, 0], up_name: up[0, 0]}, {}, IntegrityError, r"conv_in of .. times .."),
        "alpha": (whole | {"unet.conv_in.alpha": torch.ones(3)}, {}, IntegrityError, "an alpha of 3 numbers"),
    }


@pytest.mark.parametrize("name", refusals())
@pytest.mark.filterwarnings("ignore:.*text encoder")
def test_what_is_no_adapter_of_this_unet_is_refused(name: str, loaded, tmp_path):
    tensors, header, error, message = refusals()[name]
    save_file(tensors, tmp_path / "lora.safetensors", header)
    with pytest.raises(error, match=message) as caught:
        adapted(loaded, {tmp_path / "lora.safetensors": 1})
    assert "lora.safetensors: " in str(caught.value)


@pytest.mark.parametrize("alpha", ["16", [16], True, math.nan])
def test_an_alpha_that_is_no_number_is_refused(alpha: object, loaded, adapter, tmp_path):
    save_file(foreign(adapter, "peft", 2.0)[0], tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": alpha}))
    with pytest.raises(ConfigError, match=r"adapter_config\.json: lora_alpha .*; expected a number"):
        adapted(loaded, {tmp_path: 1})


def test_a_header_that_says_nothing_states_no_alpha(loaded, adapter, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file(foreign(adapter, "peft", 2.0)[0], path, {})
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]) | {"__metadata__": None}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])
    assert [*adapted(loaded, {path: 1}).generator.adapters.values()] == [1]


def test_a_file_that_is_not_finite_is_refused(loaded, adapter, tmp_path):
    tensors, header = foreign(adapter, "diffusers", 2.0)
    name = next(name for name in tensors if name.endswith("lora_A.weight"))
    save_file(tensors | {name: torch.full_like(tensors[name], math.nan)}, tmp_path / "lora.safetensors", header)
    with pytest.raises(IntegrityError, match=r"lora\.safetensors: layer .* with values that are not finite"):
        adapted(loaded, {tmp_path / "lora.safetensors": 1})


def test_a_missing_and_a_damaged_adapter_are_integrity_errors(root, of_stage, adapter, tmp_path):
    missing: dict[Any, float] = {tmp_path / "none": 1}
    with pytest.raises(IntegrityError, match="no such file or folder"):
        adapted(Pipeline.load(root), missing)
    tensors, header = foreign(adapter, "diffusers", 2.0)
    save_file(tensors, tmp_path / "lora.safetensors", header)
    whole = (tmp_path / "lora.safetensors").read_bytes()
    (tmp_path / "lora.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError):
        adapted(Pipeline.load(root), {tmp_path / "lora.safetensors": 1})
