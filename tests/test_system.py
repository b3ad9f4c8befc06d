"""Commands and stages on systems that refuse: a line with a fix and a code, never a traceback."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm.core import stage, system
from ldm.core.errors import ConfigError, IntegrityError, MachineError
from ldm.tools import cli
from tests.import_closure import ROOT

LDM = [sys.executable, "-m", "ldm.tools.cli"]
STAGE = [sys.executable, "-c", r"from ldm.core import stage; stage.run(lambda: 'a \u5706 is drawn')"]


def program(*command: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False, **options)  # type: ignore[call-overload]


def closed_pipe() -> int:
    """The end to write to of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [[*LDM, "check"], [sys.executable, "stages/check.py"]])
def test_a_closed_pipe_ends_without_a_word(command: list[str], unbuffered: str) -> None:
    done = program(*command, stdout=closed_pipe(), env=os.environ | {"PYTHONUNBUFFERED": unbuffered})
    assert (done.returncode, done.stderr) == (system.CLOSED_PIPE, "") == (141, "")


def test_a_pipe_of_our_own_that_breaks_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(lambda: os.write(closed_pipe(), b"x")) == 5
    assert capsys.readouterr().err.startswith("this machine: Broken pipe; expected a")


def test_a_closed_pipe_hides_no_error() -> None:
    done = program(*LDM, "check", "none.yaml", stdout=closed_pipe())
    assert done.returncode == 2 and done.stderr.startswith("none.yaml: no such file")
    both = subprocess.run([*LDM, "check", "none.yaml"], cwd=ROOT, stdout=closed_pipe(), stderr=closed_pipe())
    assert both.returncode == 2


def test_help_into_a_closed_pipe_says_nothing() -> None:
    assert (program(*LDM, "--help", stdout=closed_pipe())).stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without /dev/full")
@pytest.mark.parametrize("command", [[*LDM, "check"], STAGE])
def test_output_that_cannot_be_printed_is_one_line(command: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = program(*command, stdout=full, env=os.environ | {"PYTHONUNBUFFERED": ""})
    assert done.returncode == 5
    assert done.stderr.splitlines()[0] == ("<stdout>: No space left on device; expected a place for what is printed")
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_a_terminal_that_cannot_show_a_character_shows_its_number(environment: dict[str, str]) -> None:
    done = program(*STAGE, stdout=subprocess.PIPE, env=os.environ | environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a \\u5706 is drawn\n", "")


def code_of(work: Callable[[], object]) -> int:
    return system.run(lambda: (work(), None)[1])


def loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop" / "x"


@pytest.mark.parametrize(
    ("work", "code", "found"),
    [
        (lambda folder: (folder / "file" / "x").write_text(""), 5, "Not a directory"),
        (lambda folder: (folder / "file").mkdir(), 5, "File exists"),
        (lambda folder: folder.read_text(), 5, "Is a directory"),
        (lambda folder: folder.rmdir(), 5, "Directory not empty"),
        (lambda folder: (folder / ("x" * 999)).write_text(""), 5, "File name too long"),
        (lambda folder: loop(folder).write_text(""), 5, "Too many levels of symbolic links"),
        (lambda folder: (folder / "none").read_text(), 4, "No such file or directory"),
    ],
)
def test_what_the_system_refuses_is_a_line_with_a_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], work: Callable[[Path], object], code: int, found: str
) -> None:
    (tmp_path / "file").write_text("")
    assert code_of(lambda: work(tmp_path)) == code
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{tmp_path}") and f": {found}; expected a" in first
    assert second.startswith("fix: ") and "LDM_DEBUG" not in second


@pytest.mark.parametrize("number", sorted({number for numbers, *_ in system._KINDS for number in numbers}))
def test_every_kind_names_itself(number: int) -> None:
    error = system.explain(OSError(number, os.strerror(number), "data/x"))
    assert str(error).startswith(f"data/x: {os.strerror(number)}")
    assert isinstance(error, IntegrityError if number == errno.ENOENT else MachineError)
    assert ("bytes are free" in str(error)) == (number in (errno.ENOSPC, errno.EDQUOT))


def test_a_path_that_the_user_named_is_a_mistake_of_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, found in [(tmp_path / ("x" * 999), "File name too long"), (tmp_path, "no such file")]:
        assert cli.main(["check", str(path)]) == 2
        assert f"{path}: {found}; expected " in capsys.readouterr().err
    assert isinstance(system.explain(PermissionError(errno.EACCES, "no"), "x", ConfigError), ConfigError)


def test_open_files_that_run_out(capsys: pytest.CaptureFixture[str]) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        assert code_of(lambda: (ROOT / "params.yaml").read_text()) == 5
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "Too many open files; expected more open files\nfix: raise `ulimit -n`" in capsys.readouterr().err


def test_files_of_another_user_are_one_line_for_this_one(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "weights").write_text("")
    (tmp_path / "data").chmod(0)
    assert in_child(tmp_path / "said", lambda: stage.run((tmp_path / "data" / "weights").read_text)) == 5
    first, second = (tmp_path / "said").read_text().splitlines()
    assert first.endswith("weights: Permission denied; expected access for this user") and second.startswith("fix: ")


def in_child(said: Path, work: Callable[[], None]) -> int:
    """Exit code of work that an ordinary user does in a child process."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT, 0o644)
    child = os.fork()
    if child:
        os.close(file)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 99
    try:
        os.dup2(file, 2)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        if os.getuid() == 0:
            os.setuid(65534)
        work()
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(code)


def test_ctrl_c_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert system.run(interrupted) == 130
    assert capsys.readouterr().err == "Ctrl-C: stopped before the end; expected a whole run\nfix: run it again\n"


def test_debugging_keeps_every_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_DEBUG", "1")
    with pytest.raises(NotADirectoryError):
        code_of(lambda: (ROOT / "params.yaml" / "x").read_text())


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        code_of(lambda: 1 // 0)
    with pytest.raises(OSError, match="without a number"):
        code_of(lambda: (_ for _ in ()).throw(OSError("without a number")))
