"""A check of accelerate's own config file, without importing accelerate or torch."""

import ast
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from ldm.compute import launcher
from ldm.core.errors import MachineError

_KINDS = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_HPU", "MULTI_MLU", "MULTI_MUSA", "MULTI_NPU", "MULTI_XPU", "FSDP")
_OLD_KEYS = {"fp16", "dynamo_backend"}
"""Older keys that accelerate still reads."""


def config_path() -> Path:
    """Where `accelerate launch` looks for the file that `accelerate config` writes."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("HF_HOME", f"{cache}/huggingface")).expanduser() / "accelerate"
    names = [home / f"default_config.{suffix}" for suffix in ("yaml", "json")]
    return next((path for path in names if path.is_file()), names[0])


def check(options: Mapping[str, str | None] = {}) -> None:
    """Check the config file that `accelerate launch` would read, if any, before a stage does, perhaps hours later.

    options: those of `accelerate launch`, by name. `config_file` is that of another file than `accelerate config`
        wrote, and an option is not missed in the file.

    MachineError: accelerate would end in a traceback, or would be asked for what no params file offers.
    """
    named = options.get("config_file")
    path = config_path() if named is None else Path(named)
    if not path.is_file():
        if named is None:
            return
        fix = "name one, such as those of configs/accelerate"
        raise MachineError(named, "no such file", "a config file of accelerate", fix)
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))  # as accelerate does; JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        config = None
        lines = [f"{path}: {' '.join(str(error).split())}; expected YAML"]
    else:
        is_mapping = isinstance(config, dict)
        lines = list(_findings(config)) if is_mapping else ["no keys; expected distributed_type, num_processes, ..."]
        lines = [f"{path}: {line}" for line in lines if line.partition(": missing")[0] not in options]
    if lines:
        fix = "correct the file"
        if named is None:
            fix += ", answer `accelerate config` again, or remove the file: stages need none"
        raise MachineError.many([_error(line, fix) for line in lines])


def _error(line: str, fix: str) -> MachineError:
    place, _, expected = line.partition("; expected ")
    where, _, found = place.rpartition(": ")
    return MachineError(where, found, expected, fix)


def _findings(config: dict[Any, Any]) -> Iterator[str]:
    """What a launch would fail at, or what the params could not override."""
    unknown = [key for key in config if key not in _known_keys()]
    yield from (f"{key}: unknown key; expected one that the installed accelerate knows" for key in unknown)
    where, kind = config.get("compute_environment", "LOCAL_MACHINE"), config.get("distributed_type")
    kind = "NO" if kind is False else kind  # NO without quotes
    precision = "fp16" if config.get("fp16") else config.get("mixed_precision")
    if where != "LOCAL_MACHINE":
        yield f"compute_environment: found {where}; expected LOCAL_MACHINE"
    if kind not in _KINDS:
        yield f"distributed_type: found {kind}; expected one of {', '.join(_KINDS)}"
    if kind == "FSDP":
        given: Any = config.get("fsdp_config")
        settings: dict[str, Any] = given if isinstance(given, dict) else {}
        yield from (f"fsdp_config.{line}" for line in launcher.wrong_settings(settings))
    if precision is False:
        yield "mixed_precision: found no, which YAML reads as false; expected 'no', with quotes"
    elif precision not in (None, "no", "bf16"):
        yield f"mixed_precision: found {precision}; expected 'no' or bf16: the params decide, and offer fp32 and bf16"
    if config.get("parallelism_config"):
        yield "parallelism_config: found values; expected none: models are split by FSDP2 alone"
    yield from _wrong_counts(config, is_single=kind == "NO")


def _wrong_counts(config: dict[Any, Any], is_single: bool) -> Iterator[str]:
    num_processes, num_machines = config.get("num_processes"), config.get("num_machines", 1)
    gpus = config.get("gpu_ids")
    for key, value in (("num_processes", num_processes), ("num_machines", num_machines)):
        if value is not None and (type(value) is not int or value < 1):
            yield f"{key}: found {value}; expected a number of at least 1"
    if not is_single and num_processes is None:
        yield "num_processes: missing; expected their number on all machines, or distributed_type: 'NO'"
    if gpus is not None and not isinstance(gpus, str):
        yield f"gpu_ids: found {gpus}; expected a string such as '0' or '0,1', with quotes, or all"
    if num_machines not in (None, 1):
        wanted = ("main_process_ip", "main_process_port")
        yield from (f"{key}: missing; expected that of the first machine" for key in wanted if config.get(key) is None)
    elif not is_single and isinstance(gpus, str) and gpus != "all" and "," not in gpus:
        yield f"gpu_ids: found {gpus}; expected at least two, or all, or distributed_type: 'NO'"


def _known_keys() -> set[str]:
    """Keys of a config of the installed accelerate, read from its source: importing it would load torch."""
    spec = find_spec("accelerate")
    assert spec is not None and spec.origin is not None, "accelerate is a dependency"
    source = (Path(spec.origin).parent / "commands/config/config_args.py").read_text(encoding="utf-8")
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    fields = [node for name in ("BaseConfig", "ClusterConfig") for node in classes[name].body]
    annotated = [node.target for node in fields if isinstance(node, ast.AnnAssign)]
    return {target.id for target in annotated if isinstance(target, ast.Name)} | _OLD_KEYS
