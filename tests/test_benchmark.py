"""The benchmark runs and measures; its figures are for people, and no test judges them."""

import sys

import pytest
from broker import missing


def test_the_benchmark_prints_a_table_with_a_figure_for_the_pair_in_every_section(start, bootstrap):
    environment = {"KAFKA_BOOTSTRAP_SERVERS": bootstrap}
    measuring = start(sys.executable, "tests/benchmark.py", "--rounds", "1", "--orders", "200", env=environment)
    assert measuring.wait(150) == 0, measuring
    rows = [line.split(" | ") for line in measuring.out if line.startswith("| ")]
    ours = [row for row in rows if row[0] in ("| producer.py", "| tracker.py", "| 1,000 orders", "| 10 orders")]
    assert len(ours) >= 10
    assert all(float(row[1].split(" ")[0].replace(",", "")) > 0 for row in ours)


@pytest.mark.timeout(300)
@pytest.mark.skipif(missing() is not None, reason=f"no brokers can be started: install {missing()}")
def test_the_benchmark_measures_how_the_pair_scales(start):
    measuring = start(sys.executable, "tests/benchmark.py", "--scale", "--rounds", "1", "--orders", "500")
    assert measuring.wait(280) == 0, measuring
    rows = [line.split(" | ") for line in measuring.out if line.startswith("| ")]
    figures = {row[0]: float(row[1].split(" ")[0].replace(",", "")) for row in rows if row[1][0].isdigit()}
    assert figures.keys() >= {"| 1 tracker", "| 4 trackers", "| SIGTERM", "| SIGKILL", "| 500 orders", "| 5,000 orders"}
    assert all(figure > 0 for figure in figures.values())
