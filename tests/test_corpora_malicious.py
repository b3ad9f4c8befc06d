"""Tars made to harm: nothing is run, nothing is written, nothing outside is opened, nobody is called."""

import ast
import json
import subprocess
import sys

import pytest

from tests import malicious
from tests.import_closure import ROOT


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What reading did, by input. Hooks stay, so another process has it."""
    folder = tmp_path_factory.mktemp("malicious")
    command = [sys.executable, "-m", "tests.malicious", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not (folder / "pwned").exists() and not (ROOT / "pwned").exists()
    return {name: (made, rejected, events) for name, made, rejected, events in json.loads(done.stdout.splitlines()[-1])}


def test_there_are_enough_of_them():
    assert len(malicious.inputs()) >= 40


@pytest.mark.parametrize("name", malicious.inputs())
def test_nothing_is_run_written_or_called(seen, name):
    made, rejected, events = seen[name]
    assert events == []
    assert made + rejected > 0


HARMFUL = ("link", "type 3", "type 4", "type 6", "pickle as", "bomb of pixels", "bomb of gzip", "bomb of json")


@pytest.mark.parametrize("name", [name for name in malicious.inputs() if name.startswith(HARMFUL)])
def test_none_of_it_becomes_a_sample(seen, name):
    made, rejected, _ = seen[name]
    assert made == 0 and rejected > 0


def test_the_hook_would_see_it(tmp_path):
    """A pickle that is loaded under the hook leaves its mark in the events."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests import malicious
import pickle
events = set()
sys.addaudithook(lambda event, _: events.add(event) if malicious.is_forbidden(event) else None)
pickle.loads(pickle.dumps(malicious.Trap()))
open("x", "w")
print(sorted(events))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert {"os.system", "open", "pickle.find_class"} <= set(ast.literal_eval(done.stdout))
