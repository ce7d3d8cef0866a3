"""The demonstration: on its own data and on a user's file, with figures that are checked and a picture."""

import re

import numpy as np
import pandas as pd
import pytest
from arrays import normal
from matplotlib.image import imread

from bncpu import cli


def check_agreement(printed):
    found = re.findall(r"means differ by at most (\S+) standard deviations, variances by (\S+) of", printed)
    assert found
    for mean, var in found:
        assert float(mean) <= 1e-12 and float(var) <= 1e-11


def check_picture(path):
    image = imread(path)
    assert image.shape[0] > 300 and np.ptp(image) > 0.5


def test_demo_streams_checks_times_and_draws(tmp_path, capsys):
    picture = tmp_path / "settling.png"
    assert cli.main(["demo", "--rows", "30", "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "37,980 x 192 float32 in 3 batch(es)" in printed
    check_agreement(printed)
    raw, normalized = map(float, re.search(r"raw (\S+), normalized (\S+)", printed).groups())
    assert 0.9 < raw < 1 and 0.9 < normalized < 1
    assert len(re.findall(r"(partial_fit|transform) .* M rows/s .* times as fast", printed)) == 2
    check_picture(picture)


@pytest.mark.parametrize("kind", ["npy", "csv", "csv.gz", "parquet"])
def test_demo_of_a_file_shows_its_columns(kind, tmp_path, capsys):
    frame = pd.DataFrame(normal(0, (5000, 15)) + 3).rename(columns="c$[{}]".format)
    frame.iloc[::2, 1] = np.nan
    frame.iloc[:, 2] = 7.5
    path = tmp_path / f"mine.{kind}"
    if kind == "npy":
        np.save(path, frame.to_numpy())
    elif kind.startswith("csv"):
        frame.assign(name="x").to_csv(path, index=False)
    else:
        frame.assign(name="x").to_parquet(path)
    assert cli.main(["demo", str(path), "--picture", str(tmp_path / "p.png")]) == 0
    printed = capsys.readouterr().out
    assert f"mine.{kind}, read batch by batch" in printed
    assert ("left out, not numbers: name" in printed) == (kind != "npy")
    assert re.search(r"  5,000 x 15 float64 in 2[0-2] batch\(es\)", printed)
    assert "and 3 more columns" in printed
    name = "x1" if kind == "npy" else "c$[1]"
    row = next(line.split() for line in printed.splitlines() if line.split()[:1] == [name])
    assert row[3] == "2,500"
    assert float(row[1]) == pytest.approx(frame.iloc[:, 1].mean(), rel=1e-5)
    assert float(row[2]) == pytest.approx(frame.iloc[:, 1].std(ddof=0), rel=1e-5)
    check_agreement(printed)
    check_picture(tmp_path / "p.png")


def test_demo_stops_after_the_rows_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bncpu._tables.BATCH_ROWS", 40)
    np.save(tmp_path / "x.npy", normal(1, (1000, 2)))
    arguments = ["demo", str(tmp_path / "x.npy"), "--picture", str(tmp_path / "p.png"), "--rows"]
    assert cli.main([*arguments, "100"]) == 0
    assert "100 x 2 float64 in 3 batch(es)" in capsys.readouterr().out


def test_demo_of_constants_and_of_nothing(tmp_path, capsys):
    np.save(tmp_path / "constant.npy", np.ones((100, 2)))
    np.save(tmp_path / "nothing.npy", np.ones((0, 2)))
    picture = ["--picture", str(tmp_path / "p.png")]
    assert cli.main(["demo", str(tmp_path / "constant.npy"), *picture]) == 0
    check_picture(tmp_path / "p.png")
    capsys.readouterr()
    assert cli.main(["demo", str(tmp_path / "nothing.npy"), *picture]) == 1
    assert capsys.readouterr().err == "bncpu: there are no rows\n"


def test_an_infinity_in_a_file_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bncpu._tables.BATCH_ROWS", 40)
    X = normal(2, (100, 2))
    for row, two in ((77, False), (12, True)):
        X[row, 1] = np.inf
        X[row + 1, 0] = np.inf if two else 0
        np.save(tmp_path / "x.npy", X)
        assert cli.main(["demo", str(tmp_path / "x.npy")]) == 1
        printed = capsys.readouterr().err
        more = " and 1 more" if two else ""
        assert printed == f"bncpu: infinity in row {row}, column 'x1'{more}; leave it out or make it missing\n"


def test_rows_are_counted_where_every_column_has_gaps(tmp_path, capsys):
    (tmp_path / "x.csv").write_text("a,b\n1,\n,2\n3,3\n4,5\n")
    np.save(tmp_path / "nan.npy", np.full((9, 2), np.nan))
    for name, shape in (("x.csv", "4 x 2"), ("nan.npy", "9 x 2")):
        assert cli.main(["demo", str(tmp_path / name), "--picture", str(tmp_path / "p.png")]) == 0
        assert f"  {shape} float64 in" in capsys.readouterr().out
        check_picture(tmp_path / "p.png")
