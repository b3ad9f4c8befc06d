import math
from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from pydantic import ValidationError

from ldm.autoencoder.model.params import KLAutoencoderParams
from ldm.compute import attention
from ldm.compute.precision import DTYPES, autocast
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.params import UNetParams
from ldm.denoiser.model.unet import UNet, sinusoids
from tests.agreement import assert_gradients_agree, assert_outputs_agree, randomise

TINY = {
    "kind": "unet",
    "latent_channels": 4,
    "latent_size": 8,
    "channels": [8, 16],
    "num_res_blocks": 1,
    "attention_levels": [False, True],
    "num_transformer_layers": 1,
    "head_width": 8,
    "linear_projection": True,
    "context_width": 16,
    "norm_groups": 4,
    "num_context_layers": 0,
    "max_context_tokens": 10,
    "position_embedding": False,
    "gradient_checkpointing": False,
}
# Stable Diffusion 1's own config at a tenth of its width (8 heads at every level, 1x1 convolutions, 77 tokens);
# Stable Diffusion 2's heads and projections, two layers deep, a first width whose half is no power of two as SD's 320,
# and a size that the levels do not divide; one level.
TOPOLOGIES = [
    (
        {
            "channels": [32, 64, 128, 128],
            "num_res_blocks": 2,
            "attention_levels": [True, True, True, False],
            "head_width": [4, 8, 16, 16],
            "linear_projection": False,
            "context_width": 24,
            "norm_groups": 32,
        },
        (2, 16, 16),
        77,
    ),
    ({"channels": [48, 16, 24], "attention_levels": [True, False, True], "num_transformer_layers": 2}, (1, 10, 14), 5),
    ({"channels": [16], "attention_levels": [True], "latent_channels": 3, "num_res_blocks": 3}, (3, 6, 4), 1),
]


def make(**changes) -> UNet:
    torch.manual_seed(0)
    return UNet(UNetParams.model_validate(TINY | changes))


def theirs(params: UNetParams) -> diffusers.UNet2DConditionModel:
    kinds = [("CrossAttn", "") if attends else ("", "") for attends in params.attention_levels]
    return diffusers.UNet2DConditionModel(
        in_channels=params.latent_channels,
        out_channels=params.latent_channels,
        block_out_channels=tuple(params.channels),
        layers_per_block=params.num_res_blocks,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind, _ in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind, _ in reversed(kinds)),
        transformer_layers_per_block=params.num_transformer_layers,
        # Their name for the number of heads.
        attention_head_dim=tuple(c // w for c, w in zip(params.channels, params.head_widths, strict=True)),
        use_linear_projection=params.linear_projection,
        cross_attention_dim=params.context_width,
        norm_num_groups=params.norm_groups,
    )


def inputs(params: UNetParams, shape=(2, 8, 8), num_tokens: int = 6):
    """Latents, times and a condition."""
    b, h, w = shape
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(b, params.latent_channels, h, w, generator=generator)
    time = 1000 * torch.rand(b, generator=generator)
    return z, time, Condition(torch.randn(b, num_tokens, params.context_width, generator=generator))


def values_and_gradients(model, call, z, time, condition):
    z, tokens = z.clone().requires_grad_(), condition.tokens.clone().requires_grad_()
    out = call(z, time, replace(condition, tokens=tokens))
    weight = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    (out * weight).mean().backward()
    return out.detach(), {"z": z.grad, "tokens": tokens.grad} | {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("backend", ["math", "sdpa"])
@pytest.mark.parametrize(("changes", "shape", "num_tokens"), TOPOLOGIES)
def test_equal_weights_give_the_values_and_gradients_of_diffusers(changes, shape, num_tokens, backend):
    attention.select(backend, torch.device("cpu"))
    params = UNetParams.model_validate(TINY | {"latent_size": 16} | changes)
    ours, reference = UNet(params), theirs(params)
    randomise(reference)
    ours.load_state_dict(reference.state_dict(), strict=True)
    data = inputs(params, shape, num_tokens)
    found = values_and_gradients(ours, ours, *data)
    expected = values_and_gradients(reference, lambda z, t, c: reference(z, t, c.tokens).sample, *data)
    assert found[0].abs().max() > 0.1
    assert_outputs_agree([found[0]], [expected[0]])
    assert_gradients_agree(found[1], expected[1])


def test_sinusoids_are_the_published_formula():
    waves = sinusoids(torch.tensor([0.0, 500.25]), 6)
    assert waves[0].tolist() == [1, 1, 1, 0, 0, 0]
    angles = [500.25 * 10000 ** (-i / 3) for i in range(3)]
    expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    assert waves[1].tolist() == pytest.approx(expected, abs=1e-4)
    assert sinusoids(torch.tensor([3.0]), 5).shape == (1, 5)


@pytest.mark.parametrize("num_waves", [320, 48, 24, 32, 7])
def test_sinusoids_are_those_of_diffusers_in_every_bit(num_waves: int):
    time = torch.cat([torch.arange(1000), 1000 * torch.rand(500, generator=torch.Generator().manual_seed(0))])
    expected = get_timestep_embedding(time, num_waves, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.equal(sinusoids(time, num_waves), expected)


def test_the_untrained_network_predicts_zero_and_training_moves_every_parameter():
    model = make(num_context_layers=1, position_embedding=True)
    z, time, condition = inputs(UNetParams.model_validate(TINY))
    assert not model(z, time, condition).any()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (model(z, time, condition) - z.flip(1)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_gradient_checkpointing_changes_nothing_but_memory():
    plain, checkpointed = make(), make(gradient_checkpointing=True)
    randomise(plain)
    checkpointed.load_state_dict(plain.state_dict())
    data = inputs(UNetParams.model_validate(TINY))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        plain(*data)
        num_plain, _ = sum(kept), kept.clear()
        checkpointed(*data)
    assert sum(kept) < num_plain / 2
    found = values_and_gradients(checkpointed, checkpointed, *data)
    expected = values_and_gradients(plain, plain, *data)
    assert_outputs_agree([found[0]], [expected[0]])
    assert_gradients_agree(found[1], expected[1])


def test_context_layers_start_as_the_identity_but_for_positions_and_then_look_both_ways():
    encoder = make(num_context_layers=2).context_encoder
    context = torch.randn(2, 6, 16)
    torch.testing.assert_close(encoder(context), context + encoder.positions[:6])
    randomise(encoder)
    changed = context.clone()
    changed[:, 3] += 1
    moved = (encoder(changed) - encoder(context)).abs().sum((0, 2))
    assert (moved > 0).all()
    swapped = context[:, [1, 0, 2, 3, 4, 5]]
    assert (encoder(swapped)[:, 2:] - encoder(context)[:, 2:]).abs().max() > 1e-3
    with pytest.raises(AssertionError, match="11 tokens is longer than max_context_tokens 10"):
        encoder(torch.zeros(1, 11, 16))


def test_the_position_embedding_is_added_behind_the_first_convolution_and_fits_one_size():
    with_positions, without = make(position_embedding=True), make()
    randomise(without)
    state = without.state_dict()
    with_positions.load_state_dict(state | {"position_embedding": torch.zeros(1, 8, 8, 8)})
    z, time, condition = inputs(UNetParams.model_validate(TINY))
    torch.testing.assert_close(with_positions(z, time, condition), without(z, time, condition))
    constant = torch.randn(8)
    with_positions.load_state_dict(state | {"position_embedding": constant[None, :, None, None].expand(1, 8, 8, 8)})
    without.load_state_dict(state | {"conv_in.bias": state["conv_in.bias"] + constant})
    torch.testing.assert_close(with_positions(z, time, condition), without(z, time, condition))
    with pytest.raises(AssertionError, match="latent_size alone"):
        with_positions(z[..., :4], time, condition)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_context_layers": 1, "head_width": [4, 16]},
        {"channels": [8, 16, 24], "attention_levels": [True, False, False]},
        {"channels": [8, 16], "attention_levels": [True, True]},
    ],
)
def test_the_attention_that_it_says_it_needs_is_what_it_asks_for(changes, monkeypatch):
    model = make(**changes)
    z, time, condition = inputs(UNetParams.model_validate(TINY | changes), num_tokens=TINY["max_context_tokens"])
    asked = []
    monkeypatch.setattr(attention, "_selected", lambda q, k, v, mask: asked.append((q, k)) or attention.sdpa(q, k, v))
    model(z, time, condition)
    shapes = model.attention_shapes(*z.shape[2:])
    assert {attention.Shape(q.shape[2], k.shape[2], q.shape[3]) for q, k in asked} == set(shapes)


CONDITIONED = [{}, {"num_context_layers": 2}, {"num_context_layers": 1, "gradient_checkpointing": True}]


@pytest.mark.parametrize("backend", ["math", "sdpa", "auto"])
@pytest.mark.parametrize("changes", CONDITIONED)
def test_a_mask_over_the_last_tokens_is_a_shorter_caption(changes, backend):
    attention.select(backend, torch.device("cpu"))
    model = make(**changes)
    randomise(model)
    z, time, condition = inputs(UNetParams.model_validate(TINY))
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    found, gradients = values_and_gradients(model, model, z, time, replace(condition, mask=mask))
    whole, short = model(z, time, condition), model(z, time, Condition(condition.tokens[:, :4]))
    assert_outputs_agree([found[:1], found[1:]], [whole[:1], short[1:]])
    assert not gradients["tokens"][~mask].any() and (gradients["tokens"][mask].abs().amax(1) > 0).all()
    assert (whole - short)[1].abs().max() > 1e-3, "the masked tokens mean something"
    attention.select("sdpa", torch.device("cpu"))


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("changes", CONDITIONED)
def test_a_prepared_condition_gives_equal_bits(changes, precision):
    model = make(**changes)
    randomise(model)
    z, time, condition = inputs(UNetParams.model_validate(TINY))
    masked = replace(condition, mask=torch.tensor([[True] * 6, [True] * 4 + [False] * 2]))
    for each in (condition, masked):
        with autocast(z.device, precision), torch.no_grad():
            assert torch.equal(model(z, time, model.prepare(each)), model(z, time, each))
    assert not torch.equal(model(z, time, model.prepare(masked)), model(z, time, model.prepare(condition)))


def test_pooled_features_are_not_read_and_an_image_is_refused():
    model = make()
    randomise(model)
    z, time, condition = inputs(UNetParams.model_validate(TINY))
    assert not UNetParams.model_validate(TINY).takes_pooled
    assert torch.equal(model(z, time, replace(condition, pooled=torch.randn(2, 16))), model(z, time, condition))
    with pytest.raises(AssertionError, match="no channels for an image"):
        model(z, time, replace(condition, image=torch.zeros_like(z)))


@pytest.mark.parametrize("changes", CONDITIONED)
def test_a_condition_is_compiled_with_the_network_in_one_graph(changes):
    model, graphs = make(**changes), []
    randomise(model)

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    data = inputs(UNetParams.model_validate(TINY))
    for _ in range(2):
        found, expected = (values_and_gradients(model, call, *data) for call in (compiled, model))
        assert torch.equal(found[0], expected[0])
        assert_gradients_agree(found[1], expected[1])
        model.zero_grad()
    assert len(graphs) == 1, "another condition of the same parts is not compiled again"


def test_samples_do_not_touch_each_other():
    model = make(num_context_layers=1, position_embedding=True)
    randomise(model)
    z, time, condition = inputs(UNetParams.model_validate(TINY))
    alone = model(z[:1], time[:1], Condition(condition.tokens[:1]))
    torch.testing.assert_close(model(z, time, condition)[:1], alone, rtol=1e-4, atol=1e-5)


def test_bf16_autocast_and_bf16_weights_run_close_to_float32():
    model = make(num_context_layers=1)
    randomise(model)
    z, time, condition = inputs(UNetParams.model_validate(TINY))
    expected = model(z, time, condition)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = model(z, time, condition)
    whole = model.to(torch.bfloat16)(z.bfloat16(), time, Condition(condition.tokens.bfloat16()))
    for out in (autocast, whole):
        assert (out.float() - expected).abs().max() <= 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": [8, 18]}, "channels 18 is not a multiple of norm_groups 4"),
        ({"attention_levels": [True]}, "attention_levels has 1 entries, channels 2"),
        ({"head_width": [8]}, "head_width has 1 entries, channels 2"),
        ({"head_width": 3}, "channels 16 is not a multiple of head_width 3"),
        ({"num_context_layers": 1, "context_width": 12}, "context_width 12 is not a multiple of head_width 8"),
        ({"latent_size": 7}, "latent_size 7 is not a multiple of .* = 2"),
    ],
)
def test_contradictory_sizes_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        UNetParams.model_validate(TINY | changes)


def test_a_level_without_attention_needs_no_fitting_head_width_unless_it_is_the_last():
    UNetParams.model_validate(TINY | {"channels": [12, 16]})
    with pytest.raises(ValidationError, match="channels 12 is not a multiple of head_width 8"):
        UNetParams.model_validate(TINY | {"channels": [16, 12], "attention_levels": [True, False]})


def test_the_autoencoder_factor_counts_patch_and_levels():
    fields = {"kind": "kl", "num_res_blocks": 1, "latent_channels": 4, "middle_attention": False, "norm_groups": 4}
    fields |= {"quant_conv": True}
    params = KLAutoencoderParams.model_validate(fields | {"patch_px": 4, "channels": [8, 8, 8]})
    assert params.factor == 16
    with pytest.raises(ValidationError, match="channels 10 is not a multiple of norm_groups 4"):
        KLAutoencoderParams.model_validate(fields | {"patch_px": 1, "channels": [10]})
