"""What the start of a stage holds and reads, on synthetic corpora of ten and of a hundred thousand samples."""

import tracemalloc
from pathlib import Path

import pytest

from benchmarks.startup import NUM_PER_SHARD, STARTS, write_corpus
from ldm.core import hashes
from ldm.core.shards import Shards
from tests.import_closure import ROOT
from tests.stage_scripts import forget_accelerator

COUNTS = (10_000, 100_000)
MOST_BYTES_PER_SAMPLE = 16


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    roots = [tmp_path_factory.mktemp("corpus") for _ in COUNTS]
    for root, count in zip(roots, COUNTS, strict=True):
        write_corpus(root, count)
    return roots


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    forget_accelerator()


def peak_bytes(start: str, root: Path) -> int:
    """Most bytes that a start holds. The least of two: Python's own table of interned strings may grow in one of them,
    by megabytes."""
    STARTS[start](root)  # what it imports stays
    return min(_traced_bytes(start, root) for _ in range(2))


def _traced_bytes(start: str, root: Path) -> int:
    tracemalloc.start()
    try:
        STARTS[start](root)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_synthetic_corpus_is_a_split_like_others(corpora: list[Path]) -> None:
    shards = Shards(corpora[0] / "captions/train")
    assert (len(shards), shards.num_shards) == (COUNTS[0], COUNTS[0] // NUM_PER_SHARD)
    assert shards[COUNTS[0] - 1] == shards[NUM_PER_SHARD - 1] and shards.keys[NUM_PER_SHARD] == shards.keys[0]
    shards.verify()


@pytest.mark.parametrize("start", STARTS)
def test_memory_hardly_grows_with_the_corpus(corpora: list[Path], start: str) -> None:
    """Besides 4 bytes per sample of a split that are mapped, not held."""
    few, many = (peak_bytes(start, root) for root in corpora)
    assert many - few <= (MOST_BYTES_PER_SAMPLE - 8) * (COUNTS[1] - COUNTS[0])


@pytest.mark.parametrize(
    ("start", "read"),
    [
        ("train_clip_pretrained", {"images/val", "captions/val"}),
        ("sample", {"captions/val"}),
        ("evaluate", {"captions/val", "images/val", "images/train"}),
    ],
)
def test_what_is_not_used_is_not_hashed(
    corpora: list[Path], start: str, read: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """evaluate takes a thousand training images as a reference; they lie in all tars."""
    hashed: list[Path] = []
    monkeypatch.setattr(hashes, "check_once", lambda path, sha256: hashed.append(path))
    STARTS[start](corpora[0])
    tars = {str(path.parent.relative_to(corpora[0])) for path in hashed if path.suffix == ".tar"}
    assert tars == read
