"""The benchmark runs and measures; its figures are for people, and no test judges them."""

import sys

import pytest
from conftest import needs_postgres

BENCHMARK_LIMIT = 500  # seconds; the other tests may leave it little of the machine
pytestmark = pytest.mark.timeout(600)


def test_the_benchmark_prints_a_table_with_a_figure_for_the_pair_in_every_section(start, bootstrap):
    environment = {"KAFKA_BOOTSTRAP_SERVERS": bootstrap}
    measuring = start(sys.executable, "tests/benchmark.py", "--rounds", "1", "--orders", "200", env=environment)
    assert measuring.wait(BENCHMARK_LIMIT) == 0, measuring
    rows = [line.split(" | ") for line in measuring.out if line.startswith("| ")]
    ours = [row for row in rows if row[0] in ("| producer.py", "| tracker.py", "| 1,000 orders", "| 10 orders")]
    assert len(ours) >= 10
    assert all(float(row[1].split(" ")[0].replace(",", "")) > 0 for row in ours)


@needs_postgres
def test_it_measures_each_database_beside_bare_loops(start):
    measuring = start(sys.executable, "tests/benchmark.py", "--history", "--rounds", "1", "--orders", "200")
    assert measuring.wait(BENCHMARK_LIMIT) == 0, measuring
    rows = [line.split(" | ") for line in measuring.out if line.startswith("| ") and "**" not in line]
    figures = [(row[0].removeprefix("| "), row[1].split(" ")[0]) for row in rows[1:]]
    names = [name for name, _ in figures]
    assert [names.count(name) for name in ("next_steps.history.store", "bare loop", "tracker.py", "first")] == [2] * 4
    assert len(figures) == 2 * (3 + 12 + 2 + 1 + 1)
    assert all(float(figure.replace(",", "")) > 0 for _, figure in figures)


def test_it_measures_each_format_beside_bare_loops(start):
    measuring = start(sys.executable, "tests/benchmark.py", "--schemas", "--rounds", "1", "--orders", "200")
    assert measuring.wait(BENCHMARK_LIMIT) == 0, measuring
    rows = [line.split(" | ") for line in measuring.out if line.startswith("| ") and "**" not in line]
    figures = [(row[0].removeprefix("| "), row[1].split(" ")[0]) for row in rows[1:]]
    assert [name for name, _ in figures].count("ours") == [name for name, _ in figures].count("bare loop") == 8
    assert len(figures) == 16 + 8
    assert all(float(figure.replace(",", "")) > 0 for _, figure in figures)


def test_it_measures_the_page_beside_the_bare_framework(start):
    measuring = start(sys.executable, "tests/benchmark.py", "--web", "--rounds", "1", "--orders", "1500")
    assert measuring.wait(BENCHMARK_LIMIT) == 0, measuring
    rows = [line.split(" | ") for line in measuring.out if line.startswith("| ") and "**" not in line]
    figures = [(row[0].removeprefix("| "), row[1].split(" ")[0]) for row in rows[1:]]
    assert [name for name, _ in figures].count("bare framework") == 2
    assert len(figures) == 6 + 1 + 2 + 2
    assert all(float(figure.replace(",", "")) > 0 for _, figure in figures)


def test_it_measures_what_tls_and_passwords_cost(start):
    measuring = start(sys.executable, "tests/benchmark.py", "--security", "--rounds", "1", "--orders", "200")
    assert measuring.wait(BENCHMARK_LIMIT) == 0, measuring
    rows = [line.split(" | ") for line in measuring.out if line.startswith("| ") and "**" not in line]
    assert [row[0].removeprefix("| ") for row in rows[1:]] == ["plain", "TLS, SCRAM"] * 3
    assert all(float(row[1].split(" ")[0].replace(",", "")) > 0 for row in rows[1:])
