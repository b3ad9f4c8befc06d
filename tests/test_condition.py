import pytest
import torch
from torch import nn

from ldm.denoiser.model.condition import Condition, Prepared


def condition(num: int, **others: torch.Tensor) -> Condition:
    return Condition(torch.randn(num, 3, 4), **others)


def test_a_batch_holds_the_parts_that_are_there_and_gives_them_back():
    whole = Condition(torch.randn(2, 3, 4), torch.ones(2, 3).bool(), torch.randn(2, 5), torch.randn(2, 4, 8, 8))
    assert [*whole.parts] == ["tokens", "mask", "pooled", "image"]
    for one in (whole, condition(2), condition(2, pooled=torch.randn(2, 5))):
        again = Condition.of_batch({"z0": torch.zeros(2), **one.parts, "noise": torch.zeros(2)})
        assert again.parts == one.parts, "the very same tensors"
        assert (again.mask is None, again.image is None) == (one.mask is None, one.image is None)


@pytest.mark.parametrize(
    "rows", [torch.tensor([True, False, True, False]), torch.tensor([2, 0]), torch.zeros(4).bool(), torch.arange(0)]
)
def test_rows_are_replaced_and_the_others_stay(rows):
    ours, null = condition(4, pooled=torch.randn(4, 5)), condition(1, pooled=torch.randn(1, 5))
    chosen = rows.nonzero().flatten().tolist() if rows.dtype == torch.bool else rows.tolist()
    found = ours.with_rows(rows, null)
    for name, part in found.parts.items():
        for i in range(4):
            expected = null.parts[name][0] if i in chosen else ours.parts[name][i]
            assert torch.equal(part[i], expected)
    kept = ours.tokens.clone()
    found.tokens.zero_()
    assert torch.equal(ours.tokens, kept), "the old one is left alone"


def test_numbered_rows_come_in_the_order_of_the_numbers():
    ours, others = condition(4), condition(2)
    found = ours.with_rows(torch.tensor([3, 1]), others)
    assert torch.equal(found.tokens[[3, 1]], others.tokens) and torch.equal(found.tokens[[0, 2]], ours.tokens[[0, 2]])


def test_rows_of_a_condition_with_other_parts_are_refused():
    with pytest.raises(AssertionError, match=r"parts \['tokens'\] and \['tokens', 'mask'\]"):
        condition(2).with_rows(torch.tensor([0]), condition(1, mask=torch.ones(1, 3).bool()))


def test_one_row_is_repeated_without_a_copy():
    one = condition(1, pooled=torch.randn(1, 5))
    many = one.expand(6)
    assert many.tokens.shape == (6, 3, 4) and many.pooled is not None and many.pooled.shape == (6, 5)
    assert many.tokens.data_ptr() == one.tokens.data_ptr() and torch.equal(many.tokens[5], one.tokens[0])


def test_all_parts_go_to_a_device():
    moved = condition(2, mask=torch.ones(2, 3).bool(), image=torch.zeros(2, 4, 8, 8)).to(torch.device("meta"))
    assert {part.device.type for part in moved.parts.values()} == {"meta"} and len(moved.parts) == 3


def prepared(num: int, layer: nn.Module, *, is_masked: bool) -> Prepared:
    keys, values = torch.randn(2, num, 1, 3, 4)
    return Prepared({layer: (keys, values)}, torch.rand(num, 3) > 0.5 if is_masked else None)


@pytest.mark.parametrize("is_masked", [False, True])
def test_rows_of_one_prepared_condition_follow_those_of_another(is_masked: bool):
    layer = nn.Identity()
    first, last = (prepared(num, layer, is_masked=is_masked) for num in (2, 3))
    found = first.followed_by(last)
    for i in range(2):
        expected = torch.cat([first.keys_values[layer][i], last.keys_values[layer][i]])
        assert torch.equal(found.keys_values[layer][i], expected)
    assert (found.mask is not None) == is_masked
    if found.mask is not None and first.mask is not None and last.mask is not None:
        assert torch.equal(found.mask, torch.cat([first.mask, last.mask]))
    with pytest.raises(AssertionError, match="one is masked, and the other is not"):
        first.followed_by(prepared(3, layer, is_masked=not is_masked))
