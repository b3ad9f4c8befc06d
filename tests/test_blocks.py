import torch

from ldm.autoencoder.model.blocks import Attention, ResBlock, Upsample, start_at_zero


def test_a_residual_block_starts_as_the_identity_or_as_its_shortcut():
    x, time = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    assert torch.equal(ResBlock(8, 8, 4, 1e-5, time_width=6)(x, time), x)
    wider = ResBlock(8, 12, 4, 1e-5, time_width=None)
    torch.testing.assert_close(wider(x), wider.conv_shortcut(x))


def test_time_shifts_the_channels_between_the_convolutions():
    block = ResBlock(8, 8, 4, 1e-5, time_width=6)
    torch.nn.init.normal_(block.conv2.weight)
    x = torch.randn(1, 8, 4, 4)
    shift = block.time_emb_proj(torch.ones(1, 6))
    with_time = block(x, torch.ones(1, 6))
    block.conv1.bias.data += shift[0]
    torch.nn.init.zeros_(block.time_emb_proj.weight)
    torch.nn.init.zeros_(block.time_emb_proj.bias)
    torch.testing.assert_close(block(x, torch.ones(1, 6)), with_time)


def test_attention_ignores_the_order_of_its_context_and_keeps_that_of_its_tokens():
    layer = Attention(16, 12, num_heads=2, bias=False)
    x, context = torch.randn(2, 5, 16), torch.randn(2, 7, 12)
    out = layer(x, context)
    torch.testing.assert_close(layer(x, context.flip(1)), out)
    torch.testing.assert_close(layer(x.flip(1), context), out.flip(1))


def test_attention_to_one_token_is_that_tokens_value():
    layer = Attention(16, 12, num_heads=4, bias=True)
    context = torch.randn(2, 1, 12)
    expected = layer.to_out[0](layer.to_v(context)).expand(2, 5, 16)
    torch.testing.assert_close(layer(torch.randn(2, 5, 16), context), expected)


def test_upsampling_repeats_pixels_to_twice_the_size_or_the_size_asked_for():
    layer = Upsample(1)
    layer.conv.weight.data = torch.zeros(1, 1, 3, 3)
    layer.conv.weight.data[0, 0, 1, 1] = 1
    layer.conv.bias.data = torch.zeros(1)
    x = torch.tensor([[[[1.0, 2.0]]]])
    assert layer(x).tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2]]]]
    assert layer(x, torch.Size([1, 3])).shape == (1, 1, 1, 3)


def test_start_at_zero_zeroes_weight_and_bias():
    layer = start_at_zero(torch.nn.Linear(3, 2))
    assert not layer.weight.any() and not layer.bias.any()
