import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.core.errors import ConfigError, MachineError
from ldm.tools import png_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def written(folder: Path, contents: list[bytes], first=0, overwrite=False) -> list[str]:
    with png_folder.opened(folder, first, overwrite) as opened:
        return [opened.add(content).name for content in contents]


def test_numbers_start_where_they_are_asked_to_and_go_on_after_the_highest(tmp_path):
    folder = tmp_path / "new" / "pictures"
    assert written(folder, [b"a", b"b"]) == ["0000.png", "0001.png"]
    assert written(folder, [b"c"]) == ["0002.png"]
    assert written(folder, [b"d"], first=2) == ["0003.png"]
    assert written(folder, [b"e", b"f"], first=9) == ["0009.png", "0010.png"]
    assert (folder / "0000.png").read_bytes() == b"a" and (folder / "0001.png").read_bytes() == b"b"
    assert all(path.stat().st_mode & 0o777 == 0o666 & ~umask() for path in folder.iterdir())


def umask() -> int:
    os.umask(before := os.umask(0))
    return before


def test_files_of_others_stay(tmp_path):
    others = {"0007.PNG": b"mine", "photo.png": b"p", "1.png": b"1", "00x.png": b"x", "10000.png": b"y"}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "0000.png").symlink_to("nowhere")
    assert written(tmp_path, [b"a"]) == ["10001.png"]
    assert {name: (tmp_path / name).read_bytes() for name in others} == others


def test_overwriting_replaces_names_and_no_others(tmp_path):
    written(tmp_path, [b"a", b"b", b"c"])
    assert written(tmp_path, [b"d"], first=1, overwrite=True) == ["0001.png"]
    assert [(tmp_path / f"000{i}.png").read_bytes() for i in range(3)] == [b"a", b"d", b"c"]


def test_processes_at_the_same_folder_lose_nothing(tmp_path):
    program = f"""
from pathlib import Path
from ldm.tools import png_folder
import os
with png_folder.opened(Path({str(tmp_path / "p")!r}), 0, False) as folder:
    for i in range(100):
        folder.add(f"{{os.getpid()}} {{i}}".encode())
"""
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    texts = {path.read_text() for path in (tmp_path / "p").iterdir()}
    assert texts == {f"{process.pid} {i}" for process in processes for i in range(100)}
    assert names(tmp_path / "p") == [f"{i:04d}.png" for i in range(300)]


def test_file_systems_without_links_are_served(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    (tmp_path / "0000.png").write_bytes(b"mine")
    assert written(tmp_path, [b"a"]) == ["0001.png"]
    with pytest.raises(FileExistsError):
        png_folder.save(tmp_path / "0000.png", b"b", overwrite=False)
    assert (tmp_path / "0000.png").read_bytes() == b"mine" and len(names(tmp_path)) == 2


@pytest.mark.parametrize("place", ["file/x", "file/x/y", "/proc/x", "/proc/self/x", "n" * 300, "loop/x"])
def test_a_place_that_takes_no_files_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    before = names(tmp_path)
    with (
        pytest.raises(MachineError, match=r"no file can be made there .*\nfix: "),
        png_folder.opened(tmp_path / place, 0, False),
    ):
        pass
    assert names(tmp_path) == before


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="a file; expected a folder"), png_folder.opened(tmp_path / "file", 0, False):
        pass


def full(monkeypatch, after: int) -> None:
    """A disk on which only so many files find room."""
    link = Path.hardlink_to
    count = iter(range(10**6))

    def refuse(self, target):
        if next(count) >= after:
            raise OSError(errno.ENOSPC, "No space left on device")
        link(self, target)

    monkeypatch.setattr(Path, "hardlink_to", refuse)


def test_a_full_disk_says_how_far_it_came_and_leaves_whole_files(tmp_path, monkeypatch):
    full(monkeypatch, 2)
    with pytest.raises(MachineError) as error:
        written(tmp_path / "p", [b"a", b"b", b"c"], first=5)
    assert "0007.png: No space left on device, after 2 image(s)" in str(error.value)
    assert "--start-number 7" in str(error.value)
    assert {path.read_bytes() for path in (tmp_path / "p").iterdir()} == {b"a", b"b"}


def test_a_size_limit_cuts_no_file(tmp_path):
    program = f"""
import resource
from pathlib import Path
from ldm.tools import png_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with png_folder.opened(Path({str(tmp_path / "p")!r}), 0, False) as folder:
    folder.add(b"a" * 900)
    folder.add(b"b" * 1100)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "MachineError" in done.stderr and "after 1 image(s)" in done.stderr
    assert names(tmp_path / "p") == ["0000.png"]


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path, monkeypatch):
    full(monkeypatch, 0)
    (tmp_path / "old").mkdir()
    for folder in ("new/deep/p", "old", "old/p"):
        with pytest.raises(MachineError):
            written(tmp_path / folder, [b"a"])
    with pytest.raises(KeyboardInterrupt), png_folder.opened(tmp_path / "new" / "p", 0, False):
        raise KeyboardInterrupt
    assert names(tmp_path) == ["old"] and names(tmp_path / "old") == []


def test_one_new_file_is_checked_before_the_work(tmp_path):
    path = tmp_path / "a.png"
    png_folder.check_new(path, overwrite=False)
    path.write_bytes(b"mine")
    (tmp_path / "link.png").symlink_to("nowhere")
    for place, message in [
        (path, "exists already"),
        (tmp_path / "link.png", "exists already"),
        (tmp_path / "no" / "a.png", "no folder"),
        (path / "a.png", "no folder"),
        (tmp_path, "a folder; expected a file"),
    ]:
        with pytest.raises(ConfigError, match=f"{message}.*\nfix: "):
            png_folder.check_new(place, overwrite=False)
    with pytest.raises(MachineError, match="no file can be made there"):
        png_folder.check_new(Path("/proc/x.png"), overwrite=False)
    png_folder.check_new(path, overwrite=True)
    assert path.read_bytes() == b"mine" and names(tmp_path) == ["a.png", "link.png"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_device_and_a_pipe_are_not_replaced(tmp_path, overwrite):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for place in (Path("/dev/null"), tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(ConfigError, match="a device or a pipe; expected a file, or a new name"):
            png_folder.check_new(place, overwrite)
