"""Tests of aevb/plotting.py; tests/test_player.py has those of the player."""

import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from aevb import plotting
from aevb.training import History


@pytest.fixture(autouse=True)
def no_windows_and_no_figures_left():
    backend = mpl.get_backend()
    plt.switch_backend("agg")
    with mpl.rc_context():
        yield
    plt.close("all")
    plt.switch_backend(backend)


def picture(ax):
    return np.asarray(ax.images[0].get_array())


def test_importing_the_package_does_not_import_matplotlib():
    code = (
        "import sys, aevb; assert 'matplotlib' not in sys.modules;"
        " assert 'IPython' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_changes_no_global_state():
    code = (
        "import torch; a = torch.get_rng_state(), torch.get_default_dtype(),"
        " torch.get_num_threads(); import aevb, aevb.plotting, aevb.notebook;"
        " b = torch.get_rng_state(), torch.get_default_dtype(),"
        " torch.get_num_threads(); assert a[0].equal(b[0]) and a[1:] == b[1:]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_book_style_draws_on_opaque_white():
    plotting.book_style()
    fig, _ = plt.subplots()
    assert fig.get_facecolor() == (1, 1, 1, 1)
    assert mpl.rcParams["savefig.facecolor"] == "white"
    assert not mpl.rcParams["savefig.transparent"]
    assert mpl.rcParams["figure.figsize"][0] <= 7
    used = [entry["color"] for entry in mpl.rcParams["axes.prop_cycle"]]
    assert set(used) <= set(plotting.COLORS.values()) and len(set(used)) == len(used)


@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_image_grid_puts_images_in_rows(shape):
    images = torch.stack([torch.full(shape, k / 8) for k in range(5)])
    ax = plotting.image_grid(images, columns=3, title="five")
    expected = np.zeros((4, 6))
    for k in range(5):
        row, column = divmod(k, 3)
        expected[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = k / 8
    np.testing.assert_allclose(picture(ax), expected)
    assert ax.get_title() == "five"
    assert ax.images[0].get_clim() == (0, 1)
    assert ax.figure.get_figwidth() <= 7


def test_image_grid_keeps_each_image_the_right_way_up():
    image = torch.arange(9.0).reshape(3, 3) / 9
    ax = plotting.image_grid(torch.stack([image, image.T]), columns=2)
    np.testing.assert_allclose(picture(ax), np.hstack([image, image.T]))


def test_image_grid_draws_where_it_is_told_and_takes_gradients():
    _, ax = plt.subplots()
    images = torch.rand(2, 784, requires_grad=True)
    assert plotting.image_grid(images, columns=2, ax=ax) is ax
    assert picture(ax).shape == (28, 56)


def test_image_grid_refuses_what_is_not_square():
    with pytest.raises(ValueError, match=r"shape \(2, 10\); expected \(N, side²\)"):
        plotting.image_grid(torch.zeros(2, 10))


def test_learning_curve():
    history = History(
        epoch=[1.0, 2.0],
        step=[5.0, 10.0],
        train_elbo=[-3.0, -2.0],
        test_elbo=[-4.0, -3.0],
    )
    ax = plotting.learning_curve(history, label="a")
    training, test = ax.lines
    assert list(training.get_ydata()) == [-3, -2] and list(test.get_ydata()) == [-4, -3]
    assert training.get_color() == test.get_color()
    assert training.get_linestyle() != test.get_linestyle()
    assert ax.get_xlabel() == "epoch" and "nats" in ax.get_ylabel()
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["a, training", "a, test"]
    del history["test_elbo"]
    same = plotting.learning_curve(history, ax=ax, x="step")
    assert same is ax and list(ax.lines[2].get_xdata()) == [5, 10]
    assert len(ax.lines) == 3


def test_ellipse_is_the_contour_of_a_gaussian():
    """Its points are all ``scale`` Mahalanobis distances from the mean."""
    mean = torch.tensor([1.0, -2.0])
    cov = torch.tensor([[2.0, 0.9], [0.9, 0.7]])
    _, ax = plt.subplots()
    patch = plotting.ellipse(ax, mean, cov, scale=1.5, color="red")
    assert patch in ax.patches and not patch.get_fill()
    points = patch.get_patch_transform().transform(patch.get_path().vertices[:-1])
    on_curve = points[::3]  # the ends of the Bézier segments
    centred = on_curve - mean.numpy()
    distance = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(cov), centred) ** 0.5
    np.testing.assert_allclose(distance, 1.5, rtol=1e-5)
    assert np.ptp(on_curve[:, 0]) == pytest.approx(2 * 1.5 * 2**0.5, rel=0.03)


def test_graphical_model_shows_q_if_asked():
    for phi, texts in (("", ["N", "z", "x", "θ"]), ("φ", ["N", "z", "x", "θ", "φ"])):
        _, ax = plt.subplots()
        assert plotting.graphical_model(ax, "θ", phi) is ax
        assert [t.get_text() for t in ax.texts if t.get_text()] == texts


@pytest.mark.parametrize(
    "label, arrows",
    [("", 2), ("both", 4), ("prior", 3), ("likelihood", 3)],
)
def test_graphical_model_with_a_label(label, arrows):
    drawn = lambda ax: sum(t.get_text() == "" for t in ax.texts)  # noqa: E731
    _, ax = plt.subplots()
    plotting.graphical_model(ax, "θ", label=label)
    assert drawn(ax) == arrows
    assert ("y" in [t.get_text() for t in ax.texts]) == bool(label)
    for observed, face in ((True, 0.85), (False, 1.0)):
        _, ax = plt.subplots()
        plotting.graphical_model(ax, "θ", "φ", label=label, observed=observed)
        more = 2 + bool(label) + (bool(label) and not observed)
        assert drawn(ax) == arrows + more
        assert all(p.get_facecolor()[0] == face for p in ax.patches[3:])


def test_graphical_model_refuses_an_unknown_label():
    with pytest.raises(ValueError, match="label is 'x'; expected one of"):
        plotting.graphical_model(plt.subplots()[1], "θ", label="x")


def test_tensors_with_gradients_are_drawn():
    _, ax = plt.subplots()
    mean, points = torch.ones(2).requires_grad_(), torch.rand(5, 2).requires_grad_()
    assert plotting.ellipse(ax, mean, mean.diag()).center == (1.0, 1.0)
    plotting.digit_scatter(points, torch.arange(5), ax)
    assert len(ax.texts) == 5


def test_digit_scatter_names_every_digit():
    points = torch.cat([torch.randn(30, 2) * 0.1 + k for k in range(10)])
    labels = torch.arange(10).repeat_interleave(30)
    ax = plotting.digit_scatter(points, labels)
    assert [text.get_text() for text in ax.texts] == [str(k) for k in range(10)]
    for k, text in enumerate(ax.texts):
        assert np.allclose(text.get_position(), k, atol=0.1)
    assert len(ax.collections[0].get_offsets()) == 300
    assert len(set(plotting.DIGIT_COLORS)) == 10
