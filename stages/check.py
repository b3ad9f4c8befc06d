"""Stage `check`: validate the whole params file first, so that a mistake in any section is found within a second; also
validate accelerate's config, with which all later stages are launched."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm.core import stage
from ldm.tools.check import check, launch_config


def main() -> str:
    params = check.params_file()
    launch_config.check()
    corpus = f"{params.prepare.corpus.kind}, {params.prepare.image_size_px} px"
    return f"check: params.yaml is complete and consistent ({corpus})"


if __name__ == "__main__":
    stage.run(main)
