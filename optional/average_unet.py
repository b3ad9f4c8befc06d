"""Which length of average is best on validation? Writes the UNet of that length: `python -m optional.average_unet`.

It needs `train_unet.averages`. `data/unet_averaged` gets the weights and their passport, `lengths.csv` with the
validation of every length, and `metrics.json`. To draw with it, set `train_unet.averages.result` to the length.
"""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from ldm.compute import devices
from ldm.compute.precision import autocast
from ldm.core import artifact, config, stage
from ldm.core.config import Section
from ldm.core.params import MachineParams, PathsParams
from ldm.denoiser.model.networks import load
from ldm.denoiser.training.inputs import load_inputs
from ldm.denoiser.training.params import TrainUNetParams
from ldm.denoiser.training.validation import Validation
from ldm.tools.averaging import KeptAverages
from ldm.training import plots
from ldm.training.params import Length

PARAMS = Path("optional/params.yaml")


class AverageUNetParams(Section):
    """Section `average_unet` of optional/params.yaml."""

    lengths: list[Length] = Field(min_length=1, max_length=100)
    """Lengths to try, at the end of the training."""
    metric: Literal["loss", "mse", "mse_noisiest", "bits_per_dimension"]
    """What the best one has least of, on validation: the training's loss, the error of its prediction, that at the
    noisiest times, or the bound of the density."""


def main() -> str:
    params = config.read(AverageUNetParams, "average_unet", PARAMS)
    paths, machine = config.read(PathsParams, "paths"), config.read(MachineParams, "machine")
    training = config.read(TrainUNetParams, "train_unet")
    kept = KeptAverages.load(Path(paths.unet), Path(paths.unet_results))
    for length in params.lengths:  # before anything is computed
        kept.misfit(kept.last_step, length)

    accelerator = devices.start(machine, training.training)
    folders = [Path(p) for p in (paths.latents, paths.captions, paths.embeddings, paths.autoencoder, paths.clip)]
    inputs = load_inputs(*folders, takes_pooled=training.network.takes_pooled, device=accelerator.device)
    network, diffusion, _ = load(Path(paths.unet), accelerator.device)
    objective = inputs.train.text.objective(network, diffusion).eval()
    precision = devices.settle(training.training.precision, network, accelerator, kept.passport.facts.get("precision"))
    validation = Validation(inputs.val, training.model_copy(update={"diffusion": diffusion}), accelerator)

    def validated() -> dict[str, float]:
        with torch.no_grad(), autocast(accelerator.device, precision):
            return validation(objective)

    trained, rows = validated(), list[dict[str, float]]()
    for length in params.lengths:
        network.load_state_dict(kept.weights(kept.last_step, length))
        rows.append({"length": length, "misfit": kept.misfit(kept.last_step, length), **validated()})
        print(f"length {length}: {params.metric} {rows[-1][params.metric]:.5f}", flush=True)
    best = min(rows, key=lambda row: row[params.metric])
    output = Path(paths.unet_averaged)
    with stage.output(output) as folder:
        kept.write(folder, kept.last_step, best["length"])
        plots.write_table(folder / "lengths.csv", rows)
        artifact.write_json(folder / "metrics.json", {"trained": trained, "best": best})
    found = f"{params.metric} {best[params.metric]:.5f}, where {paths.unet} has {trained[params.metric]:.5f}"
    return f"average_unet: length {best['length']}, {found} -> {output}"


if __name__ == "__main__":
    stage.run(main)
