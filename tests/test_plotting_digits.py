"""The scatter plot of codes by digit."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch

from aevb.plotting import DIGIT_COLORS, digit_scatter


def test_digit_scatter_labels_each_digit_at_its_median():
    points = torch.tensor([[0.0, 0.0], [2.0, 2.0], [10.0, 0.0], [5.0, 5.0]])
    ax = digit_scatter(points, torch.tensor([3, 3, 3, 7]))
    try:
        placed = {t.get_text(): t.get_position() for t in ax.texts}
        assert placed == {"3": (2.0, 0.0), "7": (5.0, 5.0)}
        (dots,) = ax.collections
        np.testing.assert_array_equal(dots.get_offsets(), points)
        three, seven = dots.get_facecolors()[[0, 3], :3]
        assert matplotlib.colors.to_hex(three) == DIGIT_COLORS[3].lower()
        assert matplotlib.colors.to_hex(seven) == DIGIT_COLORS[7].lower()
    finally:
        plt.close(ax.figure)
