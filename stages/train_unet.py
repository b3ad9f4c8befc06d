"""Stage `train_unet`: train the denoiser, which turns noise and a caption into a latent."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm.core import stage

# isort: split

import torch

from ldm import randomness
from ldm.compute import compilation, devices, fingerprint, process, state
from ldm.core import artifact, config, workspace
from ldm.core.params import MachineParams, PathsParams
from ldm.denoiser.model.networks import KIND, build
from ldm.denoiser.training.batches import LatentBatches
from ldm.denoiser.training.inputs import check_fits, load_inputs, prove_attention
from ldm.denoiser.training.lora import Lora
from ldm.denoiser.training.params import TrainUNetParams
from ldm.denoiser.training.start import start
from ldm.denoiser.training.validation import Pictures, Validation, summary
from ldm.training import averages
from ldm.training.loop import train


def main() -> str:
    params = config.read(TrainUNetParams, "train_unet")
    paths, machine = config.read(PathsParams, "paths"), config.read(MachineParams, "machine")
    training = params.training
    accelerator = devices.start(machine, training)
    folders = [Path(p) for p in (paths.latents, paths.captions, paths.embeddings, paths.autoencoder, paths.clip)]
    inputs = load_inputs(*folders, takes_pooled=params.network.takes_pooled, device=accelerator.device)
    check_fits(params, inputs)
    process.check_files(inputs.files, accelerator)
    torch.manual_seed(randomness.key(training.seed, "weights"))
    unet = build(params.network)
    prove_attention(unet, inputs, params, accelerator.device)
    inputs, sha256 = start(unet, params, inputs)
    lora = Lora(unet, params.lora, training.seed)
    objective = inputs.train.text.objective(unet, params.diffusion)
    compilation.prepare(machine, unet)
    validation = Validation(inputs.val, params, accelerator)
    pictures = Pictures(inputs.val, inputs.autoencoder, params, accelerator.device)
    made_by = fingerprint.of(__file__, params, {**sha256, **inputs.settings_sha256})
    run = state.Run(workspace.runs(paths.runs), "train_unet", made_by, machine)
    batches = LatentBatches(inputs.train, params)
    given = (objective, batches, batches.keys, training, accelerator, run)
    history = train(*given, validate=validation, picture=pictures.while_training, averages=params.averages, name="unet")
    lora.merge()
    metrics = summary(history.training, history.validation)
    with process.outputs(accelerator, Path(paths.unet), Path(paths.unet_results)) as (weights, results):
        if accelerator.is_main_process:
            settings = params.model_dump(mode="json", include={"network", "diffusion"})
            facts = inputs.facts | {"caption_dropout": params.diffusion.caption_dropout} | history.facts
            artifact.write(weights, KIND, settings, unet.state_dict(), sha256, facts)
            lora.write(weights, sha256)
            artifact.write_json(results / "metrics.json", metrics)
            averages.write(results / "averages", run, params.averages, training.num_steps, settings, sha256, facts)
            history.write(results)
            pictures(objective).save(results / "z0_hat.png")
    run.remove()
    return f"train_unet: validation loss {metrics['validation_loss']:.4f} -> {paths.unet}"


if __name__ == "__main__":
    stage.run(main)
