"""Files that are whole or not there at all."""

import pytest

from aevb.files import replacing


def test_a_new_version_replaces_the_old_one(tmp_path):
    path = tmp_path / "a" / "numbers.txt"
    for text in ("1", "2"):
        with replacing(path) as beside:
            beside.write_text(text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_version_and_nothing_beside_it(tmp_path, error):
    path = tmp_path / "numbers.txt"
    path.write_text("1")
    with pytest.raises(type(error)), replacing(path) as beside:
        beside.write_text("half")
        raise error
    assert path.read_text() == "1"
    assert list(tmp_path.iterdir()) == [path]
