"""Two processes, an uneven data set, and ranks that fail alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conformance.cases import CASES
from tests.conformance.ddp_script import collected

pytestmark = pytest.mark.ddp
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ddp")
    # A clean process: one that has run OpenMP work can't be forked, and a hang must not take the tests with it.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tests.conformance.ddp_script", str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, timeout=420, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, [json.loads((folder / f"report-{rank}.json").read_text()) for rank in (0, 1)]


def test_weights_are_bit_identical(ranks: Any) -> None:
    for report in ranks[1]:
        assert report["same weights"] and report["same optimizer"]


def test_rank_zero_writes(ranks: Any) -> None:
    assert ranks[1][0]["tags"] == sorted({tag for case in CASES for tag in case.tags})
    assert ranks[1][1]["tags"] == []


def test_both_ranks_hold_what_one_process_finds(ranks: Any) -> None:
    expected = collected()
    for rank in (0, 1):
        found = torch.load(ranks[0] / f"collected-{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if value.is_floating_point():  # batches differ, and with them the order of summation
                torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(found[name], value), name
    assert expected["samples"].tolist() == list(range(13))


def test_one_rank_may_fail(ranks: Any) -> None:
    for report in ranks[1]:
        outcomes = {k: v for k, v in report.items() if "fails on rank" in k}
        assert len(outcomes) == 21 and all(outcomes.values()), outcomes


def test_raise_stops_all_ranks(ranks: Any) -> None:
    raised = [name for name in ranks[1][0] if name.endswith(" raises")]
    assert len(raised) == 5
    for name in raised:
        failure = "NotADirectoryError" if name == "writing raises" else "ZeroDivisionError"
        assert {report[name] for report in ranks[1]} == {failure, "RuntimeError"}, name


def test_ranks_whose_clocks_differ_leave_out_the_same_looks(ranks: Any) -> None:
    first, second = ranks[1]
    assert first["agreed"] == second["agreed"] and first["alone"] != second["alone"]
    both = [a and b for a, b in zip(first["alone"], second["alone"], strict=True)]
    assert [granted for _, granted in first["agreed"]] == both
    assert 3 < sum(both) == first["drawn"] < len(both) - 3
    assert first["same weights with a budget"] and second["same weights with a budget"]
