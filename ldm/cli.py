"""The command `ldm`: images from the trained artefacts and their replay, checks of a params file and of results."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ldm.config import PARAMS
from ldm.errors import ConfigError, IntegrityError, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A user's mistake costs its lines on stderr, no traceback unless
    LDM_DEBUG=1."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except UserError as error:
        if os.environ.get("LDM_DEBUG") == "1":
            raise
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    about = "Latent-diffusion text-to-image models; run from the repository root."
    parser = argparse.ArgumentParser(prog="ldm", description=about)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    about = "Write one PNG per prompt, from the trained artefacts. What is not given is as in params.yaml: sample."
    generate = commands.add_parser("generate", help="write images of prompts", description=about)
    generate.add_argument("prompts", nargs="+", metavar="PROMPT")
    generate.add_argument("--output", type=Path, required=True, metavar="DIR", help="where 0000.png, 0001.png, ... go")
    generate.add_argument("--num-images", type=_positive, default=1, metavar="N", help="images per prompt (1)")
    generate.add_argument("--guidance-scale", type=float, metavar="G", help="1 = none; more follows the prompt closer")
    generate.add_argument("--num-steps", type=int, metavar="N", help="sampler steps")
    generate.add_argument("--sampler", metavar="NAME", help="ddim or dpm_solver_pp_2m")
    generate.add_argument("--seed", type=int, metavar="S", help="seed of the noise")
    generate.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    generate.set_defaults(command=_generate)
    about = "Make the image of a PNG once more from what the PNG says, and compare every pixel."
    replay = commands.add_parser("replay", help="make an image again, bit for bit", description=about)
    replay.add_argument("image", type=Path, metavar="PNG", help="written by `ldm generate` or stage `sample`")
    replay.add_argument("--output", type=Path, metavar="PNG", help="where the new image goes, if it is wanted")
    replay.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    replay.add_argument("--threads", type=_positive, metavar="N", help="CPU threads of the process that made it")
    replay.set_defaults(command=_replay)
    about = "Validate a params file, section by section and as a whole."
    check = commands.add_parser("check", help="validate a params file", description=about)
    check.add_argument("path", nargs="?", type=Path, default=PARAMS, metavar="PATH", help="params.yaml by default")
    check.set_defaults(command=_check)
    about = (
        "Read every byte that the current commit's results hold, in the workspace and in DVC's cache, and follow the \
passports from data to metrics; or every byte in a remote."
    )
    verify = commands.add_parser("verify", help="is every byte what the commit says?", description=about)
    verify.add_argument("--remote", nargs="?", const="", metavar="NAME", help="in a DVC remote (the default one)")
    verify.set_defaults(command=_verify)
    about = "List what is saved of unfinished runs: step, size, age, and what differs from params.yaml and the code."
    runs = commands.add_parser("runs", help="saved states, and what differs", description=about)
    runs.add_argument("--prune", action="store_true", help="first remove what section machine does not keep")
    runs.set_defaults(command=_runs)
    about = "Let the next run of a training go on from a state that was made by other params, inputs or code."
    resume = commands.add_parser("resume", help="go on from a state, on purpose", description=about)
    resume.add_argument("state", metavar="STATE", help="as `ldm runs` prints it, or the start of it, or a path")
    resume.set_defaults(command=_resume)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _generate(options: argparse.Namespace) -> None:
    from ldm import pipeline

    prompts = [prompt for prompt in options.prompts for _ in range(options.num_images)]
    named = ("guidance_scale", "num_steps", "sampler", "seed")
    settings = {name: value for name in named if (value := getattr(options, name)) is not None}
    _set_threads(None)
    paths = pipeline.Pipeline.load(device=options.device).write(prompts, options.output, **settings)
    for path, prompt in zip(paths, prompts, strict=True):
        print(f"{path}  {prompt}")


def _set_threads(num_threads: int | None) -> None:
    """As the stages do, unless a number is given: the last bits of an image depend on it."""
    import torch

    from ldm import config, stage
    from ldm.params.machine import MachineParams

    machine = config.read(MachineParams, "machine")
    torch.set_num_threads(num_threads or machine.threads or stage.default_threads())


def _replay(options: argparse.Namespace) -> None:
    from ldm import pipeline
    from ldm.images import to_tensor
    from ldm.provenance import Origin

    if not options.image.is_file():
        raise ConfigError(str(options.image), "no such file", "a PNG", "name one that `ldm generate` wrote")
    png = options.image.read_bytes()
    origin = Origin.read(png, str(options.image))
    _set_threads(options.threads)
    again = pipeline.Pipeline.load(device=options.device).replay(origin)
    if options.output is not None:
        options.output.write_bytes(origin.png(again.permute(1, 2, 0).contiguous().numpy()))
    found = to_tensor([png])[0].int()
    if found.shape != again.shape:
        sizes = [" x ".join(map(str, picture.shape[1:])) for picture in (found, again)]
        raise IntegrityError(str(options.image), f"{sizes[0]} pixels", sizes[1], "name the PNG as it was written")
    difference = (found - again.int()).abs()
    if difference.any():
        count, most = int((difference > 0).sum()), int(difference.max())
        found = f"{count} of {difference.numel()} values differ, by {most} at most"
        fix = (
            "name the kind of device and the number of threads that made it, if they were others (--device, --threads)"
        )
        raise IntegrityError(str(options.image), found, "equal pixels", fix)
    print(f"{options.image}: equal in all {difference.numel()} values ({origin.prompt})")


def _check(options: argparse.Namespace) -> None:
    from ldm import check

    params = check.params_file(options.path)
    corpus = f"{params.prepare.corpus.kind}, {params.prepare.image_size_px} px"
    print(f"{options.path} is complete and consistent ({corpus})")


def _verify(options: argparse.Namespace) -> None:
    from ldm import verify

    report = verify.local() if options.remote is None else verify.remote(options.remote or None)
    for note in report.notes:
        print(note)
    if report.problems:
        raise IntegrityError.many(report.problems)
    print(f"OK: {report.num_objects} files, {report.num_bytes / 1e6:.1f} MB, every byte as the commit says")


def _runs(options: argparse.Namespace) -> None:
    from ldm import config, runs
    from ldm.params.machine import MachineParams

    root = runs.root()
    removed = runs.prune(root, config.read(MachineParams, "machine")) if options.prune else []
    for line in [*(f"removed {told}" for told in removed), *(list(runs.lines(root)) or ["nothing is saved"])]:
        print(line)


def _resume(options: argparse.Namespace) -> None:
    from ldm import runs

    print(runs.ask(runs.root(), options.state))


if __name__ == "__main__":
    sys.exit(main())
