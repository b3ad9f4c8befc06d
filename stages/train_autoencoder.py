"""Stage `train_autoencoder`: train the autoencoder, which maps images to latents and back, and measure its quality."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm.core import stage

# isort: split

from ldm.autoencoder.model.networks import KIND
from ldm.autoencoder.training.discriminator import health
from ldm.autoencoder.training.objective import build
from ldm.autoencoder.training.params import TrainAutoencoderParams
from ldm.autoencoder.training.reconstruction import ImageBatches, Measurement, open_splits, prove_attention
from ldm.autoencoder.training.sources import obtain
from ldm.compute import devices, fingerprint, process, state
from ldm.core import artifact, config, workspace
from ldm.core.params import MachineParams, PathsParams
from ldm.training.history import NO_HISTORY
from ldm.training.loop import train


def main() -> str:
    params = config.read(TrainAutoencoderParams, "train_autoencoder")
    paths, machine = config.read(PathsParams, "paths"), config.read(MachineParams, "machine")
    training = params.training
    accelerator = devices.start(machine, training)
    splits = open_splits(Path(paths.images), training is not None, accelerator)
    source = obtain(params)
    autoencoder, history = source.network.to(accelerator.device), None
    objective = build(autoencoder, params, machine)
    inputs = {f"images_{name}": split.sha256 for name, split in splits.items()} | source.inputs
    inputs |= objective.inputs if objective else {}
    run = state.Run(workspace.runs(paths.runs), "train_autoencoder", fingerprint.of(__file__, params, inputs), machine)
    measurement = Measurement(splits["val"], params, accelerator)
    if objective is not None and training is not None:
        batches = ImageBatches(splits["train"], source.params, objective.params, training)
        objective.check_sizes(batches.latent_sizes)
        prove_attention(autoencoder, batches.latent_sizes, training, accelerator.device)
        history = train(
            objective,
            batches,
            batches.keys,
            training,
            accelerator,
            run,
            validate=measurement.curves,
            picture=measurement.picture,
            adversary=objective.params.adversarial,
            name="autoencoder",
        )
    metrics = measurement.metrics(autoencoder, objective and objective.perceptual)
    metrics |= health(history.training[-1]) if history else {}
    with process.outputs(accelerator, Path(paths.autoencoder), Path(paths.autoencoder_results)) as (weights, results):
        if accelerator.is_main_process:
            facts = source.facts | (history.facts if history else {})
            made_from = inputs if history else source.inputs
            artifact.write(weights, KIND, source.config, autoencoder.state_dict(), made_from, facts)
            artifact.write_json(results / "metrics.json", metrics)
            (history or NO_HISTORY).write(results)
            measurement.draw(autoencoder).save(results / "reconstructions.png")
    run.remove()
    return f"train_autoencoder: {metrics['psnr_db']:.2f} dB, SSIM {metrics['ssim']:.3f} -> {paths.autoencoder}"


if __name__ == "__main__":
    stage.run(main)
