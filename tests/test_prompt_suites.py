"""Benchmarks' prompts in, and folders as their programs read them out."""

import json
from pathlib import Path

import numpy as np
import pytest

from ldm.compute import precision
from ldm.core.errors import ConfigError
from ldm.core.images import decode_png
from ldm.sampling.origin import Origin
from ldm.tools import cli, prompt_suites
from ldm.tools.cli import benchmark

LINES = [
    {"tag": "colors", "include": [{"class": "star", "count": 1}], "prompt": f"a {x} star"} for x in ("red", "blue")
]


def metadata(folder: Path) -> Path:
    path = folder / "evaluation_metadata.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    return path


def pngs(count: int) -> list[bytes]:
    origins = Origin.of_batch([""] * count, range(count), {}, {})
    return [origin.png(np.full((2, 3, 3), i, np.uint8)) for i, origin in enumerate(origins)]


def test_geneval_gets_the_folders_that_its_readme_describes(tmp_path: Path) -> None:
    suite = prompt_suites.read("geneval", metadata(tmp_path), 4)
    assert suite.texts(0) == ["a red star"] * 4 + ["a blue star"] * 4
    out = tmp_path / "out"
    assert suite.num_done(out) == 0
    drawn = pngs(8)
    assert list(suite.write(out, drawn, 0)) == [out / f"0000{i}/samples/0003.png" for i in range(2)]
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == sorted(
        f"0000{i}/{name}" for i in range(2) for name in ("metadata.jsonl", *(f"samples/000{j}.png" for j in range(4)))
    )
    assert json.loads((out / "00001/metadata.jsonl").read_text()) == LINES[1]
    assert (out / "00001/samples/0002.png").read_bytes() == drawn[6]
    assert suite.num_done(out) == 2


def test_what_is_missing_is_drawn_from_its_own_noise(tmp_path: Path) -> None:
    suite = prompt_suites.read("geneval", metadata(tmp_path), 2)
    written = suite.write(tmp_path / "out", pngs(4), 0)
    next(iter(written))
    assert suite.num_done(tmp_path / "out") == 1
    assert suite.texts(1) == ["a blue star"] * 2


@pytest.mark.parametrize("num_written", range(5))
def test_a_folder_goes_on_only_if_nothing_is_replaced_unseen(tmp_path: Path, num_written: int) -> None:
    suite, out = prompt_suites.read("geneval", metadata(tmp_path), 2), tmp_path / "out"
    list(suite.write(out, pngs(4), 0))
    files = [out / f"0000{i}/samples/000{j}.png" for i in range(2) for j in range(2)]
    for file in files[num_written:]:
        file.unlink()
    shown = {0: [], 1: [0], 2: [1], 3: [1, 2], 4: [3]}[num_written]
    assert suite.drawn(out) == {number: files[number] for number in shown}
    files[3].write_text("mine")
    if num_written < 2:
        with pytest.raises(ConfigError, match=r"0001\.png: an image of a later prompt; expected none after 00000/"):
            suite.drawn(out)


def test_dpg_gets_a_square_named_like_its_prompt(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("a blue\nstar\n")
    (tmp_path / "a.txt").write_text("a red star")
    suite = prompt_suites.read("dpg", tmp_path, 4)
    assert suite.prompts == ["a red star", "a blue star"]
    (tmp_path / "out").mkdir()
    list(suite.write(tmp_path / "out", pngs(8), 0))
    square = decode_png((tmp_path / "out/b.png").read_bytes())
    assert square.shape == (4, 6, 3)
    assert square[::2, ::3, 0].tolist() == [[4, 5], [6, 7]]
    expected, other = (Origin.of_batch([""], [7], {"seed": seed}, {})[0] for seed in (0, 1))
    (tmp_path / "out/b.png").write_bytes(expected.png(square))
    assert suite.drawn(tmp_path / "out") == {7: tmp_path / "out/b.png"}
    prompt_suites.check(tmp_path / "out/b.png", expected)
    with pytest.raises(ConfigError, match=r"b\.png: an image of seed 0; expected 1"):
        prompt_suites.check(tmp_path / "out/b.png", other)
    single = prompt_suites.read("dpg", tmp_path, 1)
    list(single.write(tmp_path / "out", pngs(2), 0))
    assert (tmp_path / "out/a.png").read_bytes() == pngs(2)[0]


def test_the_last_image_of_a_square_replays(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    (tmp_path / "a.txt").write_text("a red star")
    path = tmp_path / "out/a.png"
    assert cli.main(["benchmark", "dpg", str(tmp_path), "--output", str(path.parent), "--device", "cpu"]) == 0
    square, origin = decode_png(path.read_bytes()).copy(), Origin.read(path.read_bytes(), "")
    again = tmp_path / "again.png"
    assert cli.main(["replay", str(path), "--output", str(again)]) == 0, capsys.readouterr().err
    assert np.array_equal(decode_png(again.read_bytes()), square[64:, 64:])
    assert not np.array_equal(square[:64, :64], square[64:, 64:])
    square[64, 64] ^= 5
    path.write_bytes(origin.png(square))
    assert cli.main(["replay", str(path)]) == 4
    assert "3 of 12288 values differ, by 5 at most" in capsys.readouterr().err
    for other in (square[:, 64:], np.concatenate([square, square[:64]])):
        path.write_bytes(origin.png(other))
        assert cli.main(["replay", str(path)]) == 4
        assert f"{len(other)} x {other.shape[1]} pixels; expected 64 x 64" in capsys.readouterr().err


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"prompt": "a star"}\n["no object"]\n')
    with pytest.raises(ConfigError, match=r"x.jsonl:2: another line"):
        prompt_suites.read("geneval", tmp_path / "x.jsonl", 4)
    with pytest.raises(ConfigError, match="no text that can be read"):
        prompt_suites.read("geneval", tmp_path / "none.jsonl", 4)
    with pytest.raises(ConfigError, match=r"no \.txt file"):
        prompt_suites.read("dpg", tmp_path, 4)
    (tmp_path / "a.txt").write_text("a red star")
    with pytest.raises(ConfigError, match="expected 1 or 4"):
        prompt_suites.read("dpg", tmp_path, 3)


def test_a_folder_whose_precision_was_measured_goes_on_in_it(root, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(root)
    out, given = tmp_path / "out", ["--num-images", "1", "--num-steps", "1", "--device", "cpu", "--precision", "auto"]
    command = ["benchmark", "geneval", str(metadata(tmp_path)), "--output", str(out), *given]
    found: list[str] = []
    for chosen in ("bf16", "fp32"):  # the second time another program may be at work
        monkeypatch.setattr(precision, "choose", lambda network, device, chosen=chosen: (chosen, "measured"))
        assert cli.main([*command, "--resume"]) == 0, capsys.readouterr().err
        files = [out / f"0000{i}/samples/0000.png" for i in range(2)]
        found += [str(Origin.read(file.read_bytes(), "").settings["precision"]) for file in files]
        files[1].unlink()
    assert found == ["bf16"] * 4


def test_the_command_draws_what_generate_draws_and_goes_on(root, loaded, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(root)
    source, out = metadata(tmp_path), tmp_path / "out"
    command = ["benchmark", "geneval", str(source), "--output", str(out), "--num-images", "2", "--device", "cpu"]
    assert cli.main(command) == 0
    expected = list(loaded.pngs(["a red star"] * 2 + ["a blue star"] * 2))
    names = [f"0000{i}/samples/000{j}.png" for i in range(2) for j in range(2)]
    for name, png in zip(names, expected, strict=True):
        assert np.array_equal(decode_png((out / name).read_bytes()), decode_png(png))
    assert cli.main(command) == 2, "a folder with images is left alone"
    assert "add --resume" in capsys.readouterr().err
    (out / names[1]).unlink()
    assert cli.main([*command, "--resume"]) == 2, "images of the second prompt would be replaced"
    assert "an image of a later prompt" in capsys.readouterr().err and not (out / names[1]).exists()
    for name in names[2:]:
        (out / name).unlink()
    assert cli.main([*command, "--resume", "--seed", "7"]) == 2, "an image of the first prompt would be replaced"
    assert f"{names[0]}: an image of seed " in capsys.readouterr().err
    assert decode_png((out / names[0]).read_bytes()).tolist() == decode_png(expected[0]).tolist()
    assert cli.main([*command, "--resume"]) == 0
    (out / names[3]).unlink()
    for changes, words in ((["--seed", "7"], "an image of seed "), (["--num-steps", "3"], "an image of num_steps ")):
        assert cli.main([*command, "--resume", *changes]) == 2
        assert words in capsys.readouterr().err and not (out / names[3]).exists()
    assert cli.main([*command, "--resume"]) == 0
    assert decode_png((out / names[3]).read_bytes()).shape == decode_png(expected[3]).shape
    assert benchmark.__doc__
