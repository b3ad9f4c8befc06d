import re
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from ldm.training import plots
from ldm.training.plots import Panel, Series

ROWS = [
    {"step": 10, "loss": 0.123456789012, "rate": 1.0},
    {"step": 20, "loss": float("nan")},
    {"step": 30, "loss": 2e-9},
]


def test_table_round_trip(tmp_path: Path):
    plots.write_table(tmp_path / "t.csv", ROWS)
    assert (tmp_path / "t.csv").read_text() == "step,loss,rate\n10,0.123456789,1\n20,nan,\n30,2e-09,\n"
    assert plots.read_table(tmp_path / "t.csv") == {"loss": [(10, 0.123456789), (30, 2e-9)], "rate": [(10, 1.0)]}


def written(folder: Path, **tables: list[dict[str, float]]) -> dict[str, Path]:
    for name, rows in tables.items():
        plots.write_table(folder / f"{name}.csv", rows)
    return {name: folder / f"{name}.csv" for name in tables}


def steps(**columns: list[float]) -> list[dict[str, float]]:
    return [
        {"step": i, **dict(zip(columns, row, strict=True))} for i, row in enumerate(zip(*columns.values(), strict=True))
    ]


def test_curves_are_drawn_and_equal_tables_give_equal_bytes(tmp_path: Path):
    tables = written(tmp_path, training=ROWS, validation=ROWS[:1])
    for name, chosen in {"1": tables, "2": tables, "3": {"training": tables["training"]}}.items():
        plots.draw_curves(chosen, tmp_path / f"{name}.png")
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    with Image.open(tmp_path / "1.png") as one, Image.open(tmp_path / "3.png") as other:
        assert one.size == (400, 320), "a panel of the loss, and a note about the constant rate"
        assert one.size != other.size or one.tobytes() != other.tobytes()


def test_every_quantity_has_a_panel_in_words_with_the_curves_of_both_tables(tmp_path: Path):
    training, validation = steps(loss=[3, 2], grad_norm=[1, 2]), steps(loss=[4, 3], psnr_db=[20, 21])
    panels, note = plots.curves(written(tmp_path, training=training, validation=validation))
    assert [panel.title for panel in panels] == ["loss", "gradient norm", "PSNR in dB"]
    assert [(series.label, series.points) for series in panels[0].series] == [
        ("training", [(0, 3), (1, 2)]),
        ("validation", [(0, 4), (1, 3)]),
    ]
    assert note == ""


def test_what_never_changes_or_repeats_another_has_no_panel_and_parts_share_one(tmp_path: Path):
    rows = steps(
        loss=[3, 2], mse=[3, 2], num_skipped=[0, 0], mse_bucket_1=[1, 2], mse_bucket_2=[3, 4], mse_noisiest=[5, 6]
    )
    panels, note = plots.curves(written(tmp_path, validation=rows))
    assert [(panel.title.split()[0], [series.label for series in panel.series]) for panel in panels] == [
        ("loss", ["validation"]),
        ("mean", ["1", "2", "noisiest 5 %"]),
    ]
    assert note == "Always the same: skipped updates 0"


def test_no_rows_are_no_error(tmp_path: Path):
    plots.write_table(tmp_path / "t.csv", [])
    plots.draw_curves({"training": tmp_path / "t.csv"}, tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 0


def test_intervals_and_references_are_seen(tmp_path: Path):
    points = [(1.0, 0.5), (2.0, 0.6)]
    plain, real = Series("samples", points), Series("real images", [(1.0, 0.9), (2.0, 0.9)], is_reference=True)
    bars = [Series("samples", points, [(0.4, 0.7), (0.5, high)]) for high in (0.8, 0.9)]
    for i, series in enumerate([[plain], [bars[0]], [bars[1]], [plain, real]]):
        plots.draw([Panel("accuracy", "scale", series, is_share=True)], "", tmp_path / f"{i}.png")
    assert len({(tmp_path / f"{i}.png").read_bytes() for i in range(4)}) == 4


def test_a_long_curve_is_drawn_as_its_running_mean():
    texts = [
        plots.svg(Panel("loss", "step", [Series("a", [(i, float(i % 2)) for i in range(count)])]), "x")
        for count in (190, 210)
    ]
    assert [text.count("var(--curve-0") for text in texts] == [1, 2]


def test_a_panel_of_a_page_takes_the_colours_of_the_page_and_keeps_its_ids_to_itself():
    panel = Panel("loss <of> 1 & 2", "step", [Series("a", [(0, 1), (1, 2)]), Series("b", [(0, 2), (1, 3)])])
    text = plots.svg(panel, "unet-3")
    assert plots.svg(panel, "unet-3") == text
    root = ElementTree.fromstring(text)
    assert root.get("aria-label") == "loss <of> 1 & 2" and root.get("role") == "img" and root.get("width") is None
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    used = re.findall(r'(?:href="|url\()#([^")]*)', text)
    assert used and set(used) <= set(ids) and all(name.startswith("unet-3-") for name in ids)
    assert "currentColor" in text and "var(--curve-0, #0072B2)" in text and "var(--curve-1, #D55E00)" in text
    assert "<metadata" not in text and "<!DOCTYPE" not in text
    shown = " ".join("".join(element.itertext()) for element in root.iter() if element.tag.endswith("}text"))
    assert "loss <of> 1 & 2" in shown and "step" in shown
