"""The lines that `evaluate` ends with."""

import gzip
import json
from pathlib import Path
from typing import Any, cast

from typer.testing import CliRunner

from train.cli import app
from train.evaluation.intervals import Interval
from train.evaluation.lists import TruthRow
from train.evaluation.sections import evaluation_page
from train.evaluation.suite import CtrSummary, Evaluation
from train.evaluation.summary import describe


def test_the_command_ends_with_the_figures_that_tell_most(
    run: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    heldout, out = tmp_path / "heldout.gz", tmp_path / "eval"
    heldout.write_bytes(
        gzip.compress(b"".join(b"query number %d of many\n" % i for i in range(40)))
    )
    places = {"run": run, "bundle": tiny_bundle, "heldout": heldout, "out": out}
    options = [text for name, path in places.items() for text in (f"--{name}", str(path))]
    result = CliRunner().invoke(app, ["evaluate", *options])
    assert result.exit_code == 0, result.output
    completion, retrieval, left_out, files = result.stdout.splitlines()[-4:]
    found = json.loads((out / "eval.json").read_bytes())
    (warning,) = found["warnings"]  # the bundle is not the run's
    assert f"warning: {warning}" in result.stdout
    goal = found["completion"]["goals"][0]
    mean, low, high = found["completion"]["scores"][0]["mrr"]
    assert completion.startswith(
        f"completion, MRR@10: seen {mean:.3f} [{low:.3f}, {high:.3f}], "
        f"{goal['ratio'][0]:.2f} of the most popular's; other "
    )
    scores = found["retrieval"]["scores"]
    served, adjacency = (
        next(s["recall"][0] for s in scores if s["slice"] == "all" and s["system"] == system)
        for system in ("served", "adjacency")
    )
    assert retrieval.startswith(f"retrieval, recall@20 of the next query: {served:.3f} [")
    assert f"; adjacency {adjacency:.3f}, bm25 " in retrieval
    assert left_out == "left out: sessions, lists, ctr, real"
    assert files == f"{out}/eval.json, {out}/eval.html"


def test_what_makes_figures_doubtful_is_told_first_in_lines_and_page() -> None:
    left_out = {"lists": "why not"}
    found = Evaluation(bundle_id="b", is_simulated=True, left_out=left_out, warnings=["a < b"])
    assert describe(found) == ["warning: a < b", "left out: lists"]
    page = evaluation_page(found)
    assert 0 < page.index("Warning: a &lt; b") < page.index("Brackets are") < page.index("why not")


def test_of_simulated_logs_the_truth_is_told_beside_the_better_rival() -> None:
    value = Interval(0.5, 0.4, 0.6)
    ratios = {"most_popular": Interval(3, 2, 4), "nearest_neighbour": Interval(1.25, 1, 2)}
    rows = [
        TruthRow(
            system=system,
            scenario="suggestion",
            num_queries=9,
            num_items=5,
            click_probability=value,
            list_value=value,
            generated_share=None,
            ratios=ratios,
        )
        for system in ("engine", "generator")
    ]
    clicks = CtrSummary(auc_share=0.9, gauc_share=0.8, ece_rel=0.07, details=cast(Any, None))
    found = Evaluation(bundle_id="b", is_simulated=True, lists=rows, ctr=clicks)
    assert describe(found) == [
        "simulated clicks on a list: suggestion 0.500 [0.400, 0.600], 1.25 of the nearest "
        "neighbour's",
        "click model, of the oracle's AUC above 1/2: 0.90, within a position 0.80; calibration "
        "error 7% at worst",
    ]
