"""A command line that explains itself: what comes next, examples that can be typed, Tab, colours."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm.core.errors import ConfigError
from ldm.tools import cli
from ldm.tools.cli import colours, completion, overview
from ldm.tools.cli.options import Commands
from tests.import_closure import ROOT

VERBS = {
    "generate",
    "inpaint",
    "doctor",
    "check",
    "recipe",
    "completion",
    "web",
    "watch",
    "report",
    "img2img",
    "export",
}


(COMMANDS,) = (action for action in cli.parser()._actions if isinstance(action, Commands))
ALL = COMMANDS.choices


def examples(text: str) -> list[list[str]]:
    """Calls of `ldm` in a help, without what a shell does with their output."""
    lines = [line.strip() for line in text.partition("examples:\n")[2].splitlines()]
    found = [shlex.split(re.split(r" [>|] ", line)[0], comments=True) for line in lines if line.startswith("ldm")]
    return [words[1:] for words in found]


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_examples_that_its_parser_takes(name: str) -> None:
    found = examples(ALL[name].format_help())
    assert any(words[:1] == [name] for words in found) or name == "completion"
    for words in found:
        assert cli.parser().parse_args(words).command is not None


def test_the_help_of_all_commands_says_what_each_does_in_one_short_sentence() -> None:
    texts = {action.dest: action.help or "" for action in COMMANDS._get_subactions()}
    assert texts.keys() == ALL.keys()
    for name, text in texts.items():
        assert re.fullmatch(r"[A-Z].{9,89}[^.]", text), f"{name}: {text}"
    assert examples(cli.parser().format_help())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def clone(folder: Path) -> None:
    for name in ("params.yaml", "paths.yaml"):
        shutil.copy(ROOT / name, folder)


def passports(folder: Path, *names: str) -> None:
    for name in names:
        (folder / "data" / name).mkdir(parents=True)
        (folder / "data" / name / "passport.json").write_text("{}")


def shown(folder: Path, verbs: set[str] = VERBS) -> list[str]:
    where, steps = overview.steps(folder, verbs)
    assert len(steps) == 5 and where.endswith(".")
    assert all(step.does for step in steps)
    known = {name for name in ALL}
    for step in steps:
        words = shlex.split(step.command)
        if words[0] == "ldm" and words[1] in known and "--help" not in words:
            cli.parser().parse_args(words[1:])
    return [step.command for step in steps]


def test_five_steps_without_a_command_follow_from_what_is_there(folder: Path, capsys) -> None:
    assert shown(folder)[0] == 'ldm generate "a red star" --model DIR --output pictures'
    clone(folder)
    assert shown(folder)[:2] == ["make demo", "ldm recipe"]
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    remote = team\n['remote \"team\"']\n    url = x\n")
    assert shown(folder)[:2] == ["make try", "make demo"]
    passports(folder, "unet", "autoencoder", "clip", "embeddings")
    prompt = "a small red circle above a large blue square"
    assert shown(folder)[:2] == [f'ldm generate "{prompt}" --output pictures', "ldm web"]
    (folder / "data/evaluation").mkdir()
    (folder / "data/evaluation/metrics.json").write_text("{}")
    assert shown(folder)[2:4] == ["ldm report", "dvc metrics show"]
    assert "ldm web" not in shown(folder, VERBS - {"web"})
    for name in ("step-000000040.bak", "step-000000040"):
        (folder / "runs/train_unet/0123" / name).mkdir(parents=True)
    assert shown(folder)[:2] == ["dvc repro", "ldm watch"]
    assert "after step 40" in overview.steps(folder, VERBS)[1][0].does
    made_by = folder / "runs/train_unet/0123/fingerprint.json"
    made_by.write_text('{"params.training.num_steps": 80}')
    assert shown(folder)[0] == "dvc repro"
    os.utime(made_by.parent / "step-000000040.bak")  # it is the newest
    made_by.write_text('{"params.training.num_steps": 40}')
    assert "dvc repro" not in shown(folder), "a finished training that is kept is not gone on with"
    made_by.unlink()
    assert cli.main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("This repository has a trained model.") and said.count("\n  ") == 10


def test_a_model_that_was_pulled_is_named(folder: Path) -> None:
    clone(folder)
    passports(folder, "model")
    assert shown(folder)[0].endswith(" --model data/model --output pictures")
    shutil.copytree(folder / "data/model", folder / "alone")
    assert shown(folder / "alone")[0] == 'ldm generate "a red star" --model . --output pictures'


def test_an_example_of_the_params_that_is_no_text_is_not_shown(folder: Path) -> None:
    clone(folder)
    passports(folder, "model")
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(re.sub(r"^    prompt: .*", "    prompt: 7", text, flags=re.MULTILINE))
    assert shown(folder)[0].startswith('ldm generate "a red star" ')


@pytest.mark.parametrize("prompt", ["a star", "it's a star", 'a "star"', "a $(star) `star` \\ !star"])
def test_prompts_are_quoted_as_a_shell_reads_them(prompt: str) -> None:
    written = overview._quoted(prompt)
    assert subprocess.run(["bash", "-c", f"printf %s {written}"], capture_output=True, text=True).stdout == prompt


def test_params_that_cannot_be_read_are_the_first_step(folder: Path) -> None:
    clone(folder)
    (folder / "params.yaml").write_text("a: [")
    assert [step.command for step in overview.steps(folder, VERBS)[1]] == ["ldm check"]
    (folder / "params.yaml").write_text("- a\n")
    assert overview.steps(folder, VERBS)[1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_and_the_two_variables_decide(monkeypatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    red = "\x1b[31mx\x1b[0m"
    assert colours.painted("x", "red", Terminal()) == red
    assert colours.painted("x", "red", io.StringIO()) == "x"
    monkeypatch.setenv("TERM", "dumb")
    assert colours.painted("x", "red", Terminal()) == "x"
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert colours.painted("x", "red", io.StringIO()) == red
    monkeypatch.setenv("NO_COLOR", "1")
    assert colours.painted("x", "red", Terminal()) == "x"
    monkeypatch.setenv("NO_COLOR", "")
    assert colours.painted("x", "red", io.StringIO()) == red, "an empty variable counts as none (no-color.org)"


def test_an_error_is_red_on_a_terminal_and_its_words_are_the_same(folder: Path, monkeypatch, capsys) -> None:
    error = ConfigError("here", "this", "that", "do so")
    plain = colours.of_error(error, io.StringIO())
    assert plain == str(error)
    assert re.sub(r"\x1b\[\d+m", "", colours.of_error(error, Terminal())) == plain
    assert cli.main(["check"]) == 2 and "\x1b" not in capsys.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.main(["check"]) == 2 and capsys.readouterr().err.startswith("\x1b[31mparams.yaml: ")


def completed(script: str, *words: str) -> set[str]:
    """What bash offers for the last word."""
    program = f'{script}\nCOMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}\n_shtab_ldm "" "" ""\n'
    program += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_bash_completes_commands_options_values_and_files(folder: Path, capsys) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completed(script, "ldm", "") == {*ALL, "-h", "--help", "--version"} - {"-h", "--help", "--version"}
    assert completed(script, "ldm", "gen") == {"generate"}
    assert {"--seed", "--output", "--guidance-scale"} <= completed(script, "ldm", "generate", "--")
    assert completed(script, "ldm", "generate", "--precision", "") == {"auto", "fp32", "bf16"}
    (folder / "pictures").mkdir()
    (folder / "prompts.txt").touch()
    assert completed(script, "ldm", "generate", "--output", "p") == {"pictures"}
    assert completed(script, "ldm", "generate", "--prompts-file", "p") == {"pictures", "prompts.txt"}


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_other_shells_get_a_script_of_theirs(shell: str, capsys) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    first = {"zsh": "#compdef ldm", "fish": "#", "tcsh": "#"}[shell]
    assert script.startswith(first) and "generate" in script and "fp32" in script
    if program := shutil.which(shell):
        assert subprocess.run([program, "-n", "/dev/stdin"], input=script, text=True).returncode == 0


def test_completion_looks_at_every_command() -> None:
    words = {action.dest for action in completion._actions(cli.parser())}
    assert {"png", "tar", "url", "suite", "version"} <= words


def blocks(text: str) -> Iterator[list[str]]:
    """Calls of `ldm` in the shell blocks of a page."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            for part in re.split(r" (?:&&|\|) ", line):
                if part.startswith("ldm "):
                    yield shlex.split(re.split(r" > ", part)[0], comments=True)[1:]


def test_the_calls_that_the_page_shows_are_accepted() -> None:
    found = [words for words in blocks((ROOT / "docs/command-line.md").read_text()) if "--help" not in words]
    assert len(found) > 10
    for words in found:
        cli.parser().parse_args(words)


def test_looking_around_loads_no_torch(folder: Path) -> None:
    program = """
import sys
from ldm.tools.cli import main
assert main([]) == 0 and main(["completion", "bash"]) == 0
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
