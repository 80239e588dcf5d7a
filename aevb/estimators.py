"""Estimators of the ELBO of each example and of its gradient.

Written over distributions: no estimator knows which model it serves.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, kl_divergence
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical
from torch.func import functional_call, grad, vmap

from aevb.distributions import detached, is_reparameterised, rsample
from aevb.model import ElboTerms, LatentVariableModel, check_count
from aevb.randomness import preserved, seed_device


def analytic_kl(
    model: LatentVariableModel,
    x: Tensor,
    *condition: Tensor,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> ElboTerms:
    """Reconstruction by sampling, KL divergence in closed form.

    (1/S) Σ_s log p(x | z_s) - KL(q(z | x) ‖ p(z)),  z_s ~ q(z | x) reparameterised

    (``eq-sgvb-analytic-kl``, for the VAE ``eq-vae-elbo-estimator``, for the conditional
    VAE ``eq-cvae-estimator`` with ``eq-cvae-kl``; the second estimator of Kingma and
    Welling, 2014).

    Args:
        model: its prior and posterior must have a closed-form KL divergence in torch.
        x: (B, D).
        condition: what a conditional model takes behind x.
        num_samples: S.
        generator: for the draws; the global one if None.

    Returns:
        :class:`~aevb.model.ElboTerms`, nats, (B,) each; unbiased.

    Raises:
        ValueError: num_samples < 1.
        NotImplementedError: torch knows no KL divergence for the pair.
    """
    check_count("num_samples", num_samples)
    q_z = model.posterior(x, *condition)
    z = rsample(q_z, (num_samples,), generator)  # (S, B, L)
    log_p = model.likelihood(z, *condition).log_prob(x)  # (S, B)
    return ElboTerms(log_p.mean(0), kl_divergence(q_z, model.prior(*condition)))


def fully_sampled(
    model: LatentVariableModel,
    x: Tensor,
    *condition: Tensor,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> ElboTerms:
    """Everything by sampling: no closed-form divergence; q must be reparameterised.

    (1/S) Σ_s [log p(x | z_s) + log p(z_s) - log q(z_s | x)],  z_s ~ q(z | x)

    Where draws of q carry no gradient, values are right and the gradient in φ is not:
    see :func:`score_function`.

    (``eq-sgvb-fully-sampled``, for the VAE ``eq-vae-elbo-fully-sampled``; the first
    estimator of Kingma and Welling, 2014).
    Arguments and result as for :func:`analytic_kl`; ``kl`` is an estimate and can be
    negative.
    """
    check_count("num_samples", num_samples)
    q_z = model.posterior(x, *condition)
    z = rsample(q_z, (num_samples,), generator)  # (S, B, L)
    log_p = model.likelihood(z, *condition).log_prob(x)  # (S, B)
    kl = q_z.log_prob(z) - model.prior(*condition).log_prob(z)  # (S, B)
    return ElboTerms(log_p.mean(0), kl.mean(0))


def analytic_entropy(
    model: LatentVariableModel,
    x: Tensor,
    *condition: Tensor,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> ElboTerms:
    """Joint density by sampling, entropy of the posterior in closed form.

    (1/S) Σ_s [log p(x | z_s) + log p(z_s)] + H(q(z | x)),  z_s ~ q(z | x)

    (``eq-sgvb-entropy``). Arguments and result as for :func:`analytic_kl`; the prior
    needs a density only, and q must be reparameterised as for :func:`fully_sampled`.
    ``kl`` is an estimate and can be negative.
    """
    check_count("num_samples", num_samples)
    q_z = model.posterior(x, *condition)
    z = rsample(q_z, (num_samples,), generator)  # (S, B, L)
    log_p = model.likelihood(z, *condition).log_prob(x)  # (S, B)
    log_prior = model.prior(*condition).log_prob(z)  # (S, B)
    return ElboTerms(log_p.mean(0), -q_z.entropy() - log_prior.mean(0))


def score_function(
    model: LatentVariableModel,
    x: Tensor,
    *condition: Tensor,
    num_samples: int = 1,
    baseline: str = "none",
    generator: torch.Generator | None = None,
) -> ElboTerms:
    """Values as by :func:`fully_sampled`; the gradient in φ by the score function.

    No gradient passes through a draw, so z may be discrete. The gradient in θ is that
    of log p(x, z) at the draws (``eq-aevb-gradient-theta``). The gradient in φ is
    (1/S) Σ_s (f_s - b_s) ∇ log q(z_s | x) with f = log p(x, z) - log q(z | x)
    (``eq-score-function-gradient``; REINFORCE, Williams, 1992), and the same holds for
    each of the two terms by itself. With ``baseline="leave-one-out"``, b_s is the mean
    of f over the other draws (``eq-leave-one-out``); otherwise it is zero.

    Args:
        baseline: ``"none"`` or ``"leave-one-out"``; the rest is as for
            :func:`analytic_kl`.

    Returns:
        :class:`~aevb.model.ElboTerms`; ``kl`` is an estimate and can be negative.

    Raises:
        ValueError: unknown ``baseline``; ``"leave-one-out"`` with fewer than 2 samples.
    """
    check_count("num_samples", num_samples)
    if baseline not in ("none", "leave-one-out"):
        raise ValueError(
            f"baseline is {baseline!r}; expected 'none' or 'leave-one-out'"
        )
    if baseline == "leave-one-out" and num_samples < 2:
        raise ValueError("baseline is 'leave-one-out'; expected num_samples >= 2")
    q_z = model.posterior(x, *condition)
    z = rsample(q_z, (num_samples,), generator).detach()  # (S, B, L)
    log_q = q_z.log_prob(z)  # (S, B), and so are all terms below
    log_p = model.likelihood(z, *condition).log_prob(x)
    kl = log_q.detach() - model.prior(*condition).log_prob(z)
    log_p = _with_score(log_p, log_q, baseline)
    return ElboTerms(log_p.mean(0), _with_score(kl, log_q, baseline).mean(0))


def _with_score(f: Tensor, log_q: Tensor, baseline: str) -> Tensor:
    """f + 0, where the zero has the gradient (f - b) ∇ log q."""
    weight = f.detach()
    if baseline == "leave-one-out":
        others = (weight.sum(0) - weight) / (len(weight) - 1)
        weight = weight - others
    score = weight * log_q
    return f + score - score.detach()


def importance_weighted(
    model: LatentVariableModel,
    x: Tensor,
    *condition: Tensor,
    num_samples: int = 5,
    gradient: str = "plain",
    generator: torch.Generator | None = None,
) -> ElboTerms:
    """The importance-weighted bound of K draws, which tightens with K.

    log (1/K) Σ_k w_k,  w_k = p(x, z_k) / q(z_k | x),  z_k ~ q(z | x) reparameterised

    (``eq-importance-weighted``; Burda et al., 2016). K = 1 is :func:`fully_sampled`.
    In expectation it lies between the ELBO and log p(x) and rises with K.

    Its two terms are those of the q that it improves by reweighting: with the
    normalised weights v_k = w_k / Σ_j w_j,

    reconstruction = Σ_k v_k log p(x | z_k)
    kl = Σ_k v_k log(q(z_k | x) / p(z_k)) + Σ_k v_k log(K v_k)

    Their difference is the bound, exactly. A draw from the K, taken with probabilities
    v, comes from a distribution that is closer to p(z | x) than q is (Cremer, Morris
    and Duvenaud, 2017): as K grows, reconstruction tends to the mean of log p(x | z)
    under p(z | x), and kl to KL(p(z | x) ‖ p(z)).

    The gradient of each term is the average of the draws' gradients under the weights
    v, which carry none themselves; hence that of the bound is Σ_k v_k ∇ log w_k
    (``eq-iw-gradient``). In φ it drowns in noise as K grows: its mean falls as 1 / K,
    its standard deviation as 1 / √K (Rainforth et al., 2018). With
    ``gradient="doubly-reparameterised"`` that in φ is
    Σ_k v_k² (∂ log w_k / ∂z_k) (∂z_k / ∂φ) (``eq-doubly-reparameterised``), of the same
    mean, whose standard deviation falls as K^(-3/2) (Tucker et al., 2019); for K = 1 it
    leaves out the score of q, whose mean is zero (Roeder et al., 2017). Values and the
    gradient in θ are the same for both.

    Args:
        model: its q(z | x) must be reparameterised.
        x: (B, D).
        condition: what a conditional model takes behind x.
        num_samples: K.
        gradient: ``"plain"`` or ``"doubly-reparameterised"``.
        generator: for the draws; the global one if None.

    Returns:
        :class:`~aevb.model.ElboTerms`, nats, (B,) each; ``kl`` is an estimate and can
        be negative.

    Raises:
        ValueError: num_samples < 1; unknown ``gradient``; a q(z | x) whose draws carry
            no gradient, such as a mixture.

    Example:
        >>> from functools import partial
        >>> from aevb import data, fit, models
        >>> bound = partial(importance_weighted, num_samples=5)
        >>> train, _ = data.factor_analysis(n=100)
        >>> model = models.FactorAnalysis()
        >>> history = fit(model, train, epochs=1, estimator=bound, progress=False)
        >>> bound(model, train.x).elbo.shape
        torch.Size([100])
    """
    check_count("num_samples", num_samples)
    if gradient not in ("plain", "doubly-reparameterised"):
        raise ValueError(
            f"gradient is {gradient!r}; expected 'plain' or 'doubly-reparameterised'"
        )
    q_z = model.posterior(x, *condition)
    _check_reparameterised(q_z)
    z = rsample(q_z, (num_samples,), generator)  # (K, B, L)
    twice = gradient == "doubly-reparameterised"
    log_q = (detached(q_z) if twice else q_z).log_prob(z)  # (K, B)
    log_p = model.likelihood(z, *condition).log_prob(x)  # (K, B)
    log_w = log_p + model.prior(*condition).log_prob(z) - log_q  # (K, B)
    v = log_w.detach().softmax(0)  # (K, B), sums to 1
    if twice and z.requires_grad:
        z.register_hook(lambda of_z: v.unsqueeze(-1) * of_z)  # v_k becomes v_k²
    reconstruction = (v * log_p).sum(0)
    bound = log_w.logsumexp(0) - math.log(num_samples)
    return ElboTerms(reconstruction, reconstruction - bound)


def systematic_resampling(
    weights: Tensor, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """Choose ``count`` of K draws, with replacement, by their weights.

    Draw k is chosen v_k ``count`` times in expectation, and at most one time more or
    less than that: one uniform number places ``count`` equidistant points on the
    cumulated weights.

    Args:
        weights: v, (K, B), each column of which sums to 1.
        count: M.
        generator: for the uniform numbers; the global one if None.

    Returns:
        (M, B) int64, indices from 0 to K - 1.

    Raises:
        ValueError: count < 1.

    Example:
        >>> weights = torch.tensor([[0.5, 0.0], [0.0, 0.0], [0.5, 1.0]])
        >>> systematic_resampling(weights, 2)
        tensor([[0, 2],
                [2, 2]])
    """
    check_count("count", count)
    ends = weights.T.cumsum(1).contiguous()  # (B, K)
    start = torch.rand(
        len(ends), 1, generator=generator, dtype=ends.dtype, device=ends.device
    )
    points = (torch.arange(count, device=ends.device) + start) / count  # (B, M)
    last = (weights.T > 0).long().cumsum(1).argmax(1, keepdim=True)  # rounding's guard
    return torch.searchsorted(ends, points, right=True).minimum(last).T


def importance_resampled(
    model: LatentVariableModel,
    x: Tensor,
    *condition: Tensor,
    num_samples: int = 50,
    kept: int = 5,
    generator: torch.Generator | None = None,
) -> ElboTerms:
    """:func:`importance_weighted`, whose gradient passes through few of the K draws.

    Most of the K weights are small, yet each draw costs a pass back through the
    decoder. Here the weights of all K are computed without a gradient; then M of the
    draws are chosen with probabilities v_k (:func:`systematic_resampling`), and the
    gradient, Σ_k v_k ∇ log w_k, is the mean of theirs, unbiased for any M. In φ it is
    doubly reparameterised. With K = 50 and M = 5 a step takes about half the time.

    Args:
        model, x, condition, num_samples, generator: as for
            :func:`importance_weighted`.
        kept: M.

    Returns:
        :class:`~aevb.model.ElboTerms`, nats, (B,) each: the bound of all K draws.

    Raises:
        ValueError: num_samples < 1; kept < 1; a q(z | x) whose draws carry no gradient.
    """
    check_count("num_samples", num_samples)
    q_z = model.posterior(x, *condition)
    _check_reparameterised(q_z)
    z = rsample(q_z, (num_samples,), generator)  # (K, B, L)
    constant, prior = detached(q_z), model.prior(*condition)

    def terms(z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x | z) and log w."""
        log_p = model.likelihood(z, *condition).log_prob(x)
        return log_p, log_p + prior.log_prob(z) - constant.log_prob(z)

    with torch.no_grad():
        log_p, log_w = terms(z)  # (K, B)
        v = log_w.softmax(0)  # (K, B), sums to 1
        reconstruction = (v * log_p).sum(0)
        kl = reconstruction - log_w.logsumexp(0) + math.log(num_samples)
        chosen = systematic_resampling(v, kept, generator)  # (M, B)
        v_chosen = v.gather(0, chosen).unsqueeze(-1)  # (M, B, 1)
    z = z.gather(0, chosen.unsqueeze(-1).expand(-1, -1, z.shape[-1]))  # (M, B, L)
    if z.requires_grad:
        z.register_hook(lambda of_z: v_chosen * of_z)
    log_p, log_w = (part.mean(0) for part in terms(z))  # (B,), for their gradients
    return ElboTerms(
        reconstruction + _only_gradient(log_p), kl + _only_gradient(log_p - log_w)
    )


def _only_gradient(value: Tensor) -> Tensor:
    """Zero, with the gradient of ``value``."""
    return value - value.detach()


def _check_reparameterised(q_z) -> None:
    if not is_reparameterised(q_z):
        base = q_z.base_dist if isinstance(q_z, Independent) else q_z
        raise ValueError(
            f"q(z | x) is a {type(base).__name__}, whose draws carry no gradient;"
            " expected a distribution that is reparameterised"
        )


def marginalised(
    model: LatentVariableModel,
    x: Tensor,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    *,
    negligible: float = 0.0,
) -> ElboTerms:
    """For a latent class y beside z: the sum over y computed, z sampled for each y.

    Σ_y q(y | x) [(1/S) Σ_s log p(x | y, z_ys) - KL(q(z | x, y) ‖ p(z | y))]
    - KL(q(y | x) ‖ p(y)),  z_ys ~ q(z | x, y) reparameterised

    (``eq-gmvae-marginalised``). An unbiased estimate of the ELBO, value and gradient;
    no discrete draw is made. It costs a pass of the decoder for each class, or, once
    q(y | x) is sure of most images, a fraction of that: a class of negligible weight
    adds nothing to the sum and can be left out.

    Args:
        model: a :class:`~aevb.models.GaussianMixtureVAE`, or another model with
            ``class_prior()``, ``class_posterior(x)`` and ``classes``, its C classes as
            unit vectors, which its three other methods take behind x or z.
        x: (B, D).
        num_samples: S.
        generator: for the draws; the global one if None.
        negligible: classes of at most this weight are left out. 1e-8 is below the
            rounding of a sum in single precision. With 0 none are, and the estimator
            can be mapped over (``vmap``).

    Returns:
        :class:`~aevb.model.ElboTerms`, nats, (B,) each: ``reconstruction`` is the
        expectation over y of the log-likelihood, ``kl`` both divergences.

    Raises:
        ValueError: num_samples < 1.
    """
    check_count("num_samples", num_samples)
    q_y = model.class_posterior(x)  # (B,) over C classes
    weights, kept = q_y.probs, None
    if negligible:
        kept = (weights > negligible).nonzero(as_tuple=True)
        if 2 * len(kept[0]) > weights.numel():  # x once for all classes is cheaper
            kept = None
    if kept is None:
        images, classes = x.unsqueeze(1), model.classes  # broadcast to (B, C)
    else:
        images, classes = x[kept[0]], model.classes[kept[1]]  # (P,), the pairs kept
        weights = weights[kept]
    q_z = model.posterior(images, classes)
    z = rsample(q_z, (num_samples,), generator)  # (S, B, C, L) or (S, P, L)
    log_p = model.likelihood(z, classes).log_prob(images).mean(0)
    kl_z = kl_divergence(q_z, model.prior(classes))
    log_p, kl_z = weights * log_p, weights * kl_z
    if kept is None:
        log_p, kl_z = log_p.sum(-1), kl_z.sum(-1)
    else:
        nothing = torch.zeros_like(q_y.logits[..., 0])  # (B,)
        log_p, kl_z = (nothing.index_add(0, kept[0], part) for part in (log_p, kl_z))
    return ElboTerms(log_p, kl_z + categorical_kl(q_y, model.class_prior()))


def labelled(
    model: LatentVariableModel,
    x: Tensor,
    y: Tensor,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> ElboTerms:
    """For a class y beside z, where the classes of the examples are given.

    (1/S) Σ_s log p(x | y, z_s) - KL(q(z | x, y) ‖ p(z | y)) + log p(y) + log q(y | x)

    (``eq-gmvae-labelled``): the bound of a conditional VAE, and a classifier that is
    trained beside it; for labelled examples, Kingma et al. (2014). Since
    log q(y | x) <= 0, its mean is a lower bound on log p(x, y).

    Where y is given as probabilities of the classes, log p(y) and log q(y | x) are
    their means under these, and the other parts take y as the model does.

    Args:
        model: as for :func:`marginalised`.
        x: (B, D).
        y: (B,) int64, or probabilities (B, C).
        num_samples: S.
        generator: for the draws; the global one if None.

    Returns:
        :class:`~aevb.model.ElboTerms`, nats, (B,) each; ``kl`` holds all but the
        log-likelihood.

    Raises:
        ValueError: num_samples < 1.
    """
    check_count("num_samples", num_samples)
    q_z = model.posterior(x, y)
    z = rsample(q_z, (num_samples,), generator)  # (S, B, L)
    log_p = model.likelihood(z, y).log_prob(x)  # (S, B)
    log_y = model.class_prior().logits + model.class_posterior(x).logits  # (B, C)
    weights = y if y.is_floating_point() else model.classes[y]  # (B, C)
    log_y = (weights * log_y).sum(-1)
    return ElboTerms(log_p.mean(0), kl_divergence(q_z, model.prior(y)) - log_y)


def categorical_kl(q: Categorical, p: Categorical) -> Tensor:
    """KL(q ‖ p) = Σ_y q(y) log(q(y) / p(y)), nats (``eq-gmvae-class-kl``).

    torch's own cannot be mapped over (``vmap``).
    """
    return (q.probs * (q.logits - p.logits)).sum(-1)


def gumbel_softmax(
    model: LatentVariableModel,
    x: Tensor,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    *,
    temperature: float = 0.5,
    kl: str = "analytic",
    straight_through: bool = False,
) -> ElboTerms:
    """For a latent class y beside z: one relaxed draw of y in place of the sum.

    A one-hot y ~ q(y | x) is replaced by a point inside the simplex,
    ỹ = softmax((log q(y | x) + g) / τ) with Gumbel noise g (``eq-gumbel-softmax``; Jang
    et al., 2017; Maddison et al., 2017), through which gradients pass. What is
    estimated depends on how the class's divergence is treated:

    * ``kl="sampled"``: everything by sampling, with the density of the Concrete
      distribution for q *and* for p, both of temperature τ,
      log p(x | z) + log p(z | ỹ) + log p(ỹ) - log q(ỹ | x) - log q(z | x, ỹ)
      (``eq-gumbel-sampled``). Unbiased, value and gradient, for the ELBO of *another*
      model, whose latent ỹ is continuous, and in expectation a lower bound on that
      model's log p(x). As τ -> 0 the model becomes the discrete one, but the bound does
      not become the discrete ELBO: the divergence of the relaxed y does not depend on τ
      (``eq-gumbel-relaxed-kl``) and exceeds that of y.
    * ``kl="analytic"``: log p(x | z) - KL(q(z | x, ỹ) ‖ p(z | ỹ)) - KL(q(y | x) ‖ p(y))
      with the divergence of the *discrete* distributions (``eq-gumbel-analytic``). In
      expectation at least as large as the former, and a bound of neither model's
      log p(x). As τ -> 0 it tends to the ELBO, and the variance of its gradient grows
      without limit.
    * ``straight_through=True``: y is one-hot in the forward pass, an exact draw from
      q(y | x), and relaxed in the backward pass (``eq-gumbel-straight-through``). The
      value, and the gradient in θ, are unbiased for the ELBO; the gradient in φ is not.
      With ``kl="sampled"``, densities of y are those of the discrete distributions.

    Args:
        model, x, generator: as for :func:`marginalised`.
        num_samples: S, draws of (y, z) for each example.
        temperature: τ > 0.
        kl: ``"analytic"`` or ``"sampled"``.
        straight_through: see above.

    Returns:
        :class:`~aevb.model.ElboTerms`, nats, (B,) each. With ``kl="sampled"`` the
        divergences of y and of z are both estimates and can be negative.

    Raises:
        ValueError: num_samples < 1, temperature not positive, unknown ``kl``.
    """
    check_count("num_samples", num_samples)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a positive number")
    if kl not in ("analytic", "sampled"):
        raise ValueError(f"kl is {kl!r}; expected 'analytic' or 'sampled'")
    q_y, p_y = model.class_posterior(x), model.class_prior()
    relaxed_q, relaxed_p = (
        ExpRelaxedCategorical(
            q_y.logits.new_tensor(temperature), logits=d.logits, validate_args=False
        )
        for d in (q_y, p_y)
    )
    log_y = rsample(relaxed_q, (num_samples,), generator)  # (S, B, C), log ỹ
    y = log_y.exp()
    if straight_through:
        vertex = torch.zeros_like(y).scatter(-1, y.argmax(-1, keepdim=True), 1.0)
        y = y + (vertex - y).detach()
    q_z, p_z = model.posterior(x, y), model.prior(y)  # (S, B)
    z = rsample(q_z, (), generator)  # (S, B, L)
    log_p = model.likelihood(z, y).log_prob(x)  # (S, B)
    if kl == "analytic":
        divergence = categorical_kl(q_y, p_y) + kl_divergence(q_z, p_z)
    else:
        divergence = q_z.log_prob(z) - p_z.log_prob(z)
        if straight_through:
            divergence = divergence + (y * (q_y.logits - p_y.logits)).sum(-1)
        else:
            log_ratio = relaxed_q.log_prob(log_y) - relaxed_p.log_prob(log_y)
            divergence = divergence + log_ratio
    return ElboTerms(log_p.mean(0), divergence.mean(0))


def gradient_samples(
    model: LatentVariableModel,
    estimator: Callable[..., ElboTerms],
    x: Tensor,
    draws: int,
    *condition: Tensor,
    update: str = "both",
    seed: int = 0,
    chunk_size: int | None = None,
    **options,
) -> Tensor:
    """The estimated gradient of the mean ELBO of a batch, many times over.

    All draws are computed at once (:func:`torch.func.vmap`); each has noise of its own.

    Args:
        model: left as it is; its parameters receive no ``grad``.
        estimator: ``estimator(model, x, **options)`` gives :class:`ElboTerms`.
        x: (B, D), the same batch for every draw.
        draws: number of gradients.
        update: the parameters to differentiate in, ``"both"``, ``"inference"`` or
            ``"generative"``.
        seed: of the noise; the global random state is left as it was.
        chunk_size: draws at a time, to save memory; all of them if None.
        options: for the estimator, such as ``num_samples``.

    Returns:
        (draws, P), one flattened gradient a row, in the order of
        ``model.named_parameters()`` without those that do not move.

    Raises:
        ValueError: ``draws < 1``; unknown ``update``.
    """
    check_count("draws", draws)
    prefixes = {"both": "", "inference": "inference.", "generative": "generative."}
    if update not in prefixes:
        raise ValueError(f"update is {update!r}; expected one of {tuple(prefixes)}")
    moving, fixed = {}, dict(model.named_buffers())
    for name, p in model.named_parameters():
        moves = p.requires_grad and name.startswith(prefixes[update])
        (moving if moves else fixed)[name] = p.detach()

    def mean_elbo(parameters: dict[str, Tensor], _: Tensor) -> Tensor:
        shell = _Call(model, estimator, options)
        state = {f"model.{k}": v for k, v in (fixed | parameters).items()}
        return functional_call(shell, state, (x, *condition)).mean()

    gradients = vmap(
        grad(mean_elbo),
        in_dims=(None, 0),
        randomness="different",
        chunk_size=chunk_size,
    )
    with preserved(x.device):
        seed_device(seed, x.device)
        parts = gradients(moving, torch.empty(draws))
    return torch.cat([part.flatten(1) for part in parts.values()], 1)


def signal_to_noise(gradients: Tensor) -> float:
    """How far the mean of a gradient stands out of its noise.

    Mean over the parameters of |E[g]| / σ[g], each estimated from the draws
    (``eq-signal-to-noise``; Rainforth et al., 2018). One draw's sign is worth little
    where it is below 1.

    Parameters without noise, such as those that receive no gradient, are left out.
    The mean of n draws is itself noisy: a ratio of zero comes out as √(2 / (π n)), so
    take many more draws than 1 / ratio².

    Args:
        gradients: (draws, P), as :func:`gradient_samples` gives; columns of it, for the
            ratio of a part of the parameters. For the ratio of a mean of M gradients,
            average M rows at a time.

    Raises:
        ValueError: not (draws, P) with at least 2 draws; no parameter has any noise.

    Example:
        >>> noise = torch.randn(10000, 3, generator=torch.Generator().manual_seed(0))
        >>> round(signal_to_noise(2 + noise), 1)
        2.0
    """
    if gradients.ndim != 2 or len(gradients) < 2:
        raise ValueError(
            f"gradients has shape {tuple(gradients.shape)}; expected (draws, P) with at"
            " least 2 draws"
        )
    noise, signal = torch.std_mean(gradients.double(), 0)
    noisy = noise > 0
    if not noisy.any():
        raise ValueError("gradients are the same in all draws; expected noise")
    return (signal.abs() / noise)[noisy].mean().item()


class _Call(torch.nn.Module):
    """An estimator as the ``forward`` that ``functional_call`` asks for."""

    def __init__(self, model, estimator, options):
        super().__init__()
        self.model, self.estimator, self.options = model, estimator, options

    def forward(self, *batch: Tensor) -> Tensor:
        return self.estimator(self.model, *batch, **self.options).elbo
