"""Tests of aevb/distributions.py, against quadrature, scipy, mpmath and torch."""

import math
from functools import partial
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import (
    AffineTransform,
    Binomial,
    Categorical,
    ComposeTransform,
    ExpTransform,
    Gamma,
    Gumbel,
    Independent,
    Kumaraswamy,
    LogisticNormal,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Pareto,
    Poisson,
    RelaxedOneHotCategorical,
    StudentT,
    TransformedDistribution,
    Weibull,
)
from torch.distributions import ContinuousBernoulli as ClampedContinuousBernoulli
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical
from torch.utils._python_dispatch import TorchDispatchMode

from aevb.distributions import (
    Bernoulli,
    ContinuousBernoulli,
    detached,
    diagonal_normal,
    logit_of_mean,
    rsample,
)

MAGNITUDES = (
    *(1e-30, 1e-8, 1e-3, 0.0199, 0.0201, 0.1, 0.499, 0.501, 0.999, 1.001, 2.0, 5.0),
    *(15.0, 17.0, 40.0, 87.0, 89.0, 104.0, 300.0, 500.0, 999.0, 1000.0),
)
LOGITS = torch.tensor([0.0, *MAGNITUDES, *(-m for m in MAGNITUDES)])
VALUES = torch.tensor(
    [0.0, 1e-30, 1e-7, 1 / 512, 0.1, 0.3, 0.5, 0.7, 0.9, 511 / 512, 1 - 2.0**-24, 1.0]
)


def quadrature(logit: float, function=lambda x: 1.0) -> float:
    """∫₀¹ f(x) exp(ℓ x - max(ℓ, 0)) dx by adaptive quadrature in float64."""
    peak = 1.0 if logit > 0 else 0.0
    width = min(1.0, 40 / max(abs(logit), 1e-300))
    cuts = {0.0, 1.0, *(abs(peak - width * part) for part in (1 / 40, 1 / 4, 1))}
    total, edges = 0.0, sorted(cuts)
    for low, high in pairwise(edges):
        total += integrate.quad(
            lambda x: function(x) * math.exp(logit * (x - peak)),
            low,
            high,
            epsabs=0,
            epsrel=1e-12,
        )[0]
    return total


def log_prob(logits, values):
    return ContinuousBernoulli(logits, validate_args=False).log_prob(values)


def within(found, expected, tolerance=1e-5):
    """|found - expected| <= tolerance · max(1, |expected|), and nothing is NaN."""
    found = np.asarray(found, dtype=float)
    error = np.abs(found - expected) / np.maximum(1.0, np.abs(expected))
    return bool((error <= tolerance).all())


# --- the continuous Bernoulli: log-density -----------------------------------------


def test_log_density_agrees_with_quadrature_in_float32():
    p = ContinuousBernoulli(LOGITS[:, None])
    found = p.log_prob(VALUES)
    assert found.dtype == torch.float32 and found.shape == (len(LOGITS), len(VALUES))
    for row, logit in zip(found, LOGITS.tolist(), strict=True):
        log_normalizer = max(logit, 0.0) + math.log(quadrature(logit))
        expected = VALUES.double().numpy() * logit - log_normalizer
        assert within(row, expected), logit


@pytest.mark.parametrize("low, high", [(-1000.0, 1000.0), (-1.0, 1.0), (-0.02, 0.02)])
def test_log_density_agrees_with_quadrature_on_a_fine_sweep(low, high):
    logits = torch.linspace(low, high, 151)
    values = torch.rand(151, generator=torch.Generator().manual_seed(0))
    found = ContinuousBernoulli(logits).log_prob(values)
    expected = [
        x * a - max(a, 0.0) - math.log(quadrature(a))
        for a, x in zip(logits.tolist(), values.tolist(), strict=True)
    ]
    assert within(found, np.array(expected))


def test_log_density_in_float64_agrees_with_sixty_digits():
    logits, values = LOGITS.double(), VALUES.double()
    found = ContinuousBernoulli(logits[:, None]).log_prob(values)
    with mpmath.workdps(60):
        for row, logit in zip(found.tolist(), logits.tolist(), strict=True):
            a = mpmath.mpf(logit)
            constant = mpmath.log(mpmath.expm1(a) / a) if a else mpmath.mpf(0)
            expected = [float(x * a - constant) for x in values.tolist()]
            assert within(row, np.array(expected), 3e-11), logit


def test_density_integrates_to_one():
    for logit in (-300.0, -7.0, -0.3, 0.0, 0.02, 1.0, 50.0):
        p = ContinuousBernoulli(torch.tensor(logit, dtype=torch.float64))
        peak = float(logit > 0)
        cuts = [abs(peak - 40 / max(abs(logit), 40.1)), 0.5]

        def density(x, p=p):
            return p.log_prob(torch.tensor(x, dtype=torch.float64)).exp().item()

        total, _ = integrate.quad(density, 0, 1, points=cuts, epsabs=1e-10)
        assert total == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("clamped", ["probs", "logits"])
def test_log_density_agrees_with_torch_where_torch_does_not_clamp(clamped):
    logits = torch.linspace(-8, 8, 161, dtype=torch.float64)
    values = torch.linspace(0, 1, 11, dtype=torch.float64)
    parameter = {"logits": logits[:, None], "probs": torch.sigmoid(logits[:, None])}
    theirs = ClampedContinuousBernoulli(**{clamped: parameter[clamped]})
    ours = ContinuousBernoulli(logits[:, None])
    # torch's own series near 1/2 is what limits the agreement
    torch.testing.assert_close(
        ours.log_prob(values), theirs.log_prob(values), atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(
        ours.mean.expand(-1, 1), theirs.mean, atol=2e-5, rtol=1e-5
    )


def test_torchs_density_is_clamped_where_ours_is_not():
    """The trap of chapter 7: a black pixel with logit -500 is worth log 500 nats."""
    logit, black = torch.tensor(-500.0), torch.tensor(1 / 512)
    exact = math.log(500) - 500 / 512
    ours = ContinuousBernoulli(logit).log_prob(black).item()
    theirs = ClampedContinuousBernoulli(probs=torch.sigmoid(logit)).log_prob(black)
    assert ours == pytest.approx(exact, rel=1e-6)
    assert abs(theirs.item() - exact) > 2


# --- the continuous Bernoulli: gradients -------------------------------------------


def test_gradients_are_finite_and_right_in_float32():
    """d/dℓ = x - E[x], with the mean by quadrature; d/dx = ℓ."""
    logits = LOGITS[:, None].repeat(1, len(VALUES)).requires_grad_()
    values = VALUES.repeat(len(LOGITS), 1).requires_grad_()
    ContinuousBernoulli(logits).log_prob(values).sum().backward()
    assert logits.grad.isfinite().all() and values.grad.isfinite().all()
    means = np.array(
        [quadrature(a, lambda x: x) / quadrature(a) for a in LOGITS.tolist()]
    )
    expected = VALUES.double().numpy() - means[:, None]
    np.testing.assert_allclose(logits.grad, expected, atol=1e-6)
    torch.testing.assert_close(values.grad, logits.detach(), rtol=0, atol=0)


def test_gradients_agree_with_finite_differences():
    magnitudes = [0.0, 1e-8, 1e-3, 0.0195, 0.021, 0.1, 0.49, 0.51, 2.0, 30.0, 500.0]
    logits = torch.tensor([s * m for m in magnitudes for s in (1, -1)]).double()
    logits = logits[:, None].requires_grad_()
    values = torch.tensor([0.001, 0.3, 0.999]).double().requires_grad_()
    assert torch.autograd.gradcheck(log_prob, (logits, values), atol=1e-6)
    for moment in ("mean", "variance"):
        of_logits = partial(
            lambda name, a: getattr(ContinuousBernoulli(a), name), moment
        )
        assert torch.autograd.gradcheck(of_logits, (logits,), atol=1e-6), moment


def test_second_derivative_is_minus_the_variance():
    logits = LOGITS.clone().requires_grad_()
    log_p = ContinuousBernoulli(logits).log_prob(torch.tensor(0.3))
    (first,) = torch.autograd.grad(log_p.sum(), logits, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), logits)
    variance = ContinuousBernoulli(LOGITS).variance
    torch.testing.assert_close(second, -variance, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mean", "variance", "entropy"])
def test_moments_have_finite_gradients_at_extreme_logits(name):
    logits = LOGITS.clone().requires_grad_()
    moment = getattr(ContinuousBernoulli(logits), name)
    (moment() if callable(moment) else moment).sum().backward()
    assert logits.grad.isfinite().all()


def test_log_density_works_under_torch_func():
    logits, values = torch.tensor([-600.0, 0.0, 3.0]), torch.tensor([0.0, 0.5, 0.9])
    found = torch.func.vmap(torch.func.grad(log_prob))(logits, values)
    torch.testing.assert_close(found, values - ContinuousBernoulli(logits).mean)


class Passes(TorchDispatchMode):
    """Counts the operations that write as many numbers as the input has."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not function.is_view:
            self.count += result.numel() >= self.size
        return result


@pytest.mark.parametrize("backward", [False, True])
def test_log_density_takes_fewer_passes_over_memory_than_torchs(backward):
    """What makes a million evaluations no slower; `make benchmark` measures it."""
    count = {}
    for family in (ContinuousBernoulli, ClampedContinuousBernoulli):
        logits = torch.linspace(-30, 30, 1000).requires_grad_(backward)
        values = torch.linspace(0, 1, 1000)
        with Passes(1000) as passes:
            log_p = family(logits=logits, validate_args=False).log_prob(values)
            if backward:
                log_p.sum().backward()
        count[family] = passes.count
    assert count[ContinuousBernoulli] < 0.75 * count[ClampedContinuousBernoulli]


# --- the continuous Bernoulli: moments, cdf, draws ---------------------------------


def test_mean_and_variance_agree_with_quadrature():
    p = ContinuousBernoulli(LOGITS)
    for i, logit in enumerate(LOGITS.tolist()):
        mass = quadrature(logit)
        mean = quadrature(logit, lambda x: x) / mass
        variance = quadrature(logit, partial(lambda m, x: (x - m) ** 2, mean)) / mass
        assert p.mean[i].item() == pytest.approx(mean, rel=1e-6), logit
        assert p.variance[i].item() == pytest.approx(variance, rel=5e-6), logit
        assert p.stddev[i].item() == pytest.approx(variance**0.5, rel=5e-6), logit


def test_entropy_agrees_with_quadrature():
    entropies = ContinuousBernoulli(LOGITS).entropy()
    for found, logit in zip(entropies.tolist(), LOGITS.tolist(), strict=True):
        mass, peak = quadrature(logit), float(logit > 0)
        # -log p(x) = log mass - ℓ (x - peak)
        from_peak = quadrature(logit, partial(lambda p, x: x - p, peak)) / mass
        expected = math.log(mass) - logit * from_peak
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5), logit


def test_entropy_is_even_and_exact_at_any_size():
    logits = torch.tensor([500.0, 1e4, 1e6, 1e8])
    expected = 1 - logits.log()
    for some in (logits, -logits):
        torch.testing.assert_close(ContinuousBernoulli(some).entropy(), expected)
    logits = torch.tensor([-3.0, -0.01, 0.0, 0.01, 3.0], requires_grad=True)
    entropy = ContinuousBernoulli(logits).entropy()
    (slope,) = torch.autograd.grad(entropy.sum(), logits)
    variance = ContinuousBernoulli(logits).variance
    torch.testing.assert_close(slope, -logits * variance)  # dH/dℓ = -ℓ Var[x]


def reference_cdf(logit, x):
    return mpmath.expm1(logit * x) / mpmath.expm1(logit) if logit else x


def reference_icdf(logit, u):
    return mpmath.log(1 - u + u * mpmath.exp(logit)) / logit if logit else u


@pytest.mark.parametrize(
    "name, reference", [("cdf", reference_cdf), ("icdf", reference_icdf)]
)
def test_cdf_and_icdf_and_their_gradients_agree_with_sixty_digits(name, reference):
    logits = LOGITS[:, None].repeat(1, len(VALUES)).requires_grad_()
    found = getattr(ContinuousBernoulli(logits), name)(VALUES)
    found.sum().backward()
    swapped = lambda value, logit: reference(logit, value)  # noqa: E731
    with mpmath.workdps(60):
        for i, logit in enumerate(LOGITS.tolist()):
            for j, value in enumerate(VALUES.tolist()):
                of_logit = partial(swapped, mpmath.mpf(value))
                expected = float(of_logit(mpmath.mpf(logit)))
                slope = float(mpmath.diff(of_logit, logit, h=mpmath.mpf("1e-15")))
                where = f"{name} of {value} at {logit}"
                assert abs(found[i, j].item() - expected) < 5e-7, where
                assert abs(logits.grad[i, j].item() - slope) < 1e-5, where


def test_icdf_inverts_cdf():
    p = ContinuousBernoulli(torch.linspace(-30, 30, 61).double()[:, None])
    u = torch.linspace(0.0, 1.0, 21).double()
    torch.testing.assert_close(p.cdf(p.icdf(u)), u.expand(61, 21), rtol=0, atol=1e-9)


@pytest.mark.parametrize("logit", [-500.0, -3.0, 0.0, 0.01, 0.4, 12.0])
def test_draws_have_the_distribution(logit):
    g = torch.Generator().manual_seed(0)
    p = ContinuousBernoulli(torch.tensor(logit))
    x = rsample(p, (20000,), g)
    assert 0 <= x.min() and x.max() <= 1
    exact = ContinuousBernoulli(torch.tensor(logit, dtype=torch.float64))

    def cdf(value):
        return exact.cdf(torch.as_tensor(value).double()).numpy()

    assert stats.kstest(x.double().numpy(), cdf).pvalue > 1e-3


def test_reparameterised_gradient_is_the_derivative_of_the_mean():
    """d/dℓ E[x] = Var[x]: the pathwise gradient has it as its expectation."""
    for logit in (-500.0, -20.0, -1.0, 0.0, 0.5, 3.0, 100.0):
        logits = torch.full((40000,), logit, dtype=torch.float64, requires_grad=True)
        g = torch.Generator().manual_seed(1)
        rsample(ContinuousBernoulli(logits), (), g).sum().backward()
        mean, error = logits.grad.mean(), logits.grad.std() / 200
        variance = ContinuousBernoulli(logits.detach()[0]).variance
        assert abs(mean - variance) < 4 * error + 1e-12


def test_reparameterised_gradient_is_finite_for_every_uniform_number():
    u = torch.tensor([0.0, 2.0**-24, 0.5, 1 - 2.0**-24, 1.0])
    logits = LOGITS[:, None].repeat(1, len(u)).requires_grad_()
    x = ContinuousBernoulli(logits).icdf(u)
    x.sum().backward()
    assert x.isfinite().all() and logits.grad.isfinite().all()
    assert (x[:, 0] == 0).all() and (x[:, -1] == 1).all()


# --- the continuous Bernoulli: as a torch distribution ------------------------------


def test_batch_and_event_shapes():
    p = ContinuousBernoulli(torch.zeros(5, 3))
    assert p.batch_shape == (5, 3) and p.event_shape == ()
    assert p.rsample((2,)).shape == (2, 5, 3)
    wide = p.expand((4, 5, 3))
    assert isinstance(wide, ContinuousBernoulli) and wide.batch_shape == (4, 5, 3)
    assert wide.log_prob(torch.full((5, 3), 0.2)).shape == (4, 5, 3)
    assert Independent(p, 1).log_prob(torch.full((5, 3), 0.2)).shape == (5,)
    assert Independent(p, 1).mean.shape == (5, 3)


def test_arguments_are_validated_if_asked():
    p = ContinuousBernoulli(torch.zeros(3), validate_args=True)
    with pytest.raises(ValueError, match="within the support"):
        p.log_prob(torch.tensor([0.0, 0.5, 1.5]))
    with pytest.raises(ValueError, match="logits"):
        ContinuousBernoulli(torch.tensor([math.nan]), validate_args=True)
    ContinuousBernoulli(torch.zeros(3), validate_args=False).log_prob(torch.ones(3) * 2)


def test_bernoulli_is_torchs():
    logits = torch.tensor([[-500.0], [-3.0], [0.0], [2.0], [90.0]], dtype=torch.float64)
    x = torch.tensor([0.0, 1.0], dtype=torch.float64)  # broadcasts
    values, gradients = [], []
    for kind in (Bernoulli, torch.distributions.Bernoulli):
        leaf = logits.clone().requires_grad_()
        value = kind(logits=leaf).log_prob(x)
        gradients.append(torch.autograd.grad(value.sum(), leaf)[0])
        values.append(value)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)
    with pytest.raises(ValueError, match="support"):
        Bernoulli(logits=logits).log_prob(x + 0.5)


def test_parameter_is_not_the_mean():
    p = ContinuousBernoulli(torch.tensor(3.0))
    assert p.probs.item() == pytest.approx(1 / (1 + math.exp(-3)))
    assert 0.5 < p.mean.item() < p.probs.item()


# --- rsample with a generator -------------------------------------------------------

RULES = {
    "Normal": Normal(torch.tensor([0.0, -3.0, 5.0]), torch.tensor([1.0, 0.1, 7.0])),
    "diagonal_normal": diagonal_normal(torch.zeros(4, 3), torch.ones(4, 3)),
    "MultivariateNormal": MultivariateNormal(
        torch.zeros(5, 2), scale_tril=torch.tensor([[1.0, 0.0], [0.7, 0.2]])
    ),
    "Bernoulli": Bernoulli(logits=torch.zeros(2, 3)),
    "Categorical": Categorical(logits=torch.zeros(2, 3)),
    "Independent Bernoulli": Independent(Bernoulli(logits=torch.zeros(2, 3)), 1),
    "ContinuousBernoulli": ContinuousBernoulli(torch.zeros(2, 3)),
    "ExpRelaxedCategorical": ExpRelaxedCategorical(
        torch.tensor(0.5), logits=torch.zeros(2, 3)
    ),
    "MixtureSameFamily": MixtureSameFamily(
        Categorical(logits=torch.zeros(2, 3)),
        diagonal_normal(torch.zeros(2, 3, 4), torch.ones(2, 3, 4)),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_rsample_takes_its_randomness_from_the_generator(name):
    p = RULES[name]
    before = torch.get_rng_state()
    first, again, other = (
        rsample(p, (6, 7), torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == p.sample((6, 7)).shape
    assert first.dtype == p.sample().dtype
    assert rsample(p).shape == p.sample().shape
    p.log_prob(first)  # inside the support


@pytest.mark.parametrize("name", ["Normal", "diagonal_normal", "MultivariateNormal"])
def test_rsample_without_generator_is_torchs_rsample(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        ours = rsample(RULES[name], (4,))
        torch.manual_seed(5)
        theirs = RULES[name].rsample((4,))
    torch.testing.assert_close(ours, theirs)


def test_rsample_has_the_right_moments():
    g = torch.Generator().manual_seed(0)
    n = 40000
    factor = torch.tensor([[1.0, 0.0], [0.7, 0.2]])
    mean = torch.tensor([1.0, -2.0])
    z = rsample(MultivariateNormal(mean, scale_tril=factor), (n,), g)  # (n, 2)
    assert ((z.mean(0) - mean).abs() < 4 * z.std(0) / n**0.5).all()
    torch.testing.assert_close(z.T.cov(), factor @ factor.T, atol=0.03, rtol=0)
    probs = torch.tensor([[0.1, 0.6, 0.3], [0.8, 0.2, 0.0]])
    draws = rsample(Categorical(probs=probs), (n,), g)  # (n, 2)
    found = torch.nn.functional.one_hot(draws, 3).double().mean(0)
    error = (probs * (1 - probs) / n).sqrt()
    assert ((found - probs).abs() <= 4 * error).all()
    flips = rsample(Bernoulli(probs=probs), (n,), g).mean(0)
    assert ((flips - probs).abs() <= 4 * error).all()


def test_rsample_of_a_mixture_takes_each_component_as_often_as_its_weight():
    weights = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.0, 0.4]])
    means = torch.tensor([[-10.0, 0.0, 10.0], [1.0, 2.0, 3.0]])
    components = diagonal_normal(means[..., None], torch.full((2, 3, 1), 0.01))
    mixture = MixtureSameFamily(Categorical(probs=weights), components)
    n = 20000
    z = rsample(mixture, (n,), torch.Generator().manual_seed(0))  # (n, 2, 1)
    nearest = (z - means).abs().argmin(-1)  # (n, 2)
    share = torch.nn.functional.one_hot(nearest, 3).double().mean(0)
    assert ((share - weights).abs() <= 4 * (weights * (1 - weights) / n).sqrt()).all()
    assert (z - means).abs().min(-1).values.max() < 0.06
    assert not z.requires_grad
    common = MixtureSameFamily(Categorical(probs=weights[0]), components)
    assert rsample(common, (7,), torch.Generator()).shape == (7, 2, 1)  # torch: fails


class Halves:
    """A class of one's own: uniform on [0, w], torch's base class left out."""

    def __init__(self, width):
        self.width = width
        self.mean = width / 2

    def log_prob(self, x):
        return torch.where(x <= self.width, -self.width.log(), -math.inf)

    def sample(self, shape=()):
        return torch.rand(*shape, *self.width.shape) * self.width.detach()


class Reparameterised(Halves):
    has_rsample = True

    def rsample(self, shape=()):
        return torch.rand(*shape, *self.width.shape) * self.width


def test_rsample_of_a_class_of_ones_own():
    width = torch.tensor([1.0, 3.0], requires_grad=True)
    for kind in (Halves, Reparameterised):
        draws = [
            rsample(kind(width), (1000,), torch.Generator().manual_seed(0))
            for _ in range(2)
        ]
        assert torch.equal(*draws) and draws[0].shape == (1000, 2)
        assert rsample(kind(width)).requires_grad == (kind is Reparameterised)
        constant = detached(kind(width))
        assert not constant.log_prob(torch.ones(2)).requires_grad
        assert torch.equal(constant.mean, width / 2)


def test_rsample_of_one_categorical():
    p = Categorical(logits=torch.tensor([0.0, 50.0, 0.0]))
    for shape in ((), (1,), (2, 3)):
        assert torch.equal(rsample(p, shape), torch.ones(shape, dtype=torch.int64))


def test_rsample_of_a_relaxed_categorical_is_finite_at_any_temperature():
    logits = torch.tensor([0.0, -80.0, 3.0], requires_grad=True)
    for temperature in (1e-3, 1.0, 100.0):
        p = ExpRelaxedCategorical(torch.tensor(temperature), logits=logits)
        log_y = rsample(p, (1000,), torch.Generator().manual_seed(0))
        assert log_y.isfinite().all() and p.log_prob(log_y).isfinite().all()
        torch.testing.assert_close(log_y.exp().sum(-1), torch.ones(1000))
        (slope,) = torch.autograd.grad(log_y.exp()[:, 0].sum(), logits)
        assert slope.isfinite().all() and slope[0] > 0


def test_rsample_is_reparameterised_where_it_can_be():
    mean = torch.zeros(3, requires_grad=True)
    std = torch.ones(3, requires_grad=True)
    z = rsample(diagonal_normal(mean, std), (), torch.Generator().manual_seed(0))
    z.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(3))
    torch.testing.assert_close(std.grad, z.detach())
    logits = torch.zeros(3, requires_grad=True)
    assert not rsample(Bernoulli(logits=logits)).requires_grad


@pytest.mark.parametrize(
    "distribution",
    [
        Gamma(torch.tensor([0.5, 3.0]), torch.tensor([1.0, 2.0])),
        Independent(Poisson(torch.tensor([0.5, 30.0])), 1),
        LogNormal(torch.zeros(2), torch.ones(2)),
        Binomial(16, torch.tensor([0.2, 0.7])),
    ],
    ids=lambda p: type(p).__name__,
)
def test_rsample_draws_from_any_distribution_with_a_generator(distribution):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.stack([rsample(distribution, (4000,), generator) for _ in "ab"])

    before = torch.get_rng_state()
    first, second = draw(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)  # the global state has no say
    assert torch.equal(draw(0)[1], second)
    assert not torch.equal(first, second)  # the generator has moved on
    assert not torch.equal(draw(1)[0], first)
    draws = torch.cat([first, second])
    error = distribution.stddev / len(draws) ** 0.5
    assert ((draws.mean(0) - distribution.mean).abs() < 4 * error).all()


def test_rsample_with_a_generator_keeps_the_gradient_of_any_distribution():
    shape = torch.tensor([0.5, 3.0], requires_grad=True)
    z = rsample(Gamma(shape, 1.0), (), torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad(z.sum(), shape)
    assert (slope > 0).all()
    assert not rsample(Poisson(shape), (), torch.Generator()).requires_grad


def test_logit_of_mean_gives_the_mean():
    mean = torch.tensor([0.002, 0.01, 0.3, 0.4999, 0.5, 0.5001, 0.9, 0.99, 0.998])
    for kind, rtol in ((mean, 1e-5), (mean.double(), 1e-12)):
        found = ContinuousBernoulli(logit_of_mean(kind)).mean
        torch.testing.assert_close(found, kind, rtol=rtol, atol=0)


def test_diagonal_normal_sums_over_the_last_dimension():
    g = torch.Generator().manual_seed(0)
    mean, std, x = torch.randn(3, 5, 2, generator=g).unbind(0)
    std = std.exp()
    expected = stats.norm(mean, std).logpdf(x).sum(-1)
    np.testing.assert_allclose(diagonal_normal(mean, std).log_prob(x), expected, 1e-5)


# --- without gradients ---------------------------------------------------------------


def test_detached_is_the_same_distribution_as_a_constant():
    a, b = torch.randn(2, 4, 3, requires_grad=True).unbind()
    normal = diagonal_normal(a, b.exp())
    values = torch.rand(4, 3).round()
    for p, x in (
        (normal, values),
        (MultivariateNormal(a, scale_tril=torch.diag_embed(b.exp())), values),
        (Independent(Bernoulli(logits=a), 1), values),
        (Independent(ContinuousBernoulli(a), 1), values),
        (MixtureSameFamily(Categorical(logits=a[:, 0]), normal), values[0]),
        (Categorical(logits=a), torch.tensor([0, 1, 2, 0])),
    ):
        constant = detached(p)
        assert type(constant) is type(p)
        assert torch.equal(constant.log_prob(x), p.log_prob(x))
        assert not constant.log_prob(x).requires_grad
        assert p.log_prob(x).requires_grad  # the original is as it was


def moved(*transforms):
    return TransformedDistribution(Normal(torch.zeros(2), 1.0), list(transforms))


@pytest.mark.parametrize(
    "make",
    [
        Kumaraswamy,
        Weibull,
        Gumbel,
        lambda a, b: Pareto(a / 100, b),
        LogisticNormal,
        lambda a, b: Independent(LogNormal(a, b), 1),
        lambda a, b: RelaxedOneHotCategorical(a[0], logits=b),
        lambda a, b: StudentT(a, b),
        lambda a, b: moved(AffineTransform(a, b)),
        lambda a, b: moved(AffineTransform(a, b, cache_size=1)),
        lambda a, b: moved(AffineTransform(a, b).inv),
        lambda a, b: moved(AffineTransform(a, b), ExpTransform().inv.inv),
        lambda a, b: moved(ComposeTransform([AffineTransform(a, b), ExpTransform()])),
        lambda a, b: moved(AffineTransform(a, b), ExpTransform()),
    ],
)
def test_detached_reaches_the_transforms(make):
    a = torch.tensor([2.0, 1.5], requires_grad=True)
    b = torch.tensor([3.0, 0.5], requires_grad=True)
    p = make(a, b)
    x = torch.tensor([0.2, 0.3, 0.5] if make is LogisticNormal else [0.4, 0.6])
    constant = detached(p)
    assert type(constant) is type(p)
    assert torch.equal(constant.log_prob(x), p.log_prob(x))
    assert not constant.log_prob(x).requires_grad
    assert p.log_prob(x).requires_grad
    torch.manual_seed(0)
    draw = constant.rsample()
    torch.manual_seed(0)
    assert torch.equal(draw, p.rsample()) and not draw.requires_grad
