"""Files for other tools: whole or not at all, and never over others."""

import errno
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ldm.core.errors import ConfigError, MachineError
from ldm.tools.export import writing


def test_a_path_appears_at_the_end_and_not_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"
    with writing.new(path) as part:
        part.mkdir()
        (part / "a").write_text("b")
        assert not path.exists()
    assert (path / "a").read_text() == "b"
    with pytest.raises(KeyError), writing.new(tmp_path / "other") as part:
        part.write_text("half")
        raise KeyError
    assert [found.name for found in tmp_path.iterdir()] == ["new"]


def test_what_is_there_stays_even_if_it_comes_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(ConfigError, match="exists already"), writing.new(path) as part:
        part.write_text("ours")
        path.write_text("theirs")
    assert [found.read_text() for found in tmp_path.iterdir()] == ["theirs"]
    with pytest.raises(ConfigError, match="exists already"):
        writing.check_new(path)


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="No space left"), writing.new(tmp_path / "a"):
        raise OSError(28, "No space left on device")


def test_a_disk_that_takes_no_more_tensors_is_said_in_one_line(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(MachineError, match=f"os error {errno.EFBIG}"), writing.new(tmp_path / "a") as part:
            writing.save(part, {"b": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_readable_by_others_and_say_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "like").touch()
    writing.save(tmp_path / "a", {"b": torch.arange(6.0).reshape(2, 3).T}, {"ldm": "facts"})
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "like").stat().st_mode
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == {"format": "pt", "ldm": "facts"}
        assert torch.equal(file.get_tensor("b"), torch.arange(6.0).reshape(2, 3).T)
