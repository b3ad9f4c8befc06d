from pathlib import Path

from PIL import Image

from ldm.training import plots

ROWS = [
    {"step": 10, "loss": 0.123456789012, "rate": 1.0},
    {"step": 20, "loss": float("nan")},
    {"step": 30, "loss": 2e-9},
]


def test_table_round_trip(tmp_path: Path):
    plots.write_table(tmp_path / "t.csv", ROWS)
    assert (tmp_path / "t.csv").read_text() == "step,loss,rate\n10,0.123456789,1\n20,nan,\n30,2e-09,\n"
    assert plots.read_table(tmp_path / "t.csv") == {"loss": [(10, 0.123456789), (30, 2e-9)], "rate": [(10, 1.0)]}


def test_curves_are_drawn_and_equal_tables_give_equal_bytes(tmp_path: Path):
    plots.write_table(tmp_path / "a.csv", ROWS)
    plots.write_table(tmp_path / "b.csv", ROWS[:1])
    tables = {"training": tmp_path / "a.csv", "validation": tmp_path / "b.csv"}
    plots.draw_curves(tables, tmp_path / "1.png")
    plots.draw_curves(tables, tmp_path / "2.png")
    plots.draw_curves({"training": tmp_path / "a.csv"}, tmp_path / "3.png")
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    with Image.open(tmp_path / "1.png") as one, Image.open(tmp_path / "3.png") as other:
        assert one.size == (800, 300)
        assert one.tobytes() != other.tobytes()


def test_no_rows_are_no_error(tmp_path: Path):
    plots.write_table(tmp_path / "t.csv", [])
    plots.draw_curves({"training": tmp_path / "t.csv"}, tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 0


def test_intervals_and_floors_are_drawn_in_the_panel_of_their_column(tmp_path: Path):
    row = {"scale": 1.0, "accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.7, "distance": 3.0}
    other = row | {"scale": 2.0, "accuracy": 0.6}
    sizes = []
    for i, rows in enumerate(
        [[row, other], [row, other | {"accuracy_high": 0.9}], [row | {"distance_floor": 1.0}, other]]
    ):
        plots.write_table(tmp_path / "t.csv", rows)
        plots.draw_intervals(tmp_path / "t.csv", tmp_path / f"{i}.png", "scale")
        with Image.open(tmp_path / f"{i}.png") as picture:
            sizes.append(picture.size)
    assert sizes == [(800, 300)] * 3, "a panel for accuracy and one for distance"
    assert len({(tmp_path / f"{i}.png").read_bytes() for i in range(3)}) == 3, "a bound and a floor are seen"
