"""Low-rank adaptation: the base stays, the adapter is small, both together are what was trained, and others load it."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError
from ldm.denoiser import adapters
from ldm.denoiser.adapters import Adapter
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.unet import UNet
from ldm.denoiser.training.lora import Lora
from ldm.denoiser.training.params import LoraParams
from tests.training_data import UNET, unet_params

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
NETWORK = UNET["network"] | {"num_context_layers": 0, "position_embedding": False}


def lora_params(targets: list[str], rank: int = 2, alpha: float = 3.0) -> LoraParams:
    return LoraParams(rank=rank, alpha=alpha, targets=targets)


def base(**changes: object) -> UNet:
    torch.manual_seed(5)
    unet = UNet(unet_params(network=NETWORK | changes).network)
    for parameter in unet.parameters():  # the last layers of a fresh network are zero, which would hide the others
        nn.init.normal_(parameter, std=0.2)
    return unet.eval()


def layers_of(unet: UNet) -> list[str]:
    return [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def output(unet: UNet, size: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    z = torch.randn(2, 4, size, size, generator=generator)
    condition = Condition(tokens=torch.randn(2, 5, 8, generator=generator))
    with torch.no_grad():
        return unet(z, torch.tensor([100.0, 900.0]), condition)


def learned(unet: UNet, params: LoraParams, std: float = 0.3) -> Lora:
    """Low-rank layers with weights as after a training."""
    lora, generator = Lora(unet, params, seed=0), torch.Generator().manual_seed(7)
    for parameter in unet.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return lora


def state(unet: UNet) -> Mapping[str, Tensor]:
    return {name: weight.clone() for name, weight in unet.state_dict().items()}


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "convolutions"])
def test_what_every_kind_of_layer_learns_is_what_its_adapter_adds(linear: bool):
    # All layers at once would hide one that is left out by another.
    unet = base(linear_projection=linear)
    plain, before = output(unet), state(unet)
    by_kind = {re.sub(r"\d+|(up|down|mid)_block", "", name): name for name in layers_of(unet)}
    assert len(by_kind) > 20
    for name in by_kind.values():
        unet.load_state_dict(before)
        lora = learned(unet, lora_params([name]), std=1.0)
        trained = output(unet)
        assert (trained - plain).abs().max() > 1e-4, f"{name} is not asked"
        lora.merge()
        adapter = lora.adapter
        assert {*adapter.layers} == {name} and unet.state_dict().keys() == before.keys()
        torch.testing.assert_close(output(unet), trained, rtol=1e-5, atol=1e-5)
        assert [key for key, weight in unet.state_dict().items() if not torch.equal(weight, before[key])] == [
            f"{name}.weight"
        ]


def test_only_the_thin_matrices_learn_and_they_add_nothing_at_first():
    unet = base()
    plain = output(unet)
    Lora(unet, lora_params(ATTENTION), seed=0)
    assert torch.equal(output(unet), plain)
    learning = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert learning and all(".lora_A." in name or ".lora_B." in name for name in learning)
    sizes = [parameter.numel() for parameter in unet.parameters() if parameter.requires_grad]
    assert sum(sizes) < 0.1 * sum(parameter.numel() for parameter in unet.parameters())


def test_without_params_everything_learns_and_nothing_is_written(tmp_path: Path):
    unet = base()
    before = state(unet)
    lora = Lora(unet, None, seed=0)
    lora.merge()
    lora.write(tmp_path, {})
    assert all(parameter.requires_grad for parameter in unet.parameters()) and not list(tmp_path.iterdir())
    assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())


def test_the_start_depends_on_the_seed_alone():
    starts: list[Mapping[str, Tensor]] = []
    for seed in (0, 0, 1):
        unet = base()
        torch.manual_seed(len(starts))
        Lora(unet, lora_params(["to_q"]), seed)
        starts.append({name: weight for name, weight in state(unet).items() if "lora_A" in name})
    first, same, other = starts
    assert all(torch.equal(first[name], same[name]) and not torch.equal(first[name], other[name]) for name in first)


def test_base_and_adapter_are_the_merged_network_in_every_bit(tmp_path: Path):
    unet = base()
    lora = learned(unet, lora_params(ATTENTION))
    lora.merge()
    lora.write(tmp_path, {"init_from": "0" * 64})
    adapter, passport = adapters.load(tmp_path / "adapter")
    config = lora_params(ATTENTION).model_dump()
    assert (passport.kind, passport.config, passport.inputs) == ("adapter", config, {"init_from": "0" * 64})
    again = base()
    adapter.add_to(again, 1.0, "here")
    assert all(torch.equal(weight, unet.state_dict()[name]) for name, weight in again.state_dict().items())
    # Half of it is half way, and taking it off leads back.
    half = base()
    adapter.add_to(half, 0.5, "here")
    middle = {name: (weight + unet.state_dict()[name]) / 2 for name, weight in base().state_dict().items()}
    torch.testing.assert_close(dict(half.state_dict()), middle)
    adapter.add_to(again, -1.0, "here")
    torch.testing.assert_close(dict(again.state_dict()), dict(base().state_dict()), rtol=0, atol=1e-6)


def test_diffusers_loads_the_adapter_and_computes_the_same(tmp_path: Path):
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    changes = {"attention_levels": [True, True]}
    unet = base(**changes)
    theirs = UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_head_dim=(2, 4),  # pyright: ignore[reportArgumentType]
        cross_attention_dim=8,
        norm_num_groups=4,
        use_linear_projection=True,
    )
    theirs.load_state_dict(unet.state_dict())
    parts: dict[str, Any] = dict.fromkeys(
        ["vae", "text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor"]
    )
    pipeline = StableDiffusionPipeline(**parts, unet=theirs.eval(), requires_safety_checker=False)
    targets = [*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "conv1"]
    lora = learned(unet, lora_params(targets))
    lora.merge()
    lora.write(tmp_path, {})
    pipeline.load_lora_weights(str(tmp_path / "adapter"))
    generator = torch.Generator().manual_seed(6)
    z, tokens = torch.randn(2, 4, 4, 4, generator=generator), torch.randn(2, 5, 8, generator=generator)
    times = torch.tensor([100.0, 900.0])
    with torch.no_grad():
        ours = unet(z, times, Condition(tokens=tokens))
        found = theirs(z, times, encoder_hidden_states=tokens).sample
    torch.testing.assert_close(found, ours, rtol=1e-5, atol=1e-5)
    assert (ours - base(**changes)(z, times, Condition(tokens=tokens))).abs().max() > 1e-3


def test_a_name_that_no_layer_has_is_refused():
    with pytest.raises(ConfigError, match=r"lora\.targets: to_x, conv9, which no layer is called") as caught:
        Lora(base(), lora_params(["to_q", "to_x", "conv9"]), seed=0)
    assert "to_q" in str(caught.value).splitlines()[1]


def test_lora_without_a_trained_denoiser_is_refused():
    with pytest.raises(ValueError, match="init_from is null"):
        unet_params(lora=lora_params(["to_q"]).model_dump())


def test_an_adapter_of_another_network_is_refused_and_changes_nothing():
    unet, other = base(), base(channels=[16, 16])
    before = state(other)
    lora = learned(unet, lora_params(["to_q"]))
    lora.merge()
    adapter = lora.adapter
    with pytest.raises(ConfigError, match=r"^file: layer \S+to_q of \[32, 2\] times \[2, 32\]; expected one that adds"):
        adapter.add_to(other, 1.0, "file")
    with pytest.raises(ConfigError, match=r"layer nowhere of .* expected no such layer"):
        Adapter({"nowhere": (torch.zeros(1, 4), torch.zeros(4, 1))}).add_to(other, 1.0, "file")
    assert all(torch.equal(weight, before[name]) for name, weight in other.state_dict().items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_adapter_that_is_not_finite_is_refused_and_changes_nothing(value: float):
    unet = base()
    before = state(unet)
    names = [name for name in layers_of(unet) if name.endswith("to_q")]
    shapes = {name: before[f"{name}.weight"].shape for name in names}
    pairs = {name: (torch.ones(1, inputs), torch.ones(outputs, 1)) for name, (outputs, inputs) in shapes.items()}
    pairs[names[-1]][0][0, 0] = value
    with pytest.raises(IntegrityError, match=rf"^file: layer {names[-1]} with values that are not finite"):
        Adapter(pairs).add_to(unet, 1.0, "file")
    assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())


@pytest.mark.parametrize(
    ("down", "up"),
    [(torch.tensor(1.0), torch.tensor(1.0)), (torch.zeros(0, 4), torch.zeros(16, 0)), (torch.ones(4), torch.ones(16))],
)
def test_what_is_no_pair_of_matrices_is_refused(down: Tensor, up: Tensor):
    with pytest.raises(ConfigError, match=r"^file: layer conv_in of \[.*\] times \["):
        Adapter({"conv_in": (down, up)}).add_to(base(), 1.0, "file")


def test_a_file_of_other_names_is_refused(tmp_path: Path):
    half = {"unet.to_q.lora_A.weight": torch.zeros(1, 4)}
    artifact.write(tmp_path, adapters.KIND, {}, half, {}, {})
    with pytest.raises(IntegrityError, match=r"1 names like unet\.to_q\.lora_B\.weight"):
        adapters.load(tmp_path)
    json.loads((tmp_path / artifact.PASSPORT).read_text())
