"""`ldm verify`, `ldm runs` and `ldm resume`: results, and what is saved of unfinished ones."""

import argparse

from ldm.core.errors import IntegrityError
from ldm.tools.cli.options import Commands, examples


def add(commands: Commands) -> None:
    """Add the commands to a parser."""
    about = (
        "Read every byte of the results that dvc.lock records, in the workspace and in DVC's cache, say where dvc.lock \
differs from HEAD, and follow the passports from data to metrics; or read every byte in a remote."
    )
    epilog = examples("ldm verify", "ldm verify --remote", "ldm verify --remote team")
    summary = "Check that every byte of the results is as the commit says"
    verify = commands.add_parser("verify", help=summary, description=about, epilog=epilog)
    verify.add_argument("--remote", nargs="?", const="", metavar="NAME", help="in a DVC remote (the default one)")
    verify.set_defaults(command=_verify)
    about = "List what is saved of unfinished runs: step, size, age, and what differs from params.yaml and the code."
    epilog = examples("ldm runs", "ldm runs --prune")
    summary = "List saved states of trainings"
    runs = commands.add_parser("runs", help=summary, description=about, epilog=epilog)
    runs.add_argument("--prune", action="store_true", help="first remove what section machine does not keep")
    runs.set_defaults(command=_runs)
    about = "Let the next run of a training go on from a state that was made by other params, inputs or code."
    epilog = examples("ldm runs", "ldm resume train_unet/0123456789abcdef")
    summary = "Let a training go on from a state of another one"
    resume = commands.add_parser("resume", help=summary, description=about, epilog=epilog)
    resume.add_argument("state", metavar="STATE", help="as `ldm runs` prints it, or the start of it, or a path")
    resume.set_defaults(command=_resume)


def _verify(options: argparse.Namespace) -> None:
    from ldm.core.progress import count
    from ldm.tools import verify

    report = verify.local() if options.remote is None else verify.remote(options.remote or None)
    if not report.problems:
        files = count(report.num_objects, "file")
        print(f"OK: {files}, {report.num_bytes / 1e6:.1f} MB, every byte as {report.record}")
    for note in report.notes:
        print(note)
    if report.problems:
        raise IntegrityError.many(report.problems)


def _runs(options: argparse.Namespace) -> None:
    from ldm.core import config
    from ldm.core.params import MachineParams
    from ldm.tools import runs

    root = runs.root()
    removed = runs.prune(root, config.read(MachineParams, "machine")) if options.prune else []
    for line in [*(f"removed {told}" for told in removed), *(list(runs.lines(root)) or ["nothing is saved"])]:
        print(line)


def _resume(options: argparse.Namespace) -> None:
    from ldm.tools import runs

    print(runs.ask(runs.root(), options.state))
