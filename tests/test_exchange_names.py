"""Names of weights: every map against the loaders of the library that owns the layout, and back to the same bits."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils as theirs
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from ldm.exchange import names

NARROW: dict[str, Any] = {"norm_num_groups": 4, "cross_attention_dim": 8, "sample_size": 8, "layers_per_block": 2}


def unet(num_levels: int, linear: bool, **changes: Any) -> UNet2DConditionModel:
    """A UNet of Stable Diffusion's shape at reduced width: all levels but the lowest attend."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        **NARROW,
        "block_out_channels": tuple(8 * (i + 1) for i in range(num_levels)),
        "down_block_types": ("CrossAttnDownBlock2D",) * (num_levels - 1) + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (num_levels - 1),
        "attention_head_dim": 4,
        "use_linear_projection": linear,
    }
    return UNet2DConditionModel(**config | changes)


def vae(num_levels: int = 3, **changes: Any) -> AutoencoderKL:
    """An autoencoder of Stable Diffusion's shape at reduced width."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "block_out_channels": tuple(8 * (i + 1) for i in range(num_levels)),
        "down_block_types": ("DownEncoderBlock2D",) * num_levels,
        "up_block_types": ("UpDecoderBlock2D",) * num_levels,
        "norm_num_groups": 4,
        "layers_per_block": 2,
    }
    return AutoencoderKL(**config | changes)


def equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


UNETS: dict[str, dict[str, Any]] = {
    "one": dict(num_levels=4, linear=False),
    "two": dict(num_levels=4, linear=True),
    "one block a level": dict(num_levels=3, linear=True, layers_per_block=1),
    "three blocks a level": dict(num_levels=2, linear=False, layers_per_block=3),
    "attention below": dict(
        num_levels=3,
        linear=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    ),
    "one level": dict(
        num_levels=1, linear=True, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",)
    ),
}


@pytest.mark.parametrize("case", UNETS)
def test_a_unet_in_a_single_file_is_what_diffusers_reads_there(case: str) -> None:
    model = unet(**UNETS[case])
    single = names.unet_to_single(model.state_dict())
    assert names.is_single_unet(single) and not names.is_single_unet(model.state_dict())
    read = theirs.convert_ldm_unet_checkpoint(names.under(single, names.UNET), dict(model.config))
    equal(read, model.state_dict())
    equal(names.unet_from_single(single), model.state_dict())


def test_a_single_file_of_stable_diffusion_1_has_its_published_names() -> None:
    """Names that every loader of Stable Diffusion 1 looks for, such as the one by which diffusers knows it."""
    widths = {"block_out_channels": (8, 16, 32, 32)}
    single = names.unet_to_single(unet(4, linear=False, **widths).state_dict())
    assert (
        names.UNET + next(name for name in single if name == "output_blocks.11.0.skip_connection.weight")
        == (theirs.CHECKPOINT_KEY_NAMES["v1"])
    )
    assert single["input_blocks.3.0.op.weight"].shape == (8, 8, 3, 3)
    assert single["output_blocks.2.1.conv.weight"].shape == (32, 32, 3, 3)
    assert single["output_blocks.5.2.conv.weight"].shape == (32, 32, 3, 3)
    assert single["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape == (32, 8)


def test_projections_are_the_same_function_as_convolutions() -> None:
    linear, convolving = unet(2, linear=True), unet(2, linear=False)
    weights = names.with_projections(linear.state_dict(), linear=False)
    convolving.load_state_dict(weights)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor(7), torch.randn(1, 3, 8)
    with torch.no_grad():
        assert torch.allclose(linear(*inputs).sample, convolving(*inputs).sample, atol=1e-6)
    equal(names.with_projections(weights, linear=True), linear.state_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_levels": 1, "layers_per_block": 1},
        {"mid_block_add_attention": False},
        {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
    ],
    ids=["sd", "one level", "no attention", "sd3"],
)
def test_an_autoencoder_in_a_single_file_is_what_diffusers_reads_there(changes: dict[str, Any]) -> None:
    model = vae(**changes)
    single = names.vae_to_single(model.state_dict())
    assert names.is_single_vae(single) and not names.is_single_vae(model.state_dict())
    assert all(single[name].dim() == 4 for name in single if name.endswith("attn_1.q.weight"))
    equal(names.vae_from_single(single), model.state_dict())
    # Without attention, diffusers' own reader of single files fails.
    if "mid_block_add_attention" not in changes:
        equal(theirs.convert_ldm_vae_checkpoint(names.under(single, names.VAE), dict(model.config)), model.state_dict())


def test_former_names_of_attention_are_read() -> None:
    expected = vae().state_dict()
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    former = dict(expected)
    for name in [name for name in expected if ".attentions.0." in name]:
        for now, before in new.items():
            if f".{now}." in name:
                former[name.replace(f".{now}.", f".{before}.")] = former.pop(name)
    assert former.keys() != expected.keys()
    equal(names.modern_vae(former), expected)
    equal(names.modern_vae(expected), expected)


@pytest.mark.parametrize("has_prefix", [True, False])
def test_a_text_tower_of_open_clip_is_what_transformers_reads(has_prefix: bool) -> None:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    text = CLIPTextCfg(context_length=9, vocab_size=50, width=16, heads=2, layers=2)
    tower = CLIP(12, CLIPVisionCfg(image_size=8, patch_size=4, width=16, layers=1, head_width=8), text).eval()
    taken = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    weights = {name: value for name, value in tower.state_dict().items() if name.startswith(taken)}
    config = CLIPTextConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=9,
        projection_dim=12,
        hidden_act="gelu",
        bos_token_id=48,
        eos_token_id=49,
        pad_token_id=0,
    )
    encoder = CLIPTextModelWithProjection(config).eval()
    encoder.load_state_dict(names.text_to_transformers(weights))
    ids = torch.tensor([[48, 5, 7, 49, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        assert torch.allclose(encoder(ids).text_embeds, tower.encode_text(ids), atol=1e-5)
    there = encoder.state_dict()
    if not has_prefix:
        there = {name.removeprefix(names.TEXT_MODEL): value for name, value in there.items()}
    equal(names.text_to_open_clip(there), weights)


def test_names_without_a_place_in_the_other_layout_stay() -> None:
    stranger = {"control.weight": torch.ones(1)}
    for convert in (
        names.unet_to_single,
        names.unet_from_single,
        names.vae_to_single,
        names.vae_from_single,
        names.modern_vae,
        names.text_to_open_clip,
        names.text_to_transformers,
    ):
        assert convert(stranger).keys() == stranger.keys()
    more = {**unet(2, linear=True).state_dict(), **stranger}
    assert names.unet_to_single(more).keys() >= stranger.keys()
    equal(names.unet_from_single(names.unet_to_single(more)), more)


def test_parts_of_a_file_lie_below_prefixes() -> None:
    whole = names.under({"a": torch.ones(1)}, names.UNET) | names.under({"b": torch.zeros(1)}, names.VAE)
    assert list(whole) == ["model.diffusion_model.a", "first_stage_model.b"]
    equal(names.below(whole, names.VAE), {"b": torch.zeros(1)})
