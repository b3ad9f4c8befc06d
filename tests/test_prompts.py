import io

import pytest

from ldm.core.errors import ConfigError
from ldm.sampling import prompts


def test_one_text_or_several_become_a_list():
    assert prompts.texts_of("a star") == ["a star"]
    assert prompts.texts_of(iter(["a", "", "圆", "two\nlines", "a\0b"])) == ["a", "", "圆", "two\nlines", "a\0b"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "prompts: none; expected at least one"),
        (3, "prompts: 3, a int"),
        (None, "prompts: None"),
        (["a", 3], "prompt 2: 3, a int; expected a string"),
        ([["a"]], "prompt 1: .*a list"),
        (b"a star", "prompt 1: 97, a int"),
        (["a", "\udcff star"], "prompt 2: .*not UTF-8"),
        (["a" * (prompts.MAX_CHARACTERS + 1)], "prompt 1: 100001 characters"),
    ],
)
def test_what_is_no_prompt_is_named(given, message):
    with pytest.raises(ConfigError, match=f"(?s){message}.*\nfix: ") as error:
        prompts.texts_of(given)
    str(error.value).encode("ascii", "backslashreplace")


def test_a_file_holds_one_prompt_per_line(tmp_path, monkeypatch):
    path = tmp_path / "prompts.txt"
    data = b"\xef\xbb\xbfa red circle\r\n\r\n  \n\t a blue square \nein gr\xc3\xbcner Stern\x0cx"
    path.write_bytes(data)
    expected = ["a red circle", "a blue square", "ein grüner Stern\x0cx"]
    assert prompts.read(str(path)) == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert prompts.read("-") == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "p.txt: no prompt"),
        (b"\n \r\n\xe2\x80\x83\n", "p.txt: no prompt"),
        (b"a\n\nb \xff c\n", "p.txt:3: byte 0xff is not UTF-8"),
        ("a star\n".encode("utf-16"), "p.txt:1: byte 0xff is not UTF-8"),
        ("a star\n".encode("utf-16-le"), "p.txt:1: a zero byte"),
        (b"a\n" + b"b" * (prompts.MAX_CHARACTERS + 1), "p.txt:2: 100001 characters"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(ConfigError, match=f"^{message}.*\nfix: "):
        prompts.read("p.txt")


@pytest.mark.parametrize("path", ["nowhere.txt", ".", "p.txt/x", "-"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", None)
    (tmp_path / "p.txt").write_text("a")
    with pytest.raises(ConfigError, match=r"cannot be read .*\nfix: "):
        prompts.read(path)


def test_texts_in_messages_are_one_short_line():
    assert prompts.on_one_line("a 圆\n\x1b[2J\0") == "a 圆\\n\\x1b[2J\\x00"
    assert prompts.shortened("a star") == "a star"
    assert len(prompts.shortened("a star and " * 90)) == 60
