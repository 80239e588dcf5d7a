"""Exact EM against scikit-learn, closed-form optima, and its own promises."""

import inspect

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn import decomposition, mixture
from torch.distributions import kl_divergence

from aevb import data, em

KINDS = {"full": "full", "diagonal": "diag"}  # ours: scikit-learn's


def blobs(n=600, dim=2, k=3, seed=0, spread=4.0):
    """n points from k correlated, overlapping Gaussians of different sizes."""
    rng = np.random.default_rng(seed)
    means = spread * rng.standard_normal((k, dim))
    factors = rng.standard_normal((k, dim, dim))
    z = rng.integers(k, size=n)
    noise = np.einsum("nde,ne->nd", factors[z], rng.standard_normal((n, dim)))
    return torch.tensor(means[z] + noise)


def correlated(n=500, dim=6, latent=2, seed=0):
    rng = np.random.default_rng(seed)
    loadings = rng.standard_normal((dim, latent))
    x = rng.standard_normal((n, latent)) @ loadings.T
    noise = rng.uniform(0.3, 1.0, dim) * rng.standard_normal((n, dim))
    return torch.tensor(3.0 + x + noise)


def sklearn_mixture(x, params, kind, iterations):
    """scikit-learn's EM from our starting point, without its own regularisation."""
    precisions = (
        torch.linalg.inv(params.covariances)
        if kind == "full"
        else 1 / params.covariances
    )
    oracle = mixture.GaussianMixture(
        len(params.weights),
        covariance_type=KINDS[kind],
        weights_init=params.weights.numpy(),
        means_init=params.means.numpy(),
        precisions_init=precisions.numpy(),
        reg_covar=0.0,
        tol=0.0,
        max_iter=iterations,
    )
    with pytest.warns(match="converge"):
        return oracle.fit(x.numpy())


# ------------------------------------------------------------------ scikit-learn


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_mixture_follows_scikit_learn_step_by_step(kind, seed):
    x = blobs(seed=seed, spread=1.5)
    start = em.GaussianMixture(3, kind)._start(x, torch.Generator().manual_seed(seed))
    for iterations in (1, 2, 5, 20):
        oracle = sklearn_mixture(x, start, kind, iterations)
        ours = em.GaussianMixture(3, kind, regularization=0.0).fit(
            x, max_iterations=iterations, tolerance=0.0, init=start
        )
        assert len(ours.history) == iterations + 1
        assert not ours.converged
        np.testing.assert_allclose(
            ours.log_likelihood(x), oracle.score_samples(x.numpy()), atol=1e-9
        )
        np.testing.assert_allclose(ours.weights, oracle.weights_, atol=1e-10)
        np.testing.assert_allclose(ours.means, oracle.means_, atol=1e-9)
        np.testing.assert_allclose(ours.covariances, oracle.covariances_, atol=1e-9)
        assert ours.history[-1] == pytest.approx(oracle.score(x.numpy()), abs=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_mixture_reaches_the_optimum_of_scikit_learn(kind, dim):
    x = blobs(n=800, dim=dim, seed=dim, spread=8.0)
    oracle = mixture.GaussianMixture(
        3,
        covariance_type=KINDS[kind],
        n_init=10,
        tol=1e-9,
        max_iter=5000,
        random_state=0,
    ).fit(x.numpy())
    ours = em.GaussianMixture(3, kind).fit(
        x, restarts=10, tolerance=1e-10, max_iterations=5000
    )
    assert ours.history[-1] == pytest.approx(oracle.score(x.numpy()), abs=1e-5)
    np.testing.assert_allclose(
        np.sort(ours.means, 0), np.sort(oracle.means_, 0), atol=0.05
    )


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_factor_analysis_reaches_the_optimum_of_scikit_learn(latent_dim):
    train, test = correlated(1000, dim=8, latent=latent_dim).split(500)
    oracle = decomposition.FactorAnalysis(
        latent_dim, tol=1e-12, max_iter=20000, svd_method="lapack"
    ).fit(train.numpy())
    ours = em.FactorAnalysis(latent_dim, learn_mean=True).fit(
        train, tolerance=1e-13, max_iterations=50000
    )
    assert ours.history[-1] == pytest.approx(oracle.score(train.numpy()), abs=1e-6)
    assert ours.log_likelihood(test).mean().item() == pytest.approx(
        oracle.score(test.numpy()), abs=1e-4
    )
    np.testing.assert_allclose(
        ours.parameters.covariance, oracle.get_covariance(), atol=2e-3
    )


# ------------------------------------------------------------- closed-form optima


@pytest.mark.parametrize("seed", range(5))
def test_factor_analysis_on_the_tutorials_data(seed):
    """8 parameters for 6 covariances: the optimum is the saturated Gaussian."""
    train, test = data.factor_analysis(n=1000, seed=42)
    x = train.x.double()
    second_moment = (x.mT @ x / len(x)).numpy()
    saturated = multivariate_normal(np.zeros(3), second_moment)
    model = em.FactorAnalysis(latent_dim=2).fit(
        train, seed=seed, tolerance=1e-12, max_iterations=20000
    )
    assert model.converged
    assert model.history[-1] == pytest.approx(saturated.logpdf(x).mean(), abs=1e-7)
    assert model.history[-1] == pytest.approx(-3.932798, abs=2e-6)
    heldout = model.log_likelihood(test).mean().item()
    assert heldout == pytest.approx(-3.972135, abs=2e-5)
    assert torch.equal(model.mean, torch.zeros(3, dtype=torch.float64))


def test_one_component_is_the_sample_mean_and_covariance():
    x = blobs()
    for kind, expected in [
        ("full", np.cov(x.mT, bias=True)[None]),
        ("diagonal", np.var(x.numpy(), 0)[None]),
    ]:
        model = em.GaussianMixture(1, kind).fit(x)
        np.testing.assert_allclose(model.means[0], x.mean(0), atol=1e-12)
        np.testing.assert_allclose(model.covariances, expected, atol=1e-12)
        assert model.weights.tolist() == [1.0]
        assert len(model.history) <= 3 and model.converged


def test_principal_subspace_when_noise_is_equal():
    """With equal noise variances the optimum is known: probabilistic PCA's."""
    rng = np.random.default_rng(0)
    scores = np.linalg.qr(rng.standard_normal((400, 4)))[0] * 20  # orthogonal
    scores -= scores.mean(0)
    scores = np.linalg.qr(scores)[0] * 20  # covariance exactly the identity
    basis = np.full((4, 4), 0.5) * np.array(
        [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    )  # orthogonal, all entries ±1/2: every dimension keeps the same noise
    x = torch.tensor(scores * np.sqrt([9.0, 1.0, 1.0, 1.0]) @ basis.T)
    model = em.FactorAnalysis(1).fit(x, tolerance=1e-14)
    np.testing.assert_allclose(model.noise_variance, np.ones(4), atol=1e-5)
    np.testing.assert_allclose(
        model.loadings @ model.loadings.mT, 8 * np.full((4, 4), 0.25), atol=1e-5
    )


# ------------------------------------------------------------------- the promises


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_mixture_evidence_never_decreases(kind, seed):
    x = blobs(n=60, seed=seed, spread=1.0)
    for regularization in (1e-6, 1e-2, 0.5):  # the floor binds at 0.5
        model = em.GaussianMixture(5, kind, regularization)
        model.fit(x, seed=seed, max_iterations=200, tolerance=0.0)
        assert np.diff(model.history).min() > -1e-9


def test_an_additive_ridge_would_decrease_the_evidence():
    """Why the floor is a constraint: the test above can fail."""
    x = blobs(n=60, seed=0, spread=1.0)
    params = em.GaussianMixture(5)._start(x, torch.Generator().manual_seed(0))
    history = []
    for _ in range(200):
        posterior = em.mixture_e_step(x, params)
        history.append(posterior.log_evidence.mean())
        params = em.mixture_m_step(x, posterior.responsibilities)
        ridge = params.covariances + 0.5 * torch.eye(2, dtype=torch.float64)
        params = params._replace(covariances=ridge)
    assert np.diff(history).min() < -1e-9


@pytest.mark.parametrize("learn_mean", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_factor_evidence_never_decreases(learn_mean, seed):
    x = correlated(seed=seed)
    for latent_dim, regularization in [(1, 1e-6), (3, 1e-6), (5, 1e-6), (2, 0.5)]:
        model = em.FactorAnalysis(latent_dim, learn_mean, regularization)
        model.fit(x, seed=seed, max_iterations=300, tolerance=0.0)
        assert np.diff(model.history).min() > -1e-9
        assert model.noise_variance.min() >= regularization


def test_the_floor_is_respected_in_every_direction():
    line = torch.linspace(-1, 1, 50, dtype=torch.float64)
    x = torch.stack([line, line], 1)  # no width at all across the diagonal
    model = em.GaussianMixture(1, regularization=1e-3).fit(x)
    values = torch.linalg.eigvalsh(model.covariances[0])
    np.testing.assert_allclose(values, [1e-3, 2 * line.square().mean()], rtol=1e-9)
    diagonal = em.GaussianMixture(2, "diagonal", regularization=0.7).fit(x)
    assert diagonal.covariances.min() >= 0.7


def test_the_e_step_closes_the_gap():
    x = blobs()
    model = em.GaussianMixture(3).fit(x, max_iterations=3)
    posterior = em.mixture_e_step(x, model.parameters)
    bound = em.mixture_elbo(x, model.parameters, posterior.responsibilities)
    np.testing.assert_allclose(bound, posterior.log_evidence, atol=1e-10)

    x = correlated()
    factors = em.FactorAnalysis(2).fit(x, max_iterations=3)
    mean, covariance, log_evidence = em.factor_e_step(x, factors.parameters)
    bound = em.factor_elbo(x, factors.parameters, mean, covariance)
    np.testing.assert_allclose(bound, log_evidence, atol=1e-10)


def test_history_is_the_evidence_of_the_parameters():
    x = blobs()
    model = em.GaussianMixture(3).fit(x, max_iterations=4, tolerance=0.0)
    assert model.history[-1] == pytest.approx(model.log_likelihood(x).mean().item())
    more = em.GaussianMixture(3).fit(
        x, max_iterations=3, tolerance=0.0, init=model.parameters
    )
    whole = em.GaussianMixture(3).fit(x, max_iterations=7, tolerance=0.0)
    assert model.history + more.history[1:] == pytest.approx(whole.history, abs=1e-12)


def test_same_seed_same_fit_and_restarts_keep_the_best():
    x = blobs(n=200, k=5, seed=3, spread=2.0)
    one = em.GaussianMixture(5).fit(x, seed=4)
    assert one.history == em.GaussianMixture(5).fit(x, seed=4).history
    several = em.GaussianMixture(5).fit(x, seed=4, restarts=8)
    assert several.history[-1] >= one.history[-1]
    ends = {
        round(em.GaussianMixture(5).fit(x, seed=s).history[-1], 4) for s in range(8)
    }
    assert len(ends) > 1  # local optima: the choice matters


def test_fit_leaves_global_state_and_the_data_alone():
    x = blobs().requires_grad_()
    before, state = x.detach().clone(), torch.get_rng_state()
    model = em.GaussianMixture(3).fit(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, before)
    assert not model.means.requires_grad and torch.is_grad_enabled()


# ------------------------------------------------------- the rest of the interface


def test_what_a_fitted_mixture_offers():
    x = blobs(n=2000, spread=8.0)
    for kind in KINDS:
        model = em.GaussianMixture(3, kind).fit(x, restarts=3)
        assert isinstance(model, em.GaussianMixture)
        r = model.posterior(x).probs
        assert r.shape == (2000, 3)
        assert torch.equal(model.predict(x), r.argmax(-1))
        draws, z = model.sample(20000, torch.Generator().manual_seed(0))
        np.testing.assert_allclose(torch.bincount(z) / len(z), model.weights, atol=0.02)
        again = em.GaussianMixture(3, kind).fit(draws, restarts=3)
        np.testing.assert_allclose(
            np.sort(again.means, 0), np.sort(model.means, 0), atol=0.3
        )


def test_what_a_fitted_factor_analysis_offers():
    x = correlated()
    model = em.FactorAnalysis(2, learn_mean=True).fit(x)
    np.testing.assert_allclose(model.mean, x.mean(0))
    np.testing.assert_allclose(model.noise_scale**2, model.noise_variance)
    posterior = model.posterior(x)
    assert posterior.batch_shape == (500,) and posterior.event_shape == (2,)
    draws = model.sample(100_000, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(draws.mean(0), model.mean, atol=0.05)
    np.testing.assert_allclose(np.cov(draws.mT), model.parameters.covariance, atol=0.1)
    # the zero-mean model has to explain the mean as variance, and pays for it
    assert em.FactorAnalysis(2).fit(x).history[-1] < model.history[-1] - 0.1


def test_inputs_of_every_kind_give_the_same_fit():
    x = blobs(n=100)
    expected = em.GaussianMixture(2).fit(x).history
    examples = data.Examples(x, torch.zeros(100, dtype=torch.int64))
    for same in (x.numpy(), x.tolist(), examples):
        assert em.GaussianMixture(2).fit(same).history == expected
    whole = (10 * x).round()
    assert (
        em.GaussianMixture(2).fit(whole.to(torch.int64)).history
        == em.GaussianMixture(2).fit(whole).history
    )


def test_duplicates_and_empty_components_stay_finite():
    x = torch.tensor([[0.0, 0.0]] * 5 + [[1.0, 1.0]] * 5)
    model = em.GaussianMixture(4).fit(x, max_iterations=50)  # 2 different points
    assert np.isfinite(model.history).all()
    one_hot = torch.zeros(10, 3)
    one_hot[:, 0] = 1.0  # nobody in components 1 and 2
    params = em.mixture_m_step(x, one_hot, "full", 1e-6)
    posterior = em.mixture_e_step(x, params)
    assert posterior.log_evidence.isfinite().all()
    assert torch.equal(posterior.responsibilities, one_hot)
    assert em.mixture_elbo(x, params, one_hot).isfinite().all()


def test_factor_elbo_takes_one_covariance_per_example():
    x = correlated(20)
    params = em.FactorAnalysis(2).fit(x, max_iterations=5).parameters
    mean, covariance, _ = em.factor_e_step(x, params)
    shared = em.factor_elbo(x, params, mean, covariance)
    each = em.factor_elbo(x, params, mean, covariance.expand(20, 2, 2))
    np.testing.assert_allclose(each, shared)


def test_samples_lie_where_the_parameters_lie():
    for kind in KINDS:
        mixture = em.GaussianMixture(2, kind).fit(blobs(30))
        mixture.parameters = mixture.parameters._make(
            part.to("meta") for part in mixture.parameters
        )
        x, z = mixture.sample(5)
        assert x.is_meta and z.is_meta and x.shape == (5, 2)
    factors = em.FactorAnalysis(1).fit(blobs(30))
    factors.parameters = factors.parameters._make(
        part.to("meta") for part in factors.parameters
    )
    assert factors.sample(5).is_meta


def test_the_m_step_has_the_precision_of_the_examples():
    """Their responsibilities may come from a mixture in double precision."""
    x = blobs(40).float()
    r = em.mixture_e_step(x, em.GaussianMixture(2).fit(x).parameters).responsibilities
    assert r.dtype == torch.float64
    for kind in KINDS:
        for found, exact in zip(
            em.mixture_m_step(x, r, kind),
            em.mixture_m_step(x.double(), r, kind),
            strict=True,
        ):
            torch.testing.assert_close(found, exact.float())


def test_covariances_that_components_share():
    """One for all of them, of either kind."""
    x, params = blobs(30), em.GaussianMixture(3).fit(blobs(30)).parameters
    for one in (params.covariances[:1], params.covariances[:1].diagonal(0, 1, 2)):
        each = one.expand(3, *one.shape[1:])
        found = em.mixture_log_joint(x, params._replace(covariances=one))
        expected = em.mixture_log_joint(x, params._replace(covariances=each))
        torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_equal_eigenvalues_have_a_gradient():
    """A covariance that is a multiple of the identity."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).double()
    r = torch.full((4, 1), 1.0, dtype=torch.float64, requires_grad=True)

    def spread(r):
        return em.mixture_m_step(x, r, regularization=1e-6).covariances

    assert torch.autograd.gradcheck(spread, r)


def test_the_steps_are_differentiable():
    x = correlated(20)
    params = em.FactorAnalysis(2).fit(x, max_iterations=5).parameters
    loadings = params.loadings.clone().requires_grad_()
    evidence = em.factor_e_step(x, params._replace(loadings=loadings)).log_evidence
    assert torch.autograd.grad(evidence.mean(), loadings)[0].abs().sum() > 0


@pytest.mark.parametrize("name", em.__all__)
def test_public_names_are_documented(name):
    assert len(inspect.getdoc(getattr(em, name))) > 30


# ------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: em.GaussianMixture(0), ValueError, "num_components is 0"),
        (lambda: em.GaussianMixture(2.5), ValueError, "num_components is 2.5"),
        (lambda: em.GaussianMixture(2, "tied"), ValueError, "covariance is 'tied'"),
        (lambda: em.GaussianMixture(2, "full", -1), ValueError, "regularization is -1"),
        (
            lambda: em.mixture_m_step(X, torch.ones(6, 1), "spherical"),
            ValueError,
            "covariance is 'spherical'; expected 'full' or 'diagonal'",
        ),
        (lambda: em.FactorAnalysis(0), ValueError, "latent_dim is 0"),
        (lambda: em.FactorAnalysis(True), ValueError, "latent_dim is True"),
        (
            lambda: em.FactorAnalysis(2, regularization=float("nan")),
            ValueError,
            "regularization is nan",
        ),
    ],
)
def test_bad_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()


X = torch.arange(12.0).reshape(6, 2) ** 2


@pytest.mark.parametrize("model", [em.GaussianMixture(2), em.FactorAnalysis(1)])
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(0, 2), ValueError, r"x is empty.*\(0, 2\)"),
        (torch.zeros(5, 0), ValueError, r"x is empty.*\(5, 0\)"),
        (X[:, 0], ValueError, r"x has shape \(6,\); expected \(N, D\)"),
        (X[None], ValueError, r"x has shape \(1, 6, 2\)"),
        (X.where(X != 4, torch.nan), ValueError, "NaN or infinity in 1 of its 6"),
        (X.where(X < 50, torch.inf), ValueError, "NaN or infinity in 2 of its 6"),
        (X > 3, TypeError, "x has dtype torch.bool"),
        ("abc", TypeError, "x is a str"),
        (X[:1], ValueError, "1 example"),
    ],
)
def test_bad_observations(model, x, error, message):
    if x is not None and model.__class__ is em.GaussianMixture and "1 ex" in message:
        message = "num_components is 2, but x holds only 1 examples"
    with pytest.raises(error, match=message):
        model.fit(x)
    assert model.parameters is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_iterations": 0}, ValueError, "max_iterations is 0"),
        ({"tolerance": -1e-3}, ValueError, "tolerance is -0.001"),
        ({"restarts": 0}, ValueError, "restarts is 0"),
        ({"init": (1, 2, 3)}, TypeError, "init is a tuple; expected MixtureParam"),
        (
            {"init": em.MixtureParameters(torch.ones(2), torch.ones(3, 2), None)},
            ValueError,
            r"init.means has shape \(3, 2\); expected \(2, 2\)",
        ),
        (
            {"restarts": 2, "init": em.MixtureParameters(None, None, None)},
            ValueError,
            "restarts is 2, but init fixes the start",
        ),
    ],
)
def test_bad_arguments_of_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        em.GaussianMixture(2).fit(X, **arguments)


def test_bad_use():
    with pytest.raises(ValueError, match="latent_dim is 3, but x has only 2"):
        em.FactorAnalysis(3).fit(X)
    names = (
        em.MixtureParameters._fields,
        (*em.FactorParameters._fields, "noise_scale"),
    )
    for model, attributes in zip(
        (em.GaussianMixture(2), em.FactorAnalysis(1)), names, strict=True
    ):
        for name in attributes:
            with pytest.raises(RuntimeError, match="has not been fitted yet"):
                getattr(model, name)
        for method in (model.log_likelihood, model.posterior, model.sample):
            with pytest.raises(RuntimeError, match="has not been fitted yet"):
                method(3 if method == model.sample else X)
        model.fit(X)
        with pytest.raises(ValueError, match=r"\(6, 1\); .* fitted to 2 dimensions"):
            model.log_likelihood(X[:, :1])


def test_a_collapse_is_named():
    x = torch.tensor([[0.0], [0.1], [0.2], [9.0]])
    with pytest.raises(ValueError, match=r"not finite at iteration \d+.*regulariz"):
        em.GaussianMixture(2, regularization=0.0).fit(x, max_iterations=50)
    fitted = em.GaussianMixture(2, regularization=1e-4).fit(x)
    assert fitted.covariances.min() == pytest.approx(1e-4)


def test_starts_that_collapse_do_not_discard_the_others():
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(2))

    def climb(x, restarts):
        model = em.GaussianMixture(5, regularization=0.0)
        return model.fit(x, max_iterations=60, seed=1, restarts=restarts)

    with pytest.raises(ValueError, match="not finite"):  # the first of these starts
        climb(x, restarts=1)
    assert np.isfinite(climb(x, restarts=8).history).all()
    with pytest.raises(ValueError, match="not finite"):  # every one
        climb(x[:6], restarts=8)


def test_posteriors_are_distributions_with_a_gap_that_is_a_divergence():
    x = correlated(30)
    model = em.FactorAnalysis(2).fit(x)
    exact = model.posterior(x)
    q = torch.distributions.MultivariateNormal(
        exact.loc + 0.3, 2 * exact.covariance_matrix
    )
    bound = em.factor_elbo(x, model.parameters, q.loc, q.covariance_matrix)
    gap = model.log_likelihood(x) - bound
    np.testing.assert_allclose(gap, kl_divergence(q, exact), atol=1e-10)


# ---------------------------------------------------------------- merging components


def test_merge_components_limits():
    r = torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
    assert em.merge_components(r, 1).tolist() == [0, 0, 0, 0]
    assert em.merge_components(r, 4).tolist() == [0, 1, 2, 3]
    assert set(em.merge_components(r, 2).tolist()) == {0, 1}
    apart = torch.eye(4)[torch.arange(20) % 4]  # no overlap at all
    assert len(em.merge_components(apart, 3).unique()) == 3


@pytest.mark.parametrize(
    ("r", "count", "message"),
    [
        (torch.ones(3, 2), 3, "count is 3; expected at most 2 components"),
        (torch.ones(3, 2), 0, "count is 0; expected a whole number, at least 1"),
        (-torch.ones(3, 2), 1, "negative"),
        (
            torch.ones(3),
            1,
            r"responsibilities has shape \(3,\); expected \(N, K\)",
        ),
    ],
)
def test_merge_components_names_what_is_wrong(r, count, message):
    with pytest.raises(ValueError, match=message):
        em.merge_components(r, count)
