"""`ldm doctor`."""

import argparse
import sys
from pathlib import Path

from ldm.tools.cli.colours import painted
from ldm.tools.cli.options import Commands, examples


def add(commands: Commands) -> None:
    """Add the command to a parser."""
    about = """Say what this machine offers (packages, cores, memory, disks, devices, attention backends that really
run, bf16 beside fp32), and what each finding means for section `machine` of params.yaml, whose keys run no stage again.
Nothing is changed, and the exit code is 0 whatever is found."""
    epilog = examples("ldm doctor", "ldm doctor > machine.txt    # for a bug report")
    summary = "Say what this machine offers, and what to set for it"
    parser = commands.add_parser("doctor", help=summary, description=about, epilog=epilog)
    parser.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> None:
    from ldm.tools.doctor import report
    from ldm.tools.doctor.finding import Finding

    found: list[Finding] = []
    for finding in report.findings(Path()):
        found.append(finding)
        mark = painted("note", "yellow", sys.stdout) if finding.advice else painted("ok  ", "green", sys.stdout)
        print(f"{mark}  {report.line(finding)}")
        if finding.advice:
            print(f"      -> {finding.advice}")
        sys.stdout.flush()
    print("\nWhat suits this machine, in params.yaml:\n")
    print("\n".join(report.section(found, report.machine_of(Path()))))
