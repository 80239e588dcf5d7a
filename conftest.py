"""Settings for every test, unit tests and notebooks alike; kernels inherit them."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent
REPORTS = ROOT / "_build" / "reports"

# Two OpenMP threads that spin on a busy machine can be ten times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("AEVB_FAST", "1")
os.environ.setdefault("AEVB_DEVICE", "cpu")
os.environ["AEVB_REPORT_DIR"] = str(REPORTS)
# The notebooks run in book/, and import the package that stands beside it.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
)
if "AEVB_DATA" in os.environ:
    os.environ["AEVB_DATA"] = str(Path(os.environ["AEVB_DATA"]).resolve())


def pytest_addoption(parser):
    parser.addoption(
        "--thorough",
        action="store_true",
        help="take all chapters where a few stand for the others, and measure seconds",
    )


def pytest_collection_modifyitems(config, items):
    """Remove the reports of the notebooks that are about to run again."""
    if config.option.collectonly:
        return
    REPORTS.mkdir(parents=True, exist_ok=True)
    for path in {item.path for item in items if item.path.suffix == ".ipynb"}:
        (REPORTS / f"{path.stem}.json").unlink(missing_ok=True)
