"""The exam questions: every number of an answer is computed again.

A number in bold within an answer is looked up here, under the name of its question and
in the order of the page, and must agree to the last digit printed.
"""

import math
import re

import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Categorical, Normal, kl_divergence

from aevb import evaluation, models
from aevb.distributions import ContinuousBernoulli
from tools import conventions as c

PAGE = (c.ROOT / "book" / "exam.md").read_text(encoding="utf-8")
QUESTION = re.compile(
    r"^### Q(?P<number>\d+)\. (?P<title>[^\n]+)\n\n"
    r"\*Chapter (?P<chapter>\d+); (?P<kind>[^;]+); (?P<stars>★+)\*\n"
    r"(?P<text>.*?)\n<details>\n<summary>Answer</summary>\n(?P<answer>.*?)\n</details>",
    re.M | re.S,
)
QUESTIONS = [m.groupdict() for m in QUESTION.finditer(PAGE)]
BOLD = re.compile(r"\*\*(-?[\d,]+(?:\.\d+)?)\*\*")


def q1():
    weights = torch.tensor([0.6, 0.4]).double()
    parts = Normal(torch.tensor([0.0, 3.0]).double(), torch.tensor([1.0, 2.0]).double())
    joint = weights * parts.log_prob(torch.tensor(1.0).double()).exp()
    return joint.sum().log(), joint[1] / joint.sum()


def q2():
    def average_variance(factors):
        basis, _ = torch.linalg.qr(torch.randn(2 * factors, factors).double())
        loadings = (2 * 0.7) ** 0.5 * basis
        matrix = torch.eye(factors) + loadings.T @ loadings / 0.7
        return torch.linalg.det(matrix) - 1

    five = average_variance(5)
    information = 0.5 * torch.log(five + 1)
    return five, 100 * five, 100 * average_variance(10), information


def q3():
    means = torch.tensor([0.0, 3.0], requires_grad=True)
    log_joint = Normal(means, 1.0).log_prob(torch.tensor(1.0)) + math.log(0.5)
    log_joint.logsumexp(0).backward()
    return means.grad


def q4():
    joint = torch.tensor([0.03, 0.09]).double()
    half, certain = Categorical(torch.tensor([0.5, 0.5]).double()), joint[0].log()
    elbo = (half.probs * joint.log()).sum() + half.entropy()
    evidence = joint.sum().log()
    gap = kl_divergence(half, Categorical(joint))
    assert torch.isclose(elbo + gap, evidence)
    return evidence, elbo, gap, certain, evidence - certain


def q5():
    x, rates = torch.tensor([1.0, 2.0, 9.0]).double(), torch.tensor([2.0, 8.0]).double()
    weights = torch.tensor([0.5, 0.5]).double()

    def step(weights, rates):
        log_joint = torch.distributions.Poisson(rates).log_prob(x[:, None])
        log_joint = log_joint + weights.log()
        r = log_joint.softmax(1)
        evidence = log_joint.logsumexp(1).mean()
        return r, r.mean(0), (r * x[:, None]).sum(0) / r.sum(0), evidence

    r, weights, rates, before = step(weights, rates)
    assert step(weights, rates)[-1] > before
    return *r[:, 0], weights[0], *rates


def q7():
    rate, gain = 0.9, 1.0
    errors = [rate**k for k in range(2000)]
    missing = [e**2 for e in errors]
    last = missing[0] - missing[1]
    iterations = next(k for k, e in enumerate(errors) if e <= 1e-3)
    return gain * missing[1] / last, iterations


def q8():
    covariance = torch.tensor([[2.0, 1.0], [1.0, 1.0]]).double()
    exact = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance)
    narrow = 1 / torch.linalg.inv(covariance).diag()
    best = torch.distributions.MultivariateNormal(
        torch.zeros(2).double(), narrow.diag()
    )
    for scale in ([1.01, 1], [1, 1.01], [0.99, 1], [1, 0.99]):
        other = (narrow * torch.tensor(scale).double()).diag()
        other = torch.distributions.MultivariateNormal(torch.zeros(2).double(), other)
        assert kl_divergence(best, exact) < kl_divergence(other, exact)
    return *narrow, *covariance.diag(), kl_divergence(best, exact)


def q10():
    def cost(share):  # two humps far apart
        def ratio(z):
            log_p = math.log(
                share * stats.norm.pdf(z) + (1 - share) * stats.norm.pdf(z, 60)
            )
            return stats.norm.pdf(z) * (stats.norm.logpdf(z) - log_p)

        return integrate.quad(ratio, -9, 9)[0]

    return cost(0.7), cost(0.3)


def q11():
    evidence, best, network, trained = -84.1, -85.5, -88.9, -86.4
    return evidence - network, evidence - best, best - network, best - trained


def q12():
    return [(4 + 36 / draws) / batch for batch, draws in ((64, 1), (16, 4))]


def q13():
    step, curvature, variance = 0.1, 2.0, 0.0
    for _ in range(1000):  # the recursion above (4.9)
        variance = (1 - step * curvature) ** 2 * variance + step**2 * 9 / 36
    return -103.5 + 105.0 - 0.9, 0.9 - 0.4, 2 / curvature, variance**0.5


def q16():
    def moment(function):
        density = lambda e: function(e) * stats.norm.pdf(e)  # noqa: E731
        return integrate.quad(density, -20, 20)[0]

    def variance(function):
        return moment(lambda e: function(e) ** 2) - moment(function) ** 2

    f = lambda e: (1 + e) ** 2  # noqa: E731
    mean = moment(f)
    best = moment(lambda e: f(e) * e**2) / moment(lambda e: e**2)
    derivative = moment(lambda e: 2 * (1 + e))
    assert moment(lambda e: f(e) * e) == pytest.approx(derivative)
    return (
        derivative,
        variance(lambda e: 2 * (1 + e)),
        variance(lambda e: f(e) * e),
        variance(lambda e: (f(e) - mean) * e),
        best,
        variance(lambda e: (f(e) - best) * e),
    )


def q19():
    work = {s: (1 + 8 / s) * (2 + s) for s in range(1, 20)}
    best = min(work, key=work.get)
    return best, work[1] / work[best]


def q21():
    x = 3.0
    joint = lambda z: stats.norm.pdf(z) * stats.norm.pdf(x, 2 * z, 1)  # noqa: E731
    evidence = integrate.quad(joint, -20, 20)[0]
    mean = integrate.quad(lambda z: z * joint(z) / evidence, -20, 20)[0]
    second = integrate.quad(lambda z: z * z * joint(z) / evidence, -20, 20)[0]

    def elbo(m, variance):
        def integrand(z):
            q = stats.norm(m, variance**0.5)
            log_joint = stats.norm.logpdf(z) + stats.norm.logpdf(x, 2 * z, 1)
            return q.pdf(z) * (log_joint - q.logpdf(z))

        return integrate.quad(integrand, m - 12, m + 12)[0]

    model = models.FactorAnalysis.from_parameters(
        torch.tensor([[2.0]]), torch.tensor([1.0])
    )
    log_p = math.log(evidence)
    assert log_p == pytest.approx(model.evidence(torch.tensor([[x]])).item(), abs=1e-5)
    wide, off = elbo(0.4 * x, 1.0), elbo(0.5 * x, 0.2)
    return second - mean**2, mean, log_p, log_p - wide, wide, log_p - off


def q22():
    def excess(d, f):
        return d * (d + 1) // 2 - (d * f + d - f * (f - 1) // 2)

    return excess(5, 2), excess(5, 3), max(f for f in range(10) if excess(10, f) >= 0)


def q23():
    prior, q = Normal(0.0, 1.0), Normal(1.5, 0.5)
    return 8 - 2500 / (784 * math.log(2)), kl_divergence(q, prior)


def q24():
    return 28 * 28, 3 * 64 * 64


def q25():
    pixel = ContinuousBernoulli(logits=torch.tensor(2.0).double())
    share = torch.tensor(2.0).double().sigmoid().item()
    density = lambda x: math.exp(2 * x)  # noqa: E731
    log_z = math.log(integrate.quad(density, 0, 1)[0])
    bare = integrate.quad(lambda x: share**x * (1 - share) ** (1 - x), 0, 1)[0]
    at_one = pixel.log_prob(torch.tensor(1.0).double())
    return share, pixel.mean, log_z, at_one, bare, -math.log(bare)


def q26():
    return stats.entropy([0.5, 0.25, 0.25]), -math.log(0.75)


def q27():
    log_p = torch.tensor([0.7, 0.3]).double().log()
    bounds = torch.tensor([1203.1, 1204.0]).double()
    better = bounds + torch.tensor([2.5, 1.2]).double()
    return [(b + log_p).softmax(0)[0] for b in (bounds, better)]


def q28():
    f = torch.tensor([-80.0, -82.0, -90.0]).double()
    best = Categorical(logits=f)
    uniform = Categorical(torch.ones(3).double())

    def elbo(q):
        return (q.probs * f).sum() - kl_divergence(q, uniform)

    certain = Categorical(torch.tensor([1.0, 0.0, 0.0]).double())
    without = (best.probs * f).sum() + best.entropy()
    return best.probs[0], elbo(best), elbo(certain), without - elbo(best)


def q29():
    rows = re.findall(r"\| cluster \w \| (\d+) \| (\d+) \| (\d+) \|", text("q29"))
    counts = torch.tensor([[int(n) for n in row] for row in rows])
    clusters = torch.arange(3).repeat_interleave(3)
    kinds = torch.arange(3).repeat(3)
    predicted = clusters.repeat_interleave(counts.flatten())
    truth = kinds.repeat_interleave(counts.flatten())
    matched = evaluation.clustering_accuracy(predicted, truth)
    return float(matched), counts.max(1).values.sum() / counts.sum()


def q31():
    q = Normal(1.0, 0.5)
    return kl_divergence(q, Normal(0.8, 0.4)), kl_divergence(q, Normal(0.0, 1.0))


def q32():
    parts = torch.tensor([[-1.0, -3.0], [-5.0, -1.0]]).double()  # steps by paths
    paths = parts.sum(0).logsumexp(0) - math.log(2)
    return paths, (parts.logsumexp(1) - math.log(2)).sum()


def q34():
    log_w = torch.tensor([-100.0, -101.0, -104.0, -110.0]).double()
    weights = (log_w - log_w.max()).exp()
    size = weights.sum() ** 2 / weights.square().sum()
    bound = log_w.logsumexp(0) - math.log(4)
    return log_w.mean(), bound, size, 0.5 * (1 / size - 1 / 4)


def q35():
    def gap(s):
        return kl_divergence(Normal(0.0, s**0.5), Normal(0.0, 1.0)).item()

    def squared(z):
        return stats.norm.pdf(z) ** 2 / stats.norm.pdf(z, 0, 2**0.5)

    variance = integrate.quad(squared, -30, 30)[0] - 1
    return gap(2.0), gap(0.4), variance, math.ceil(variance / 0.002)


def q36():
    return math.sqrt(64), 1 / math.sqrt(1 / 64)


def q37():
    def carried(level):
        nats = [0.5 * math.log(v / level) for v in (5, 2, 0.8, 0.1) if v > level]
        return sum(nats), len(nats)

    return *carried(0.25), *carried(4 * 0.25)


def q39():
    density = lambda z: 5 * z * stats.norm.pdf(z) * stats.norm.cdf(z) ** 4  # noqa: E731
    largest = integrate.quad(density, -10, 10)[0]
    return largest, 0.3 * largest


def q40():
    c_ = 15 / (30 / 4 - 1) - 1
    assert stats.betabinom(16, c_ / 2, c_ / 2).var() == pytest.approx(30)
    return stats.poisson(14).sf(16), stats.binom(16, 0.5).var(), c_


COMPUTED = {name: f for name, f in globals().items() if re.fullmatch(r"q\d+", name)}


def text(name):
    return next(q["text"] for q in QUESTIONS if f"q{q['number']}" == name)


def test_every_question_is_well_formed():
    assert len(QUESTIONS) == len(re.findall(r"^### ", PAGE, re.M)) >= 25
    assert [int(q["number"]) for q in QUESTIONS] == list(range(1, len(QUESTIONS) + 1))
    assert {len(q["stars"]) for q in QUESTIONS} == {1, 2, 3}


def test_every_chapter_is_asked_about():
    asked = {int(q["chapter"]) for q in QUESTIONS}
    assert asked == {c.chapter_of(path) for path in c.chapters()}


def test_every_number_is_computed():
    with_numbers = {f"q{q['number']}" for q in QUESTIONS if BOLD.search(q["answer"])}
    assert with_numbers == set(COMPUTED)
    for question in QUESTIONS:
        assert not BOLD.search(question["text"]), question["title"]


@pytest.mark.parametrize("name", COMPUTED)
def test_numbers(name):
    answer = next(q["answer"] for q in QUESTIONS if f"q{q['number']}" == name)
    printed = BOLD.findall(answer)
    computed = [float(value) for value in COMPUTED[name]()]
    assert len(printed) == len(computed), (printed, computed)
    for shown, value in zip(printed, computed, strict=True):
        digits = len(shown.partition(".")[2])
        assert f"{value:,.{digits}f}" == f"{float(shown.replace(',', '')):,.{digits}f}"
