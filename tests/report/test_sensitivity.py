"""What a sensitivity says of itself: rows merged, kept as JSON, shown as a table and as a plot."""

import io
import json

import pytest
from rich.console import Console

from onnxprune.report import plots
from onnxprune.report.alone import Point, Row
from onnxprune.report.sensitivity import Sensitivity, merged, render

ROW = Row("group", "g", 8, (Point(6, 0.001, 0.1), Point(4, 0.02, 0.2), Point(2, 0.005, 0.3)))


def test_what_can_go_ends_at_the_first_damage():
    assert ROW.can_go(0.01) == 0.25 and ROW.can_go(0.1) == 0.75 and ROW.can_go(1e-9) == 0
    assert Row("group", "g", 8, (Point(4, None, 0.1),)).can_go(1e9) == 0  # outputs that are not finite


def test_rows_are_merged_by_kind_and_name():
    block = Row("block", "g", 1, (Point(0, 0.5, 0.1),))
    found = merged([ROW, block], [Row("group", "g", 8, (Point(5, 0.0, 0.15), Point(2, 9.0, 0.3)))])
    assert found == (
        Row("group", "g", 8, (ROW.points[0], Point(5, 0.0, 0.15), ROW.points[1], Point(2, 9.0, 0.3))),
        block,
    )


def test_json_there_and_back():
    rows = (ROW, Row("block", "b", 1, (Point(0, None, 0.1),)))
    found = Sensitivity("m", "s", {"seed": 0}, rows, complete=False)
    assert Sensitivity.from_json(found.to_json()) == found
    assert json.loads(found.to_json())["kind"] == "onnxprune sensitivity" and json.loads(found.to_json())["schema"] == 1
    for text in ("{}", "[]", "1", "", found.to_json().replace('"schema": 1', '"schema": 2')):
        with pytest.raises(ValueError):
            Sensitivity.from_json(text)


def test_the_table_is_sorted_and_safe_to_print():
    evil = Row("group", "[red]\x1b[31m", 4, (Point(2, 0.5, 0.1),))
    console = Console(width=120, file=io.StringIO(), color_system=None)
    console.print(render(Sensitivity("m", "s", {}, (evil, ROW)), most=1))
    console.print(render(Sensitivity("m", "s", {}, (evil, ROW))))
    short, full = console.file.getvalue().split("cut alone")[1:]
    assert "1 more" in short and "[red]" not in short and full.index("25%") < full.index("[red]\\x1b[31m")
    assert "-10.0%" in short and "not finite" not in full and "all gone" not in full
    console.print(render(Sensitivity("m", "s", {}, (ROW, Row("block", "b", 1, (Point(0, 0.25, 0.4),))))))
    last = console.file.getvalue().split("cut alone")[-1]
    assert "all gone" in last and last.split("b ", 1)[1].split("\n")[0].split() == ["block", "1", "0.25", "0%", "-0.0%"]


def test_the_plot_has_a_panel_a_row():
    pytest.importorskip("matplotlib")
    from onnxprune.report import sensitivity_plot

    rows = [ROW, Row("group", "$a<b", 4, (Point(2, 0.0, 0.1), Point(1, None, 0.2)))]
    picture = plots.encoded(sensitivity_plot.draw(Sensitivity("m", "s", {}, tuple(rows))), "p.svg").decode()
    assert ">g (8)<" in picture and ">$a&lt;b (4)<" in picture and "that can save most" not in picture
    many = tuple(Row("group", f"g{k}", 4, (Point(2, 0.1, k / 100),)) for k in range(sensitivity_plot.MOST + 1))
    blocks = (Row("block", "b<c", 1, (Point(0, 0.25, 0.4),)), Row("block", "d", 1, (Point(0, None, 0.4),)))
    for drawn in (blocks, (ROW, *blocks)):
        picture = plots.encoded(sensitivity_plot.draw(Sensitivity("m", "s", {}, drawn)), "p.svg").decode()
        assert ">b&lt;c<" in picture and "not finite" in picture
    picture = plots.encoded(sensitivity_plot.draw(Sensitivity("m", "s", {}, many)), "p.svg").decode()
    assert "the 60 of 61 that can save most MACs" in picture and ">g0 (4)<" not in picture
