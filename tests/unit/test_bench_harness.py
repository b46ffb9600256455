"""The harness of the benchmarks: what a row measures, judges and says."""

import pytest

from tests.benchmarks import harness
from tests.benchmarks.harness import Bench, machine, sized, table


def counted(value):
    calls = []

    def party():
        calls.append(value)
        return value

    return party, calls


def test_a_row_is_measured_again_when_it_misses_and_fails_in_the_end():
    (ours, calls), (peer, _) = counted(1.0), counted(2.0)
    bench = Bench()
    with pytest.raises(AssertionError, match="target >= 1 ×"):
        bench.row("a row", ours=ours, peers={"a peer": peer}, at_least={"a peer": 1.0}, rounds=3)
    assert len(calls) == 3 * harness.REPEATS
    assert "MISSED" in table(bench.lines)[2]


def test_a_quick_row_is_measured_once_and_fails_nothing(monkeypatch):
    monkeypatch.setattr(harness, "QUICK", True)
    (ours, calls), (peer, others) = counted(1.0), counted(2.0)
    bench = Bench()
    assert bench.row("a row", ours=ours, peers={"a peer": peer}, at_least={"a peer": 1.0}, rounds=3) == {"nbprocs": 1.0, "a peer": 2.0}
    assert (len(calls), len(others)) == (1, 1)
    assert "MISSED" in table(bench.lines)[2]
    assert sized(1000, quick=10) == 10


def test_the_table_says_on_which_machine():
    assert " cores, load " in machine()
    assert sized(1000, quick=10) == 1000
