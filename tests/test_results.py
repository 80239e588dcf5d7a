"""The page "Results and costs": every number of it comes from a file."""

import doctest
import json
import re
import subprocess
import sys

import pytest

from aevb import data, em, models
from tools import conventions as c
from tools import references, results

SOURCES = results.read()
ROWS = [(t, row) for t in SOURCES.tables for row in t["row"]]


def find(name):
    return next(row for _, row in ROWS if row["name"] == name)


def test_the_page_is_what_the_files_give():
    page = (c.ROOT / "book" / "results.md").read_text(encoding="utf-8")
    assert page == results.page(), "run `make renumber`"


def test_examples():
    assert doctest.testmod(results).failed == 0


def test_no_torch_is_needed():
    """The site's environment has none."""
    code = "import sys, tools.results as r; r.page(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=c.ROOT).returncode == 0


def test_no_result_is_typed_into_the_tool():
    text = "".join(results.HEAD + results.COSTS + results.STUDIES + results.WEIGHTS)
    assert not re.findall(r"\d+\.\d+", text)


@pytest.mark.parametrize("table", SOURCES.tables, ids=lambda t: t["name"])
def test_table(table):
    """Data that are explained, and columns in words."""
    known = {convention["name"] for convention in SOURCES.conventions} | {"other"}
    for row in table["row"]:
        assert row["data"] in known
        assert row["differs"]
        kinds = {"trained", "study", "source"} & row.keys()
        assert len(kinds) == 1, row["name"]
        assert ("source" in row) == ("verified" in row)
    text = results.section(table, SOURCES)
    (header,) = re.findall(r"^\| model \|.*", text, re.M)
    assert "$" not in header and header.count("|") <= 7
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(re.findall(r"^- ", text, re.M)) == len(lines) - 2


def test_every_trained_model_is_on_the_page():
    assert {row["trained"] for _, row in ROWS if "trained" in row} == set(
        SOURCES.weights
    )


def test_sources_that_are_cited_exist():
    known = references.entries()
    for _, row in ROWS:
        for key in re.findall(r"references\.md#(\w+)", row.get("source", "")):
            assert key in known


def test_what_is_remembered_is_marked():
    row = find("DRAW")
    assert "from memory" not in " ".join(results.published_row(row).notes)
    doubtful = results.published_row(row | {"verified": False})
    assert "from memory" in " ".join(doubtful.notes)


def test_figures_of_factor_analysis():
    """Those that can be computed here are."""
    train, test = data.factor_analysis()
    best = em.FactorAnalysis(latent_dim=2).fit(train.x.double(), tolerance=0)
    found = best.log_likelihood(test.x.double()).mean().item()
    expected = find("maximum likelihood, by EM")["log_likelihood"]
    assert found == pytest.approx(expected, abs=1e-5)
    truth = models.FactorAnalysis.from_parameters(data.LOADINGS, data.NOISE).double()
    found = truth.evidence(test.x.double()).mean().item()
    expected = find("the parameters that made the data")["log_likelihood"]
    assert found == pytest.approx(expected, abs=1e-5)


# --- how a row is made --------------------------------------------------------------


def entry(examples=500):
    score = {"mean": -90.0, "standard_error": 0.3, "examples": 1000}
    part = {"examples": examples, "samples": 100}
    weighted = {"mean": -80.0, "standard_error": 3.0} | part
    gap = {"mean": 4.0, "standard_error": 0.4} | part
    return {
        "recipe": {
            "model": {"class": "VAE", "arguments": {"latent_dim": 3, "hidden": [7]}},
            "data": {"source": "mnist", "kind": "binary", "examples": 50},
            "stages": [{"epochs": 2}, {"epochs": 1}],
        },
        "training": {"seconds": 600, "device": "cpu", "note": "half of it"},
        "scores": {"test": {"elbo": score, "log_likelihood": weighted, "gap": gap}},
    }


def test_trained_row():
    """An estimate from a part of the images is set on the ELBO of all."""
    shell = {"name": "x", "data": "static", "differs": "all"}
    row = results.trained_row(shell, entry())
    assert row.elbo.text(1) == "-90.0 ± 0.3"
    assert row.log_likelihood.text(1) == "-86.0 ± 0.5"
    assert row.time == "10 min, CPU"
    notes = "; ".join(row.notes)
    assert "2 epochs and 1 epoch of 50 images" in notes
    assert "100 draws for each of 500 test images" in notes and "half of it" in notes
    whole = results.trained_row(shell, entry(examples=1000))
    assert whole.log_likelihood.text(1) == "-80.0 ± 3.0"


STUDY = {
    "stamp": {"device": "cpu"},
    "settings": {"draws": 9, "subset": 4},
    "runs": [
        {"kind": "a", "seed": 0, "elbo": -5.0, "few": -6.0, "iw": -4.5, "seconds": 60},
        {"kind": "a", "seed": 1, "elbo": -7.0, "few": -8.0, "iw": -6.5, "seconds": 80},
        {"kind": "b", "seed": 0, "elbo": -1.0, "few": -1.0, "iw": -1.0, "seconds": 80},
    ],
}


def test_study_row():
    shell = {"name": "x", "data": "static", "differs": "all", "study": "made_up"}
    shell |= {"where": {"kind": "a"}, "elbo": "elbo", "gap": ["iw", "few"]}
    row = results.study_row(shell | {"draws": ["draws", "subset"]}, STUDY)
    assert row.elbo.text(1) == "-6.0"
    assert row.log_likelihood.text(1) == "-4.5"
    assert row.time == "70 s each, CPU"
    notes = "; ".join(row.notes)
    assert "2 seeds; standard deviation of the ELBO 1.41" in notes
    assert "from 9 draws for each of 4 test images" in notes
    longer = {**STUDY, "runs": [run | {"epochs": 1200} for run in STUDY["runs"]]}
    row = results.study_row(shell | {"epochs": "epochs"}, longer)
    assert "1,200 epochs" in row.notes
    with pytest.raises(ValueError, match=r"made_up has no run with {'kind': 'c'}"):
        results.study_row(shell | {"where": {"kind": "c"}}, STUDY)


def test_runs_to_come_are_left_out_and_mistakes_are_not():
    row = {"name": "x", "data": "static", "differs": "all", "study": "made_up"}
    row |= {"elbo": "elbo", "where": {"kind": "c"}}
    study = {**STUDY, "settings": {"kinds": ["a", "b", "c"]}}
    sources = results.Sources([], [], {}, {"made_up": study}, {})
    assert list(results.rows({"row": [row]}, sources)) == []
    typo = {"row": [row | {"where": {"kind": "d"}}]}
    with pytest.raises(ValueError, match="has no run"):
        list(results.rows(typo, sources))


def test_what_is_not_there_is_left_out():
    table = next(t for t in SOURCES.tables if t["name"] == "variational-rnn")
    none = results.Sources(SOURCES.conventions, [table], {}, {}, {})
    found = list(results.rows(table, none))
    assert [row.name for row in found] == [
        row["name"] for row in table["row"] if "source" in row
    ]


def test_costs_are_those_of_the_stamps():
    text = "\n".join(results.costs(SOURCES))
    for path in c.chapters():
        stamp = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("aevb")
        if not stamp:
            continue  # not run yet, as test_freshness says
        line = next(x for x in text.splitlines() if f"({path.name})" in x)
        assert results.duration(stamp["seconds"]) in line and stamp["date"] in line
