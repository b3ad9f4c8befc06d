"""`make try`: a picture without a training, from a model that a DVC remote has."""

import argparse
import configparser
import subprocess
import sys
from pathlib import Path

from ldm.core import config, system
from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.params import PathsParams
from ldm.tools.model.parts import PASSPORT

OUTPUT = Path("outputs/try")
"""Git ignores it."""


def main(arguments: list[str] | None = None) -> int:
    """Fetch the model if it is missing, and draw a prompt with it; returns an exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ldm.tools.trial", description="Draw with a model that was fetched."
    )
    parser.add_argument("prompt", nargs="?", help="what to draw; by default the example of params.yaml")
    asked: str | None = parser.parse_args(arguments).prompt
    return system.run(lambda: _try(asked))


def _try(asked: str | None) -> None:
    from ldm.tools import cli

    model = fetched(Path())
    prompt = asked or example(Path()) or ""
    # After "--" a prompt may begin with "-".
    code = cli.main(["generate", "--model", str(model), "--output", str(OUTPUT), "--", prompt])
    if code != 0:
        sys.exit(code)
    print(f'Another: make try PROMPT="{prompt}". All that it can do: ldm')


def fetched(root: Path) -> Path:
    """The model folder of a repository, fetched from its default DVC remote if it is not there. IntegrityError: there
    is no remote, or it has no such model."""
    model = Path(config.read(PathsParams, "paths", root / config.PATHS).model)
    if (root / model / PASSPORT).is_file():
        return model
    name, train = remote(root), f"`make demo` trains one ({_time(root)})"
    if name is None:
        found, expected = "no model, and no DVC remote to fetch one from", "a model"
        raise IntegrityError(str(model), found, expected, f"{train}; or name a remote: dvc remote add -d NAME URL")
    print(f"{model}: from the DVC remote {name}", flush=True)
    done = subprocess.run([sys.executable, "-m", "dvc", "pull", str(model)], cwd=root, check=False)
    if done.returncode != 0 or not (root / model / PASSPORT).is_file():
        fix = f"see above what DVC says of it, and `dvc remote list`; or {train}"
        raise IntegrityError(str(model), f"`dvc pull` did not bring it from the remote {name}", "a model", fix)
    return model


def remote(root: Path) -> str | None:
    """Name of the default DVC remote of a repository, or None."""
    parser = configparser.ConfigParser()
    try:
        parser.read([root / ".dvc/config", root / ".dvc/config.local"], encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return None  # `dvc` says what is wrong
    return parser.get("core", "remote", fallback=None)


def example(root: Path) -> str | None:
    """The prompt that the params name for examples; None: they name none, or cannot be read."""
    try:
        values = config.Document(root / config.PARAMS).data
        prompt: object = values["model"]["card"]["prompt"]
    except (ConfigError, LookupError, TypeError):
        return None
    return prompt if isinstance(prompt, str) else None


def _time(root: Path) -> str:
    """How long the pipeline takes, as the header of params.yaml says."""
    lines = (root / config.PARAMS).read_text(encoding="utf-8", errors="replace").splitlines()
    found = [line.removeprefix("# time:").strip() for line in lines if line.startswith("# time:")]
    return found[0] if found else "params.yaml does not say how long it takes"


if __name__ == "__main__":
    sys.exit(main())
