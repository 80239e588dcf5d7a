"""Tests of aevb/data.py."""

import gzip
import hashlib
import os
import struct
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    TensorDataset,
    default_collate,
)
from torchvision import datasets

from aevb import data, fit, models
from aevb.data import Batches, Examples

UNREACHABLE = "http://127.0.0.1:9/"  # the discard port: refused at once


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(datasets.MNIST, "mirrors", [UNREACHABLE])


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """Well-formed MNIST files with 7 training and 3 test images; their own MD5 sums."""
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    sums = {}
    for part, count in (("train", 7), ("t10k", 3)):
        pixels = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = random.integers(0, 10, count, dtype=np.uint8)
        for name, header, content in (
            (
                f"{part}-images-idx3-ubyte",
                struct.pack(">4i", 2051, count, 28, 28),
                pixels,
            ),
            (f"{part}-labels-idx1-ubyte", struct.pack(">2i", 2049, count), labels),
        ):
            (folder / name).write_bytes(header + content.tobytes())
            sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(data, "MNIST_MD5", sums)
    return tmp_path / "data"


# --- Examples ------------------------------------------------------------------------


def test_examples_are_sliced_together():
    examples = Examples(torch.arange(10.0), torch.arange(10))
    assert len(examples) == 10
    assert examples[2:5].x.tolist() == [2, 3, 4] and examples[2:5].y.tolist() == [
        2,
        3,
        4,
    ]
    assert examples[torch.tensor([7, 1])].y.tolist() == [7, 1]
    assert examples[3].x.tolist() == [3] and examples[-1].x.tolist() == [9]
    assert examples[torch.arange(10) > 7].y.tolist() == [8, 9]


@pytest.mark.parametrize("whole", [torch.tensor, np.int64, np.array])
def test_whole_numbers_of_every_kind_give_one_example(whole):
    examples = Examples(torch.arange(10.0)[:, None], torch.arange(10))
    for k in (3, -1, 0):
        assert examples[whole(k)].x.tolist() == examples[k].x.tolist()
    with pytest.raises(IndexError, match="index is 10, and there are 10 examples"):
        examples[whole(10)]


def test_a_truth_value_is_no_index():
    for index in (True, np.True_, torch.tensor(True)):
        with pytest.raises(TypeError, match="index is True; expected a whole number"):
            Examples(torch.arange(3.0))[index]
    one = Examples(torch.arange(1.0))
    assert len(one[torch.tensor([True])]) == 1  # a mask
    assert len(one[torch.tensor([False])]) == 0


def test_examples_end_where_they_end():
    """Iteration stops: Python iterates by index until an IndexError."""
    examples = Examples(torch.arange(3.0))
    assert [len(one) for one in examples] == [1, 1, 1]
    with pytest.raises(IndexError, match="index is 3, and there are 3 examples"):
        examples[3]


def test_examples_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="y has 4 entries and x has 5; expected one"):
        Examples(torch.zeros(5, 2), torch.zeros(4))
    with pytest.raises(ValueError, match="raw has 6 entries and x has 5"):
        Examples(torch.zeros(5, 2), raw=torch.zeros(6, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="redraw is given without raw"):
        Examples(torch.zeros(5, 2), redraw=data.dequantise)


def test_split():
    first, rest = data.split(Examples(torch.arange(10.0), torch.arange(10)), 7)
    assert first.y.tolist() == list(range(7)) and rest.x.tolist() == [7, 8, 9]


@pytest.mark.parametrize("count", [0, 10, -1])
def test_split_refuses_an_empty_part(count):
    with pytest.raises(ValueError, match=rf"count is {count}; expected 1 to 9.*are 10"):
        data.split(Examples(torch.arange(10.0)), count)


# --- preprocessing -------------------------------------------------------------------

EVERY_BYTE = torch.arange(256, dtype=torch.uint8).repeat(400, 1)


def test_dequantised_values_stay_in_their_bin():
    x = data.dequantise(EVERY_BYTE, torch.Generator().manual_seed(0))
    assert x.dtype == torch.float32 and 0 < x.min() and x.max() < 1
    bins = EVERY_BYTE.double()
    assert (x.double() * 256 >= bins).all() and (x.double() * 256 <= bins + 1).all()
    # the noise is U[0, 1): its mean is 1/2, its variance 1/12
    noise = x.double() * 256 - bins
    n = noise.numel()
    assert abs(noise.mean() - 1 / 2) < 4 * (1 / 12 / n) ** 0.5
    assert abs(noise.var() - 1 / 12) < 4 * (1 / 180 / n) ** 0.5


def test_dequantised_values_never_reach_0_or_1(monkeypatch):
    for uniform in (0.0, 1 - 2.0**-24):
        constant = partial(lambda u, raw, g: torch.full(raw.shape, u), uniform)
        monkeypatch.setattr(data, "_uniform", constant)
        x = data.dequantise(torch.tensor([0, 255], dtype=torch.uint8))
        assert 0 < x[0] and x[1] < 1


def test_binary_is_the_dequantised_value_above_a_half():
    x = data.dequantise(EVERY_BYTE, torch.Generator().manual_seed(1))
    exactly_half = x == 0.5  # float32 rounding alone gets there
    binary = data.binarise(EVERY_BYTE)
    assert ((binary == (x > 0.5)) | exactly_half).all() and exactly_half.sum() < 5
    assert binary.unique().tolist() == [0, 1] and binary.dtype == torch.float32


def test_stochastic_binarisation_has_the_grey_value_as_its_probability():
    n = 4000
    raw = torch.arange(256, dtype=torch.uint8).repeat(n, 1)
    x = data.binarise_stochastically(raw, torch.Generator().manual_seed(0))
    assert x.unique().tolist() == [0, 1] and x.dtype == torch.float32
    p = torch.arange(256).double() / 255
    error = (p * (1 - p) / n).sqrt()
    assert ((x.double().mean(0) - p).abs() <= 4.5 * error).all()  # 256 comparisons
    assert (x[:, 0] == 0).all() and (x[:, 255] == 1).all()


@pytest.mark.parametrize("kind", data.KINDS)
def test_digits_have_mnists_shape(kind):
    train, test = data.digits(kind)
    shape = (28, 28) if kind == "rows" else (784,)
    assert train.x.shape == (1437, *shape) and test.x.shape == (360, *shape)
    assert train.x.dtype == torch.float32 and train.y.dtype == torch.int64
    assert 0 <= train.x.min() and train.x.max() <= 1
    assert train.y.unique().tolist() == list(range(10))
    if kind in ("binary", "stochastic", "rows"):
        assert train.x.unique().tolist() == [0, 1]
    random = kind in ("continuous", "stochastic")
    assert (train.redraw is not None) == random == (train.raw is not None)


def test_kinds_belong_together():
    sets = {kind: data.digits(kind)[0] for kind in data.KINDS}
    raw = sets["continuous"].raw
    torch.testing.assert_close(sets["grey"].x, raw / 255)
    assert torch.equal(sets["binary"].x, (raw >= 128).float())
    assert torch.equal(sets["rows"].x.flatten(1), sets["binary"].x)
    assert ((sets["continuous"].x * 256).floor() - raw).abs().max() <= 1
    assert torch.equal(sets["stochastic"].raw, raw)
    likely = sets["stochastic"].x[raw > 230].mean()
    assert likely > 0.9


@pytest.mark.parametrize("kind", ["continuous", "stochastic"])
def test_noise_is_fixed_by_the_seed_and_differs_between_the_parts(kind):
    train, test = data.digits(kind, seed=3)
    again, _ = data.digits(kind, seed=3)
    other, _ = data.digits(kind, seed=4)
    assert torch.equal(train.x, again.x) and not torch.equal(train.x, other.x)
    fresh = train.redraw(train.raw, torch.Generator().manual_seed(9))
    assert fresh.shape == train.x.shape and not torch.equal(fresh, train.x)
    noise = [part.x[:360, :784] - part.raw[:360] / 256 for part in (train, test)]
    assert not torch.equal(*noise)


def test_data_leave_the_global_generators_alone():
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    data.digits("continuous")
    data.factor_analysis(n=10)
    data.gaussian_mixture(n=10)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_rows_are_the_same_images_row_by_row():
    flat, _ = data.digits("binary")
    assert torch.equal(data.rows(flat).x, data.digits("rows")[0].x)
    assert data.rows(flat).redraw is None and data.rows(flat).raw is None
    images, _ = data.digits("stochastic")
    rows = data.rows(images)
    assert torch.equal(rows.x.flatten(1), images.x) and torch.equal(rows.y, images.y)
    fresh = rows.redraw(rows.raw[:9], torch.Generator().manual_seed(5))
    expected = images.redraw(images.raw[:9], torch.Generator().manual_seed(5))
    assert fresh.shape == (9, 28, 28) and torch.equal(fresh.flatten(1), expected)
    assert data.rows(images, width=14).x.shape == (1437, 56, 14)
    assert rows[2:5].x.shape == (3, 28, 28)


def test_rows_are_redrawn_for_each_batch():
    rows = data.rows(data.digits("stochastic")[0][:20])
    batches = Batches(rows, batch_size=20, shuffle=True)
    torch.manual_seed(0)
    (first,), (second,) = [next(iter(batches)) for _ in range(2)]
    assert first.shape == (20, 28, 28) and not torch.equal(first.sum(0), second.sum(0))


@pytest.mark.parametrize("shape", [(3, 783), (3, 28, 28)])
def test_rows_of_something_else_are_refused(shape):
    with pytest.raises(ValueError, match=r"rows: x has shape .*expected \(N, T \* 28"):
        data.rows(Examples(torch.zeros(shape)))


@pytest.mark.parametrize("function", [data.digits, data.mnist])
def test_unknown_kind(function):
    expected = rf"{function.__name__}: kind is 'gray'; expected one of .*'grey'"
    with pytest.raises(ValueError, match=expected):
        function("gray")


# --- MNIST ----------------------------------------------------------------------------


def test_mnist_is_read_from_its_folder(small_mnist):
    train, test = data.mnist("binary", root=small_mnist)
    assert train.x.shape == (7, 784) and test.x.shape == (3, 784)
    content = (small_mnist / "MNIST/raw/train-images-idx3-ubyte").read_bytes()[16:]
    pixels = np.frombuffer(content, dtype=np.uint8).reshape(7, 784)
    assert (train.x.numpy() == (pixels >= 128)).all()
    labels = (small_mnist / "MNIST/raw/t10k-labels-idx1-ubyte").read_bytes()[8:]
    assert test.y.tolist() == list(labels) and test.y.dtype == torch.int64
    rows, _ = data.mnist("rows", root=small_mnist)
    assert rows.x.shape == (7, 28, 28)
    continuous, _ = data.mnist("continuous", root=small_mnist)
    assert (continuous.raw.numpy() == pixels).all()


@pytest.mark.skipif("AEVB_DATA" not in os.environ, reason="needs AEVB_DATA: real MNIST")
def test_real_mnist():
    train, test = data.mnist("continuous")
    assert train.x.shape == (60000, 784) and test.x.shape == (10000, 784)
    assert train.y.bincount().tolist()[:3] == [5923, 6742, 5958]
    assert train.raw.double().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)


def test_mnist_root(monkeypatch, tmp_path):
    monkeypatch.setenv("AEVB_DATA", str(tmp_path / "a"))
    assert data.mnist_root() == tmp_path / "a"
    assert data.mnist_root(tmp_path / "b") == tmp_path / "b"
    monkeypatch.delenv("AEVB_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert data.mnist_root() == tmp_path / "c" / "aevb"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.mnist_root() == Path.home() / ".cache" / "aevb"
    assert data.mnist_root("~/here") == Path.home() / "here"


def test_a_truncated_file_is_removed_and_reported(small_mnist):
    path = small_mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    expected = data.MNIST_MD5[path.name]
    others = set(everything_below(small_mnist)) - {f"MNIST/raw/{path.name}"}
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(data.DataError) as caught:
        data.mnist(root=small_mnist)
    for part in (str(path), "1000 bytes", f"expected MD5 {expected}", "was removed"):
        assert part in str(caught.value)
    assert set(everything_below(small_mnist)) == others


def test_a_truncated_file_that_cannot_be_removed_is_reported(small_mnist, monkeypatch):
    path = small_mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(b"")

    def refuse(self, missing_ok=False):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(
        data.DataError, match=r"could not be removed \(Read-only file sy"
    ):
        data.mnist(root=small_mnist)
    assert path.exists()


@pytest.mark.parametrize("existing", ["", "there", "there/MNIST/raw"])
def test_no_network_and_no_files(no_network, tmp_path, existing):
    """The error says where it looked and what to do; nothing is left behind."""
    (tmp_path / existing).mkdir(parents=True, exist_ok=True)
    before = everything_below(tmp_path)
    with pytest.raises(data.DataError) as caught:
        data.mnist(root=tmp_path / "there")
    for part in (str(tmp_path / "there" / "MNIST" / "raw"), "AEVB_DATA", "digits()"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert everything_below(tmp_path) == before


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(data.DataError, match="could not be downloaded"):
        data.mnist(root=tmp_path / "file")
    assert everything_below(tmp_path) == ["file"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def mirror(small_mnist, tmp_path, monkeypatch):
    """A folder that stands in for the network, and holds MNIST's archives."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    resources = []
    for name in data.MNIST_MD5:
        packed = gzip.compress((small_mnist / "MNIST/raw" / name).read_bytes())
        (folder / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    handler = partial(Quiet, directory=folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    yield folder
    server.shutdown()
    server.server_close()


def test_missing_files_are_downloaded(mirror, small_mnist, tmp_path):
    train, test = data.mnist(root=tmp_path / "new")
    assert (len(train), len(test)) == (7, 3)
    assert everything_below(tmp_path / "new") == sorted(
        ["MNIST", "MNIST/raw", *(f"MNIST/raw/{name}" for name in data.MNIST_MD5)]
    )
    (small_mnist / "MNIST/raw/t10k-images-idx3-ubyte").unlink()
    assert torch.equal(data.mnist(root=small_mnist)[1].x, test.x)


def test_a_broken_download_leaves_nothing(mirror, tmp_path):
    path = mirror / "train-labels-idx1-ubyte.gz"  # the second one to be fetched
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(data.DataError, match="corrupted"):
        data.mnist(root=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_interrupted_download_leaves_no_file(mirror, tmp_path, monkeypatch):
    extract = datasets.mnist.download_and_extract_archive

    def interrupt(url, **options):
        extract(url, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.mnist(root=tmp_path / "new")
    assert not [path for path in tmp_path.joinpath("new").rglob("*") if path.is_file()]


# --- synthetic data -------------------------------------------------------------------


def test_factor_analysis_reproduces_the_papers_data():
    """Recipe: all latents first, then all noise, from RandomState(42).

    The mean log-likelihoods under the true parameters are the paper's.
    """
    train, test = data.factor_analysis()
    assert train.x.shape == test.x.shape == (1000, 3) and train.x.dtype == torch.float32
    loadings = np.array([[-0.5, -1.0], [-1.0, -1.0], [2.0, 0.5]])
    covariance = loadings @ loadings.T + np.diag(np.square([0.4, 0.2, 0.3]))
    log_det = np.linalg.slogdet(covariance)[1]
    for part, expected in ((train, -3.934837), (test, -3.970452)):
        x = part.x.double().numpy()
        distance = (x @ np.linalg.inv(covariance) * x).sum(1)
        log_p = -0.5 * (distance + log_det + 3 * np.log(2 * np.pi))
        assert log_p.mean() == pytest.approx(expected, abs=1e-6)


def test_factor_analysis_with_other_parameters():
    g = torch.Generator().manual_seed(0)
    loadings, noise = torch.randn(6, 2, generator=g), torch.full((6,), 0.3)
    train, _ = data.factor_analysis(20000, 1, loadings, noise)
    expected = loadings @ loadings.T + noise.square().diag()
    error = (expected.diag().outer(expected.diag()) + expected**2).div(20000).sqrt()
    found = train.x.T @ train.x / 20000  # zero mean: the second moment
    assert ((found - expected).abs() < 4 * error).all()
    assert torch.equal(train.x, data.factor_analysis(20000, 1, loadings, noise)[0].x)


def test_factor_analysis_takes_the_parameters_of_a_model():
    model = models.FactorAnalysis.from_parameters(data.LOADINGS, data.NOISE)
    given = {"loadings": model.loadings, "noise": torch.tensor(data.NOISE)}
    assert given["loadings"].requires_grad
    found = data.factor_analysis(20, **given)[0].x
    torch.testing.assert_close(found, data.factor_analysis(20)[0].x)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n": 0}, "n is 0; expected a whole number, at least 1"),
        (
            {"loadings": [1.0, 2.0, 3.0]},
            r"loadings has shape \(3,\).*expected \(D, L\)",
        ),
        ({"noise": [0.1, 0.2]}, r"noise \(2,\); expected \(D, L\) and \(D,\)"),
    ],
)
def test_factor_analysis_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.factor_analysis(**arguments)


def test_gaussian_mixture():
    train, test = data.gaussian_mixture(n=4000, seed=1)
    assert train.x.shape == (4000, 2) and train.x.dtype == torch.float32
    assert train.y.shape == (4000,) and train.y.dtype == torch.int64
    assert not torch.equal(train.x, test.x)
    assert torch.equal(train.x, data.gaussian_mixture(n=4000, seed=1)[0].x)
    weights, n = torch.tensor([0.5, 0.3, 0.2]), 4000
    error = (weights * (1 - weights) / n).sqrt()
    assert ((train.y.bincount() / n - weights).abs() < 4 * error).all()
    means = torch.tensor([[-2.0, 0.0], [2.0, 1.0], [0.5, -2.5]])
    for k in range(3):
        x = train.x[train.y == k]
        assert ((x.mean(0) - means[k]).abs() < 4 * x.std(0) / len(x) ** 0.5).all()
    with pytest.raises(ValueError, match="n is 0; expected a whole number, at least 1"):
        data.gaussian_mixture(n=0)


# --- Batches --------------------------------------------------------------------------

X, Y = torch.arange(20.0).reshape(10, 2), torch.arange(10)


def test_keys_are_the_numbers_of_the_examples_and_take_draws_afresh():
    raw = torch.full((5, 64), 128, dtype=torch.uint8)
    source = Examples(
        data.binarise_stochastically(raw),
        torch.arange(5),
        raw,
        data.binarise_stochastically,
    )
    batches = Batches(source, ("x", "y"), batch_size=2, shuffle=True)
    numbers, sizes = [], []
    for (index,) in batches.keys():
        numbers += index.tolist()
        sizes.append(batches.total)
        (x, y), (again, _) = batches.take(index), batches.take(index)
        assert torch.equal(y, index) and not torch.equal(x, again)
    assert sorted(numbers) == [0, 1, 2, 3, 4] and sizes == [2, 2, 1]


SOURCES = {
    "tensor": X,
    "tuple": (X,),
    "list": [X],
    "Examples": Examples(X, Y),
    "Dataset": TensorDataset(X),
    "DataLoader": DataLoader(TensorDataset(X), batch_size=4),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_source_gives_the_same_batches(name):
    batches = Batches(SOURCES[name], batch_size=4)
    assert len(batches) == 3 and batches.num_examples == 10
    for _ in range(2):  # may be walked through again
        found = list(batches)
        assert [len(batch) for batch in found] == [1, 1, 1]
        assert [len(x) for (x,) in found] == [4, 4, 2]
        assert torch.equal(torch.cat([x for (x,) in found]), X)


@pytest.mark.parametrize("name", ["tuple", "Examples", "Dataset", "DataLoader"])
def test_labels_stay_with_their_examples(name):
    sources = {
        "tuple": (X, Y),
        "Examples": Examples(X, Y),
        "Dataset": TensorDataset(X, Y),
        "DataLoader": DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True),
    }
    batches = Batches(sources[name], inputs=("x", "y"), batch_size=3, shuffle=True)
    x, y = map(torch.cat, zip(*batches, strict=True))
    assert torch.equal(x, X[y]) and y.sort().values.tolist() == list(range(10))
    assert y.tolist() != list(range(10))


def test_no_gradients_arrive_at_the_data():
    """Codes that another model made may be what is modelled."""
    layer = torch.nn.Linear(3, 3)
    codes = layer(torch.randn(20, 3))
    assert fit(models.FactorAnalysis(), codes, epochs=2, device="cpu").epoch == [1, 2]
    x = torch.randn(20, 3, requires_grad=True)
    for source in (x, TensorDataset(x), (codes,), TensorDataset(codes)):
        for shuffle in (False, True):
            for (part,) in Batches(source, batch_size=8, shuffle=shuffle):
                assert not part.requires_grad
    fit(models.FactorAnalysis(), x, epochs=2, device="cpu", batch_size=8)
    assert x.grad is None and layer.weight.grad is None


def test_a_dataset_of_bare_tensors():
    batches = Batches(DataLoader(X, batch_size=4))  # anything with len and index
    assert [tuple(x.shape) for (x,) in batches] == [(4, 2), (4, 2), (2, 2)]


def test_a_loader_without_automatic_batches():
    loader = DataLoader(TensorDataset(X.reshape(5, 2, 2)), batch_size=None)
    batches = Batches(loader, check=lambda x: x.shape == (2, 2) or pytest.fail(str(x)))
    assert [tuple(x.shape) for (x,) in batches] == [(2, 2)] * 5


def test_shuffled_passes_differ_and_cover_everything():
    batches = Batches(X, batch_size=3, shuffle=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = (torch.cat([x for (x,) in batches])[:, 0] for _ in range(2))
    assert not torch.equal(first, second)
    assert (
        first.sort().values.tolist()
        == second.sort().values.tolist()
        == X[:, 0].tolist()
    )


@pytest.mark.parametrize("kind", ["continuous", "stochastic"])
def test_noise_is_redrawn_in_the_precision_of_the_examples(kind):
    train, _ = data.digits(kind)
    double = replace(train[:50], x=train[:50].x.double())
    ((x,),) = Batches(double, shuffle=True)
    assert x.dtype == torch.float64
    model = models.VAE(latent_dim=2, hidden=(4,)).double()
    assert fit(model, double, epochs=1, device="cpu", progress=False).step == [1]


def test_noise_is_redrawn_in_training_and_fixed_otherwise():
    train, _ = data.digits("continuous")
    train = train[:50]
    fixed = Batches(train, batch_size=20)
    assert torch.equal(torch.cat([x for (x,) in fixed]), train.x)
    assert torch.equal(torch.cat([x for (x,) in fixed]), train.x)
    fresh = Batches(train, batch_size=50, shuffle=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ((one,),), ((two,),) = list(fresh), list(fresh)
    assert fresh.parts[0].dtype == torch.uint8  # bytes travel, floats are made there
    levels = [x.mul(256).floor().sum() for x in (one, two, train.x)]
    assert abs(levels[0] - levels[1]) / levels[2] < 1e-4  # the same images …
    assert not torch.equal(one.sum(1).sort().values, two.sum(1).sort().values)  # … anew


# --- data that do not fit: a DataLoader -----------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Forty digits as files, in a folder for each class."""
    train, _ = data.digits("grey")
    for i, (x, y) in enumerate(zip(train.x[:40], train.y[:40], strict=True)):
        place = tmp_path / "images" / str(y.item())
        place.mkdir(parents=True, exist_ok=True)
        image = x.mul(255).round().byte().view(28, 28).numpy()
        Image.fromarray(image).save(place / f"{i}.png")
    return tmp_path / "images"


def flat(image) -> torch.Tensor:
    """A file's grey values: (784,)."""
    return torch.from_numpy(np.array(image.convert("L"))).flatten() / 255


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_of_images(folder, workers):
    """Every image once, with its class, in another order each time."""
    images = datasets.ImageFolder(folder, transform=flat)
    loader = DataLoader(images, batch_size=16, shuffle=True, num_workers=workers)
    batches = Batches(loader, inputs=("x", "y"))
    assert len(batches) == 3 and batches.num_examples == 40
    passes = [list(batches) for _ in range(2)]
    for found in passes:
        assert [len(x) for x, _ in found] == [16, 16, 8]
        x, y = map(torch.cat, zip(*found, strict=True))
        given = {
            flat(img).numpy().tobytes(): int(img_class)
            for img, img_class in (
                (Image.open(path), Path(path).parent.name) for path, _ in images.samples
            )
        }
        assert {v.numpy().tobytes(): int(c) for v, c in zip(x, y, strict=True)} == given
    assert not torch.equal(passes[0][0][0], passes[1][0][0])


def test_fit_on_a_folder_of_images_is_fit_on_its_tensors(folder, tmp_path):
    """Also where it is stopped and goes on."""
    images = datasets.ImageFolder(folder, transform=flat)
    tensors = TensorDataset(
        *(
            torch.stack(part)
            for part in zip(*((x, torch.tensor(y)) for x, y in images), strict=True)
        )
    )

    def train(examples, epochs=4, **files):
        torch.manual_seed(0)
        model = models.ConditionalVAE(latent_dim=2, hidden=(8,))
        loader = DataLoader(examples, batch_size=16, shuffle=True, num_workers=1)
        options = {"epochs": epochs, "progress": False, "device": "cpu"} | files
        return fit(model, loader, **options).train_elbo

    def stop(model):
        if path.exists():
            raise KeyboardInterrupt
        return {}

    path = tmp_path / "run.pt"
    expected = train(tensors)
    assert expected == sorted(expected) and train(images) == expected
    with pytest.raises(KeyboardInterrupt):
        train(images, checkpoint=path, record=stop)
    assert train(images, checkpoint=path, resume=True) == expected


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("size", [5, None])
def test_a_process_loads_its_part_of_each_batch_alone(workers, size):
    """The parts of two processes, side by side, are the batches of one."""
    examples = TensorDataset(X if size else X.reshape(2, 5, 2))
    loaders = [
        DataLoader(
            examples,
            batch_size=size,
            shuffle=True,
            num_workers=workers,
            generator=torch.Generator().manual_seed(0),
            collate_fn=Loaded() if size else None,
        )
        for _ in range(3)
    ]
    first, second = (lambda n: slice(0, n // 2)), (lambda n: slice(n // 2, n))
    whole, *parts = (
        Batches(loader, part=part)
        for loader, part in zip(loaders, (None, first, second), strict=True)
    )
    assert [batches.generators for batches in parts] == [
        [loader.generator] for loader in loaders[1:]
    ]
    for _ in range(2):
        for (x,), (one,), (two,) in zip(whole, *parts, strict=True):
            assert torch.equal(x, torch.cat([one, two])) and len(one) == 2
            assert [batches.total for batches in (whole, *parts)] == [5] * 3
    if size and not workers:  # once to check the first example, then two passes
        assert [loader.collate_fn.count for loader in loaders] == [21, 9, 13]


class Loaded:
    """Collates, and counts the examples."""

    count = 0

    def __call__(self, examples):
        self.count += len(examples)
        return default_collate(examples)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


@pytest.mark.parametrize(
    "source, error, message",
    [
        (X.numpy(), TypeError, "data is a ndarray; expected a tensor, a tuple of"),
        (X.tolist(), TypeError, "data holds a list; expected tensors"),
        ((X, None), TypeError, "data holds a NoneType; expected tensors"),
        (Examples(X.numpy()), TypeError, "data holds a ndarray; expected tensors"),
        (Stream(), TypeError, "Stream, an IterableDataset; expected one with a length"),
        (
            DataLoader(Stream()),
            TypeError,
            "an IterableDataset; expected one with a len",
        ),
        (X[:0], ValueError, "the data is empty; expected at least one example"),
        ((), ValueError, "the data is empty"),
        (torch.tensor(1.0), ValueError, "the data is empty"),
        (Examples(X[:0]), ValueError, "the data is empty"),
        (TensorDataset(X[:0]), ValueError, "the data is empty"),
        (DataLoader(TensorDataset(X[:0])), ValueError, "the data is empty"),
        (
            DataLoader(X, batch_size=11, drop_last=True),
            ValueError,
            "the DataLoader has no batch of its 10 examples; .* or drop_last=False",
        ),
        ((X, Y[:9]), ValueError, r"lengths \[10, 9\]; expected one length"),
        ((X, Y), ValueError, r"gives 2 tensors .*; expected 1, since .* takes \(x\)"),
        (TensorDataset(X, Y), ValueError, "gives 2 tensors for each batch; expected 1"),
        (DataLoader(TensorDataset(X, Y)), ValueError, "gives 2 tensors"),
    ],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_unsuitable_sources_are_refused(source, error, message, shuffle):
    with pytest.raises(error, match=message):
        Batches(source, shuffle=shuffle)


def test_labels_that_are_missing():
    with pytest.raises(ValueError, match=r"have no y; the model expects \('x', 'y'\)"):
        Batches(Examples(X), inputs=("x", "y"))


@pytest.mark.parametrize("size", [0, -1, 2.5, None])
def test_batch_size_is_a_positive_whole_number(size):
    with pytest.raises(
        ValueError, match=f"batch_size is {size}; expected a whole numb"
    ):
        Batches(X, batch_size=size)


def test_check_sees_the_data_before_anything_else():
    seen = []
    for source in SOURCES.values():
        Batches(source, batch_size=4, check=lambda x: seen.append(tuple(x.shape)))
    assert seen == [(10, 2)] * 4 + [(1, 2)] * 2
