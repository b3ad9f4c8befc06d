"""Files for other tools, which appear as a whole or not at all and replace nothing."""

import os
import secrets
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ldm.core import artifact
from ldm.core.errors import ConfigError, MachineError


@contextmanager
def new(path: Path) -> Generator[Path]:
    """A path beside `path` at which the block makes a file or a folder; it becomes `path` at the end of the block.

    ConfigError: something is there already. MachineError: the disk refuses it.
    """
    check_new(path)
    part = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        check_new(path)
        part.rename(path)
    except OSError as error:
        fix = "name another place, or make room"
        raise MachineError(
            str(path), f"not written ({error.strerror or error})", "a disk that takes it", fix
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)


def check_new(path: Path) -> None:
    """ConfigError: something is there already."""
    if os.path.lexists(path):
        raise ConfigError(str(path), "exists already", "a new name", "name another, or remove this one")


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write tensors as safetensors, with the mode of the umask. facts: text for the header of the file. OSError: the
    disk refuses it."""
    path.touch()
    mode = path.stat().st_mode  # save_file would leave a file that only its owner can read
    # transformers asks which library wrote the tensors.
    with artifact.writing(path):
        save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, path, {"format": "pt", **facts})
    path.chmod(mode)
