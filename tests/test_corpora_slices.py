"""Slices: an added sample changes one of them."""

from ldm.corpora.slices import slices

NAMES = [f"folder/{number:05d}" for number in range(2000)]


def _slices(names: list[str], most: int = 500) -> list[list[str]]:
    return list(slices(names, str, mean=50, most=most))


def test_slices_are_the_samples_in_order_and_of_about_the_wanted_size() -> None:
    found = _slices(NAMES)
    assert [name for part in found for name in part] == NAMES
    assert 25 < len(found) < 60 and all(found)
    assert _slices([]) == []


def test_a_sample_more_or_less_changes_one_slice_or_two() -> None:
    before = {tuple(part) for part in _slices(NAMES)}
    for place in range(0, 2000, 37):
        more = _slices([*NAMES[:place], f"{NAMES[place]}-more", *NAMES[place:]])
        assert len({tuple(part) for part in more} - before) <= 2
        less = _slices([*NAMES[:place], *NAMES[place + 1 :]])
        assert len({tuple(part) for part in less} - before) <= 1


def test_a_sample_of_several_files_stays_together() -> None:
    files = [(name, suffix) for name in NAMES for suffix in ("jpg", "txt", "webp")]
    found = list(slices(files, lambda file: file[0], mean=2, most=3))
    assert [file for part in found for file in part] == files
    assert sum(len({name for name, _ in part}) for part in found) == len(NAMES)


def test_a_slice_without_an_end_of_its_own_ends_by_count() -> None:
    assert [len(part) for part in slices(NAMES[:25], str, mean=10**9, most=10)] == [10, 10, 5]
