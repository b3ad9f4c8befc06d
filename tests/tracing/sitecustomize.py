"""Python runs a module of this name before any script. Of a stage it writes what was opened and imported in its
repository, as `STAGE.json` in the folder that `LDM_TRACE` names; of all other programs nothing."""

import atexit
import json
import os
import sys
from pathlib import Path
from typing import Any


def _watch(told: Path) -> None:
    root, opened = f"{os.getcwd()}/", set[str]()

    def hook(event: str, arguments: Any) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            # A name below a folder's descriptor, as rmtree uses them, is no path from here.
            if os.path.isabs(os.fsdecode(arguments[0])) or os.path.lexists(path):
                opened.add(path)

    def tell() -> None:
        modules = [m.__file__ for name, m in sys.modules.items() if name.split(".")[0] == "ldm" and m.__file__]
        inside = [sorted({p.removeprefix(root) for p in paths if p.startswith(root)}) for paths in (opened, modules)]
        told.write_text(json.dumps(inside))

    sys.addaudithook(hook)
    atexit.register(tell)


if "LDM_TRACE" in os.environ and len(sys.orig_argv) == 2 and sys.orig_argv[1].startswith("stages/"):
    _watch(Path(os.environ["LDM_TRACE"], f"{Path(sys.orig_argv[1]).stem}.json"))
