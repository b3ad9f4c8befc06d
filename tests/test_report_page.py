"""The report of a run: one page that needs nothing else, and holds what the results hold."""

import argparse
import base64
import csv
import html
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ldm.core import artifact, config
from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.params import PathsParams
from ldm.corpora.params import PrepareParams
from ldm.sampling import samples
from ldm.tools.cli import main, report
from ldm.tools.cli.options import Command
from ldm.tools.report import facts, page
from ldm.tools.report.facts import Facts
from tests.import_closure import ROOT
from tests.report_html import check_needs_nothing_else
from tests.repository import Repository, params_of


@pytest.fixture(scope="module")
def found(repository: Repository) -> Facts:
    return facts.read(repository.root, None)


@pytest.fixture(scope="module")
def text(found: Facts) -> str:
    return page.write(found)


def test_the_page_needs_no_other_file_and_no_network(text: str) -> None:
    parsed = check_needs_nothing_else(text)
    assert 'name="viewport" content="width=device-width' in text and "prefers-color-scheme: dark" in text
    assert Counter(tag for tag, _ in parsed.elements)["h1"] == 1


def test_it_shows_the_samples_and_failures_of_the_run(repository: Repository, text: str) -> None:
    _, sets = samples.read(repository.root / "data/samples")
    sources = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    shown = {base64.b64decode(source) for source in sources}
    assert {sets["seen"].png(i) for i in range(4)} <= shown
    with (repository.root / "data/evaluation/failures.csv").open(newline="") as file:
        failures = list(csv.DictReader(file))
    assert {sets[row["set"]].png(int(row["number"])) for row in failures} <= shown and failures
    assert all(html.escape(row["prompt"]) in text for row in failures)


def test_it_tells_every_score_with_its_interval_and_every_training(repository: Repository, text: str) -> None:
    with (repository.root / "data/evaluation/scores.csv").open(newline="") as file:
        for row in (row for row in csv.DictReader(file) if row["images"] == "samples"):
            numbers = [f"{100 * float(row[name]):.1f}" for name in ("value", "low", "high")]
            cells = f"<td>{numbers[0]} %<small>{numbers[1]} to {numbers[2]}</small></td>"
            assert re.search(rf'<th scope="row">{row["score"]}</th>\s*{re.escape(cells)}', text), row
    for name in ("Autoencoder", "CLIP", "UNet"):
        assert re.search(rf"<h3>{name}: \d+ updates, [\d,]+ weights</h3>", text)
    assert text.count('<svg role="img" aria-label="loss"') == 3
    for name in ("autoencoder", "clip", "unet", "samples", "evaluation"):
        passport = json.loads((repository.root / f"data/{name}/passport.json").read_text())
        assert passport["content_sha256"] in text, name


def test_times_are_those_that_stages_noted_and_none_without(
    found: Facts, repository: Repository, tmp_path: Path
) -> None:
    assert found.times == [] and ">Times<" not in page.write(replace(found, trainings=[]))
    times = tmp_path / "times.txt"
    times.write_text(
        "prepare                   3.0\nprepare                   4.5\na broken line\nnot this\ntrain_unet   10.0\n"
    )
    again = facts.read(repository.root, times)
    with pytest.raises(ConfigError, match="--times: no file"):
        facts.read(repository.root, tmp_path / "missing")
    assert again.times == [("prepare", 4.5), ("train_unet", 10.0)]
    assert re.search(r"all</th><td>14.5<", page.write(replace(again, trainings=[])))


@pytest.mark.parametrize(
    ("pattern", "text", "message"),
    [
        (r"^model:\n(  .*\n)+", "", r"params\.yaml:1: model: section missing"),
        (r"^  card:\n(    .*\n)+", "  card:\n", r"params\.yaml:\d+: model\.card: found null"),
    ],
)
def test_params_without_a_card_are_config_errors(tmp_path: Path, pattern: str, text: str, message: str) -> None:
    shutil.copy(ROOT / "paths.yaml", tmp_path)
    whole = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(re.sub(pattern, text, whole, count=1, flags=re.MULTILINE))
    with pytest.raises(ConfigError, match=message):
        facts.read(tmp_path, None)


@pytest.mark.parametrize("text", ['{"memorised_share": 0.', "[1]", "\xff"])
def test_torn_numbers_are_integrity_errors(tmp_path: Path, text: str) -> None:
    assert facts._numbers(tmp_path) == {}
    (tmp_path / "metrics.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(IntegrityError, match=r"metrics\.json: .*\nfix: run `dvc checkout`"):
        facts._numbers(tmp_path)


@pytest.mark.parametrize("text", ["step,loss\n1,2\n2,x\n", "loss\n1\n", "step,loss\n1,2,3\n"])
@pytest.mark.parametrize("name", ["curves.csv", "validation.csv"])
def test_a_torn_table_of_a_training_is_an_integrity_error(tmp_path: Path, name: str, text: str) -> None:
    paths = config.read(PathsParams, "paths", ROOT / config.PATHS)
    folder = tmp_path / paths.clip_results
    folder.mkdir(parents=True)
    for table in ("curves.csv", "validation.csv"):
        (folder / table).write_text(text if table == name else "step,loss\n1,2\n2,1\n")
    with pytest.raises(IntegrityError, match=rf"{paths.clip_results}/{name}: .*\nfix: run `dvc checkout`"):
        list(facts._trainings(tmp_path, paths))


def test_times_may_hold_any_bytes(tmp_path: Path) -> None:
    (tmp_path / "times.txt").write_bytes(b"\xff\xfe\nprepare 3.5\n")
    assert facts._times(tmp_path / "times.txt") == [("prepare", 3.5)]


def test_the_corpus_is_that_of_the_captions_whatever_params_say_now(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(params_of("openmoji"))
    captions = tmp_path / "captions"
    assert facts._prepare(tmp_path, captions).corpus.kind == "openmoji"
    captions.mkdir()
    made_by = config.read(PrepareParams, "prepare", ROOT / "recipes/default.yaml").model_dump(mode="json")
    for settings in (made_by, {}):
        artifact.write_passport(captions, artifact.Kind("captions"), settings, {}, {}, "0" * 64)
        if settings:
            assert facts._prepare(tmp_path, captions).corpus.kind == "shapes"
    with pytest.raises(IntegrityError, match=r"captions/passport\.json: config\."):
        facts._prepare(tmp_path, captions)


def test_copies_are_those_of_the_samples_that_are_shown(tmp_path: Path) -> None:
    made = {}
    for name, unet in (("of_samples", "a"), ("same", "a"), ("older", "b")):
        (tmp_path / name).mkdir()
        made[name] = artifact.write_passport(tmp_path / name, artifact.Kind("model"), {}, {"unet": unet}, {}, "0" * 64)
    shown = [facts._is_of(tmp_path / name, made["of_samples"]) for name in ("same", "older", "refused")]
    assert shown == [True, False, True]


def test_where_the_images_come_from_is_said_as_params_say_it(found: Facts) -> None:
    assert "drawn at random by this project" in page.write(replace(found, trainings=[]))
    text = page.write(replace(found, trainings=[], data="Photographs by the [archive](https://a.org)."))
    assert "Photographs by the archive (https://a.org)." in text and "drawn at random by this project" not in text


def test_texts_of_users_are_no_markup(found: Facts) -> None:
    name, pairs = next(iter(found.samples.items()))
    changed = replace(pairs[0], prompt='</figcaption><script>alert("&")</script>')
    text = page.write(replace(found, title="<i>&", trainings=[], samples={name: [changed]}, failures=[]))
    assert (
        "<script" not in text and "&lt;script&gt;alert(&#34;&amp;&#34;)" in text and "<h1>&lt;i&gt;&amp;</h1>" in text
    )
    assert '<h2 id="trainings">' not in text and '<h2 id="failures">' not in text


def test_results_that_do_not_belong_together_are_refused(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for path in (repository.root / "data").iterdir():
        (tmp_path / "data" / path.name).symlink_to(path)
    for name in ("params.yaml", "paths.yaml"):
        shutil.copy(repository.root / name, tmp_path)
    (tmp_path / "data/evaluation").unlink()
    with pytest.raises(IntegrityError, match="evaluation"):
        facts.read(tmp_path, None)
    shutil.copytree(repository.root / "data/evaluation", tmp_path / "data/evaluation")
    (tmp_path / "data/unet_results").unlink()
    assert [training.name for training in facts.read(tmp_path, None).trainings] == ["Autoencoder", "CLIP"]
    (tmp_path / "data/unet").unlink()
    shutil.copytree(repository.root / "data/unet", tmp_path / "data/unet")
    passport = tmp_path / "data/unet/passport.json"
    values = json.loads(passport.read_text())
    artifact.write_json(passport, artifact.sealed({**values, "content_sha256": "0" * 64}))
    with pytest.raises(IntegrityError, match="unet 000"):
        facts.read(tmp_path, None)
    (tmp_path / "data/unet/passport.json").unlink()
    passport = tmp_path / "data/evaluation/passport.json"
    values = json.loads(passport.read_text())
    values["inputs"]["samples"] = "0" * 64
    artifact.write_json(passport, artifact.sealed(values))
    with pytest.raises(IntegrityError, match="samples 000"):
        facts.read(tmp_path, None)


def test_the_command_writes_the_page_and_keeps_a_file_that_is_there(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository.root)
    monkeypatch.setattr(page, "write", lambda found: f"<title>{found.title}</title>")
    path = tmp_path / "page.html"
    assert main(["report", str(path)]) == 0 and str(path) in capsys.readouterr().out
    first = path.read_bytes()
    path.write_text("mine")
    assert main(["report", str(path)]) == 2 and path.read_text() == "mine"
    assert "add --overwrite" in capsys.readouterr().err
    assert main(["report", str(path), "--overwrite"]) == 0 and path.read_bytes() == first
    monkeypatch.chdir(tmp_path)
    assert main(["report", "other.html"]) != 0 and not Path("other.html").exists()


def test_the_page_has_a_name_of_its_own_unless_another_is_given() -> None:
    parser = argparse.ArgumentParser()
    report.add(parser.add_subparsers(parser_class=Command))
    assert parser.parse_args(["report"]).file == Path("report.html")
    assert parser.parse_args(["report", "a/b.html"]).file == Path("a/b.html")


def test_dvc_draws_its_plots_without_a_complaint(repository: Repository, tmp_path: Path) -> None:
    names = ["scores", "confusion", "guidance_sweep", "unet_loss", "clip_retrieval", "caption_words"]
    told = repository.run("dvc", "plots", "show", *names, "--out", str(tmp_path / "plots"), check=False)
    assert "WARNING" not in told and "failed" not in told, told
    drawn = (tmp_path / "plots/index.html").read_text()
    assert all(f'id = "{name}"' in drawn for name in names), told
    assert '"joinaggregate"' in drawn and '"errorbar"' in drawn and '"yOffset"' in drawn, "our templates"
