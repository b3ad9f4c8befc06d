import pytest
import torch

from ldm.denoiser.model.condition import Condition


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


def test_rows_of_one_condition_follow_those_of_another():
    ours, null = condition(4, pooled=torch.randn(4, 5)), condition(1, pooled=torch.randn(1, 5))
    found = ours.followed_by(null.expand(4))
    for name, part in found.parts.items():
        assert torch.equal(part, torch.cat([ours.parts[name], *[null.parts[name]] * 4]))
    with pytest.raises(AssertionError, match="pooled"):
        ours.followed_by(condition(4))
