"""Output of an evaluation: files of rows, progress lines, wide tables."""

import io
import json

import pytest
from rich.console import Console

from worldstereo_ros.evaluation.output import TABLE_WIDTH, prefixed, print_table, read_rows, row_recorder, write_rows
from worldstereo_ros.evaluation.report import read_json
from worldstereo_ros.evaluation.tables import Column, build_table


def test_recorder_prints_new_rows_and_keeps_all_in_the_file(tmp_path):
    console, file = Console(file=io.StringIO(), width=20), tmp_path / "rows.json"
    record = row_recorder(
        console, "{:03d}".format, lambda rows, path: write_rows(path, [{"n": row} for row in rows], []), file
    )
    record([1, 2])
    assert len(json.loads(file.read_text())["rows"]) == 2
    record([3])
    assert console.file.getvalue().split() == ["001", "002", "003"]
    assert read_rows(file, lambda row: row["n"], "x") == [1, 2, 3]


def test_figures_that_are_no_numbers_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_rows(tmp_path / "rows.json", [{"psnr": float("nan")}], [])


@pytest.mark.parametrize("content", ["[]", "{}", '{"rows": [1]}', '{"rows": [{"colour": 1}]}', "no JSON"])
def test_files_without_rows_are_rejected(tmp_path, content):
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(ValueError, match="holds no rows of `worldstereo evaluate --json`"):
        read_json(tmp_path / "rows.json")


def test_tables_are_printed_in_full_where_there_is_no_terminal(capsys):
    heading = "h" * 30
    table = build_table([0], [Column(heading + str(i), lambda row: row) for i in range(6)])
    print_table(Console(), table)
    line = next(line for line in capsys.readouterr().out.splitlines() if heading in line)
    assert line.count(heading) == 6
    assert 180 < len(line) <= TABLE_WIDTH


def test_progress_has_the_prefix():
    lines = []
    prefixed(lines.append, "sparse, office")("view 1 of 2")
    assert lines == ["sparse, office, view 1 of 2"]
