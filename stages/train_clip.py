"""Stage `train_clip`: a CLIP for this corpus, trained on it, loaded by an open_clip name or copied; how well it matches
images and captions; and the text encoder, if it is another one."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm.core import stage

# isort: split

import torch

from ldm.compute import devices, fingerprint, process, state
from ldm.core import artifact, config, workspace
from ldm.core.params import MachineParams, PathsParams
from ldm.text.model import encoders
from ldm.text.training import sources
from ldm.text.training.pairs import ImagesAndCaptions, measure
from ldm.text.training.params import TrainClipParams, TrainedClipParams
from ldm.training.history import NO_HISTORY


def main() -> str:
    params = config.read(TrainClipParams, "train_clip")
    paths = config.read(PathsParams, "paths")
    machine = config.read(MachineParams, "machine")
    source = params.source
    accelerator = devices.start(machine, source.training if isinstance(source, TrainedClipParams) else None)
    folders = Path(paths.images), Path(paths.captions)
    pairs, val = (ImagesAndCaptions(*(folder / split for folder in folders)) for split in ("train", "val"))
    if isinstance(source, TrainedClipParams):
        process.check_files([*pairs.files, *val.files], accelerator)
    inputs = {"images": pairs.images.sha256, "captions": pairs.captions.sha256}
    run = state.Run(workspace.runs(paths.runs), "train_clip", fingerprint.of(__file__, params, inputs), machine)
    encoder = sources.obtain_encoder(params) if accelerator.is_main_process else None
    model, history = sources.obtain(params, pairs, val, accelerator, run)
    # A model from elsewhere does not depend on the corpus, so its passport names no inputs and no history.
    with process.outputs(accelerator, Path(paths.clip), Path(paths.clip_results)) as (folder, results):
        metrics: dict[str, float] = {}
        if accelerator.is_main_process:
            if model is not None:
                with torch.no_grad():
                    metrics = measure(model.eval(), val, params, accelerator.device)
                facts = {"source": source.model_dump(mode="json", exclude={"network", "training"})}
                facts |= {"source_sha256": files} if (files := sources.source_sha256(params)) else {}
                model.save(folder, inputs if history else {}, facts | (history.facts if history else {}))
            if encoder is not None:
                tower, files = encoder
                made_of = {"source": params.text_encoder.model_dump(mode="json"), "source_sha256": files}
                tower.save(folder / encoders.FOLDER, made_of)
            artifact.write_json(results / "metrics.json", metrics)
            (history or NO_HISTORY).write(results)
    run.remove()
    accuracies = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if name != "num_pairs")
    measured = f"{accuracies} among {metrics.get('num_pairs', 0)} pairs" if model is not None else "no CLIP"
    return f"train_clip: {measured} -> {paths.clip}"


if __name__ == "__main__":
    stage.run(main)
