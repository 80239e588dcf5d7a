"""Equation, code and test carry the same name."""

import made_up
import pytest

from tools import equations


def test_this_book():
    if complaints := equations.complaints():
        pytest.fail("\n".join(complaints), pytrace=False)


@pytest.fixture
def root(tmp_path):
    root = made_up.book(tmp_path / "made-up", "02-first", "07-second")
    (root / "aevb").mkdir()
    (root / "tests" / "equations").mkdir(parents=True)
    return root


def write(root, docstring, *tests):
    (root / "aevb" / "em.py").write_text(
        f'def step():\n    """It is {docstring}."""\n\n\n'
        f'class Model:\n    def elbo(self):\n        """The same {docstring}."""\n'
    )
    text = "".join(f"def {name}():\n    pass\n" for name in tests)
    (root / "tests" / "equations" / "test_02.py").write_text(text)


def test_table(root):
    names = "test_eq_first_bound", "test_eq_first_bound_twice"
    write(root, "``eq-first-bound``", *names)
    first, *others = equations.table(root)
    assert first.name == "eq-first-bound"
    assert first.number == "2.1"
    assert first.code == ["aevb.em.step", "aevb.em.Model.elbo"]
    assert [t.partition("::")[2] for t in first.tests] == list(names)
    assert [e.number for e in others] == ["2.2", "7.1", "7.2"]
    row = (
        "| (2.1) | `eq-first-bound` | {py:obj}`step <aevb.em.step>`, "
        "{py:obj}`Model.elbo <aevb.em.Model.elbo>` |"
    )
    assert row in equations.markdown(root)
    assert "eq-second-bound" not in equations.markdown(root)
    assert not equations.complaints(root)


def test_code_without_a_test(root):
    write(root, "``eq-first-bound``")
    (complaint,) = equations.complaints(root)
    assert "(2.1) eq-first-bound has no test test_eq_first_bound" in complaint


def test_code_without_an_equation(root):
    write(root, "``eq-lost``", "test_eq_gone")
    gone, lost = equations.complaints(root)
    assert "test_02.py::test_eq_gone: no chapter has an equation eq-gone" in gone
    assert (
        "aevb.em.step, aevb.em.Model.elbo: no chapter has an equation eq-lost" in lost
    )
