"""`ldm manifest`."""

import argparse
import re
from pathlib import Path

from ldm.core import config
from ldm.core.errors import ConfigError
from ldm.core.params import PathsParams
from ldm.tools.cli.options import Commands, examples


def add(commands: Commands) -> None:
    """Add the command to a parser."""
    about = (
        "List the files below a URL, with sizes and ETags, in a file of data/source. With its name as "
        "prepare.corpus.directory, `prepare` reads the files where they are. DVC hashes the list: run this again when "
        "the files have changed, and `dvc repro` does what is new."
    )
    epilog = examples(
        "ldm manifest s3://bucket/photographs",
        "ldm manifest https://example.org/tars/ --output data/source/tars.jsonl --overwrite    # after files changed",
    )
    summary = "List images that lie elsewhere (s3://, ...), to train on them"
    parser = commands.add_parser("manifest", help=summary, description=about, epilog=epilog)
    parser.add_argument(
        "url", metavar="URL", help="such as s3://bucket/folder, gs://..., https://... or file:///folder"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the list, NAME.jsonl; by default named after URL")
    parser.add_argument("--overwrite", action="store_true", help="replace an older list")
    parser.set_defaults(command=_manifest)


def _manifest(options: argparse.Namespace) -> None:
    from ldm.core.progress import count
    from ldm.corpora import remote

    path: Path = options.output or _path(options.url)
    if path.suffix != ".jsonl":
        raise ConfigError("--output", str(path), "a name that ends in .jsonl", "rename it")
    if path.exists() and not options.overwrite:
        raise ConfigError(str(path), "it exists", "a new file", "name another one, or add --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    num_files = remote.write(options.url, path)
    print(f"{count(num_files, 'file')} -> {path}; prepare.corpus.directory: {path.name}")


def _path(url: str) -> Path:
    source = config.read(PathsParams, "paths").source
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", url.rstrip("/").rpartition("/")[2]).strip("-.")
    return Path(source) / f"{name or 'manifest'}.jsonl"
