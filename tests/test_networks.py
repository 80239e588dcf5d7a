"""Tests of aevb/networks.py."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from aevb import networks
from aevb.distributions import ContinuousBernoulli


def test_positive_is_softplus_off_zero():
    a = torch.tensor([-1000.0, -200.0, -3.0, 0.0, 2.0, 50.0], requires_grad=True)
    std = networks.positive(a)
    expected = np.logaddexp(0, a.detach().double().numpy()) + networks.SMALLEST_STD
    np.testing.assert_allclose(std.detach(), expected, rtol=1e-6)
    assert (std > 0).all()
    std.sum().backward()
    assert a.grad.isfinite().all()


def test_mlp_layers():
    mlp = networks.MLP(7, (5, 4), dropout=0.25)
    kinds = [networks.Linear, nn.ReLU, nn.Dropout] * 2
    assert [type(layer) for layer in mlp] == kinds
    assert [(m.in_features, m.out_features) for m in (mlp[0], mlp[3])] == [
        (7, 5),
        (5, 4),
    ]
    assert mlp[2].p == 0.25 and mlp.features == 4
    assert mlp(torch.zeros(2, 3, 7)).shape == (2, 3, 4)
    with_dropout = networks.MLP(7, (5,), dropout=0.5)  # its weights have the same names
    assert networks.MLP(7, (5,)).state_dict().keys() == with_dropout.state_dict().keys()


def test_activations():
    mlp = networks.MLP(3, (4,), activation="tanh")
    x = torch.randn(5, 3)
    torch.testing.assert_close(mlp(x), torch.tanh(mlp[0](x)))
    with pytest.raises(ValueError, match=r"activation is 'sine'; expected one of"):
        networks.MLP(3, (4,), activation="sine")


def test_mlp_without_hidden_layers_is_the_identity():
    mlp = networks.MLP(7, ())
    x = torch.arange(7.0)
    assert torch.equal(mlp(x), x) and mlp.features == 7


def test_a_linear_layer_on_several_inputs_is_one_on_their_concatenation():
    torch.manual_seed(0)
    layer = networks.Linear((3, 2), 4)
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    torch.testing.assert_close(
        layer(x, y), torch.cat([x, y], 1) @ layer.weight.T + layer.bias
    )
    every = layer(x[:, None], torch.eye(2))  # (5, 2, 4)
    torch.testing.assert_close(every[:, 1], layer(x, torch.eye(2)[1].expand(5, 2)))
    with pytest.raises(ValueError):
        layer(x)


def test_the_gradient_of_a_layer_on_one_input_is_not_copied():
    """What a product gives is the gradient: nothing stands between the two."""
    x = torch.zeros(3, 4)
    for inputs, direct in (((4,), True), ((2, 2), False)):
        layer = networks.Linear(inputs, 5)
        y = layer(*x.split(inputs, dim=1))
        above = {type(node).__name__ for node in ancestors(y.grad_fn)}
        assert ("SplitWithSizesBackward0" in above) != direct


def ancestors(node):
    """The nodes of the graph that the gradient at ``node`` goes through."""
    yield node
    for parent, _ in node.next_functions:
        if parent is not None:
            yield from ancestors(parent)


def test_mlp_of_several_inputs():
    torch.manual_seed(0)
    joined = networks.MLP((3, 2), (5, 4))
    alone = networks.MLP(5, (5, 4))
    alone.load_state_dict(joined.state_dict())
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    torch.testing.assert_close(joined(x, y), alone(torch.cat([x, y], 1)))
    with pytest.raises(ValueError, match="at least one width"):
        networks.MLP((3, 2), ())


def test_output_layer_keeps_the_precision_of_its_weights():
    x = torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert networks.Linear((3,), 4)(x).dtype == torch.bfloat16
        assert networks.linear(3, 4)(x).dtype == torch.float32
        q = networks.GaussianHead(3, 4)(x)
        assert q.rsample().dtype == q.log_prob(q.mean).dtype == torch.float32


def test_gaussian_head():
    head = networks.GaussianHead(4, 3)
    h = torch.linspace(-1, 1, 20).reshape(5, 4)
    q = head(h)
    assert q.batch_shape == (5,) and q.event_shape == (3,)
    torch.testing.assert_close(q.mean, h @ head.mean.weight.T + head.mean.bias)
    before = h @ head.std.weight.T + head.std.bias
    std = before.exp().add(1).log() + 1e-6
    torch.testing.assert_close(q.stddev, std)
    z = torch.linspace(-2, 2, 15).reshape(5, 3)
    density = stats.norm(q.mean.detach(), q.stddev.detach()).logpdf(z).sum(-1)
    np.testing.assert_allclose(q.log_prob(z).detach(), density, rtol=1e-5)


@pytest.mark.parametrize("name", networks.LIKELIHOODS)
def test_likelihood_heads_are_products_over_coordinates(name):
    head = networks.likelihood_head(name, 4, 6)
    p = head(torch.linspace(-1, 1, 40).reshape(2, 5, 4))
    assert p.batch_shape == (2, 5) and p.event_shape == (6,)
    x = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    assert p.log_prob(x).shape == (2, 5)
    torch.testing.assert_close(p.log_prob(x), p.base_dist.log_prob(x).sum(-1))
    assert p.mean.shape == (2, 5, 6)


def test_bernoulli_head_density():
    head = networks.likelihood_head("bernoulli", 4, 3)
    h, x = torch.ones(1, 4), torch.tensor([[1.0, 0.0, 1.0]])
    probs = torch.sigmoid(head.logits(h)).detach().numpy()
    expected = stats.bernoulli(probs).logpmf(x.numpy()).sum(-1)
    np.testing.assert_allclose(head(h).log_prob(x).detach(), expected, rtol=1e-5)


def test_continuous_bernoulli_head_is_the_exact_one():
    head = networks.likelihood_head("continuous_bernoulli", 4, 3)
    assert isinstance(head(torch.ones(1, 4)).base_dist, ContinuousBernoulli)


def test_gaussian_likelihood_has_one_learned_scale():
    head = networks.likelihood_head("gaussian", 4, 3)
    p = head(torch.linspace(-1, 1, 8).reshape(2, 4))
    std = math.log(2) + 1e-6
    torch.testing.assert_close(p.stddev, torch.full((2, 3), std))
    x = torch.zeros(2, 3)
    expected = stats.norm(p.mean.detach(), std).logpdf(x).sum(-1)
    np.testing.assert_allclose(p.log_prob(x).detach(), expected, rtol=1e-5)
    assert head.std.numel() == 1


@pytest.mark.parametrize(
    "name, inside, outside",
    [
        ("bernoulli", [0.0, 1.0], [0.0, 0.5, 1.0]),
        ("continuous_bernoulli", [0.0, 0.3, 1.0], [-0.001, 0.5]),
        ("continuous_bernoulli", [1.0], [1.001]),
        ("gaussian", [-5.0, 700.0], [0.0, math.inf]),
    ],
)
def test_support(name, inside, outside):
    head = networks.LIKELIHOODS[name]
    assert head.supports(torch.tensor(inside))
    assert not head.supports(torch.tensor(outside))
    assert not head.supports(torch.tensor([math.nan]))


def test_unknown_likelihood():
    expected = r"likelihood is 'cauchy'; expected one of \('bernoulli', 'continuous_b"
    with pytest.raises(ValueError, match=expected):
        networks.likelihood_head("cauchy", 4, 3)
