"""Solutions of exercises that have no check in their chapters yet."""

import ast

import made_up
import pytest
import torch
from torch.distributions import kl_divergence

from aevb import estimators, models
from aevb.model import ElboTerms
from tools import conventions as c
from tools import rules


def solution(number, **names):
    """The function that the solution of an exercise defines, among these names."""
    (path,) = [p for p in c.chapters() if c.chapter_of(p) == int(number.split(".")[0])]
    cells = made_up.read(path).cells
    (exercise,) = [x for x in c.exercises(cells) if x.number == number]
    body = ast.parse(cells[exercise.solution].source).body
    (function,) = [x for x in body if isinstance(x, ast.FunctionDef)]
    code = ast.Module([function], type_ignores=[])
    exec(compile(code, f"solution of {number}", "exec"), names)
    return names[function.name]


@pytest.fixture
def mixture():
    return models.GaussianMixtureVAE(
        num_classes=3, data_dim=6, latent_dim=2, hidden=(8,)
    )


def test_a_solution_that_its_chapter_checks_needs_no_test_here():
    assert {"8.6", "9.5", "9.6"} <= rules.UNCHECKED


def test_8_6_the_same_distribution_with_a_fixed_prior():
    sizes = dict(data_dim=6, latent_dim=2, hidden=(8, 8), dropout=0.0)
    convert = solution("8.6", torch=torch, models=models, network=sizes)
    full = models.ConditionalVAE(**sizes)
    full.generative["prior"].std.weight.data.zero_()  # one σ for all labels
    labels, noise = torch.arange(10), torch.randn(10, 2)
    prior = full.prior(labels)
    expected = full.likelihood(prior.mean + prior.stddev * noise, labels).mean
    found = convert(full)
    assert found.condition == "likelihood"
    torch.testing.assert_close(found.likelihood(noise, labels).mean, expected)
    plain = models.ConditionalVAE(condition="likelihood", **sizes)
    off = plain.likelihood(noise, labels).mean - expected
    assert off.abs().max() > 1e-3


def test_9_5_no_gap_where_the_guess_is_the_best_one(mixture):
    class_gap = solution(
        "9.5", torch=torch, kl_divergence=kl_divergence, estimators=estimators
    )
    x = (torch.rand(5, 6) > 0.5).float()
    q_z = mixture.posterior(x[:, None], mixture.classes)
    p_x = mixture.likelihood(q_z.sample((20_000,)))
    f = p_x.log_prob(x[:, None]).mean(0)
    f = (f - kl_divergence(q_z, mixture.prior(mixture.classes))).detach()
    guess = mixture.class_posterior(x)
    at_q = (guess.probs * (f - guess.logits)).sum(-1)  # of the bound, and its top
    expected = f.logsumexp(-1) - at_q
    found = class_gap(mixture, x, draws=20_000)
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0.05)
    mixture.class_posterior = lambda x: torch.distributions.Categorical(logits=f)
    assert class_gap(mixture, x, draws=20_000).abs().max() < 0.01


def test_9_6_one_noise_for_all_classes_is_unbiased(mixture):
    one_noise = solution(
        "9.6",
        torch=torch,
        kl_divergence=kl_divergence,
        estimators=estimators,
        ElboTerms=ElboTerms,
    )
    x = (torch.rand(1, 6) > 0.5).float().expand(20_000, 6)
    found, usual = one_noise(mixture, x), estimators.marginalised(mixture, x)
    torch.testing.assert_close(found.kl, usual.kl)
    sum_of_errors = (found.elbo.var() + usual.elbo.var()) / len(x)
    assert abs(found.elbo.mean() - usual.elbo.mean()) < 4 * sum_of_errors.sqrt()
    assert found.elbo.std() != usual.elbo.std()
