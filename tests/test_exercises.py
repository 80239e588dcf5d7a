"""Checks of readers' answers: right, foreseen wrong, and other wrong ones."""

import math

import pytest
import torch

from aevb.exercises import NO_ANSWER, FunctionCheck, NumberCheck


@pytest.fixture
def number():
    return NumberCheck(-2.0, wrong=[(-1.4, "This is the bound."), (3.0, "Too deep.")])


def kl(q, p):
    return (q * (q / p).log()).sum(-1)


def kl_without_logarithm(q, p):
    return (q * (q / p)).sum(-1)


def kl_reversed(q, p):
    return kl(p, q)


@pytest.fixture
def function():
    q = torch.tensor([[0.5, 0.5], [0.1, 0.9]])
    return FunctionCheck(
        kl,
        inputs=[(q, q.flip(1) / 2 + 0.25), (q[1], q[0])],
        wrong=[
            (kl_without_logarithm, "The logarithm is missing."),
            (kl_reversed, "This is the other direction."),
        ],
    )


def test_a_right_number(number):
    for answer in (-2, -2.0, -2.0015, torch.tensor(-2.0), torch.tensor(-2)):
        assert number(answer)
    assert number(-2.0).message == "Right."


def test_each_foreseen_wrong_number_has_its_own_message(number):
    assert not number(-1.4)
    assert repr(number(-1.4)) == "This is the bound."
    assert repr(number(torch.tensor(3.0))) == "Too deep."


@pytest.mark.parametrize("answer", [..., None])
def test_no_answer_yet(number, function, answer):
    assert repr(number(answer)) == repr(function(answer)) == NO_ANSWER
    assert not number(answer)


@pytest.mark.parametrize(
    "answer, words",
    [
        (2.0, "sign is wrong: 2"),
        (-2 / math.log(2), "in bits"),
        (math.exp(-2), "exponential"),
        (-5, "-5 is too small"),
        (7.0, "7 is too large"),
        (float("nan"), "finite"),
        (torch.zeros(3), r"shape is (3,); () is expected"),
        ("minus two", "type str"),
        (True, "type bool"),
        (object(), "type object"),
    ],
)
def test_what_is_wrong_with_other_numbers(number, answer, words):
    assert not number(answer)
    assert words in number(answer).message


def test_tensors_of_numbers():
    check = NumberCheck(torch.tensor([1.0, 2.0]), tolerance=0.1)
    assert check([1.05, 1.95])
    assert "error of an entry is 1" in check([1.0, 3.0]).message
    assert "sign is wrong" in check([-1.0, -2.0]).message
    assert "logarithm" in check([0.0, math.log(2)]).message
    assert check(torch.tensor([1.0, 2.0], requires_grad=True))


def test_a_right_answer_of_zero_has_a_tolerance():
    assert NumberCheck(0.0)(1e-9)
    assert not NumberCheck(0.0)(1e-3)


def test_functions(function):
    assert function(lambda q, p: (q * (q.log() - p.log())).sum(-1))
    assert repr(function(kl_without_logarithm)) == "The logarithm is missing."
    assert repr(function(kl_reversed)) == "This is the other direction."
    assert "Call 1 of 2" in function(lambda q, p: kl(q, p) + 1).message
    assert "sign" in function(lambda q, p: -kl(q, p)).message
    assert "shape" in function(lambda q, p: kl(q, p).mean()).message


def test_a_foreseen_wrong_function_may_overflow():
    big = torch.tensor([1.0, 2.0]).double() * 1000
    check = FunctionCheck(
        lambda t: t.logsumexp(0),
        inputs=[(big,)],
        wrong=[(lambda t: t.exp().sum().log(), "It overflows.")],
    )
    assert repr(check(lambda t: t.exp().sum().log())) == "It overflows."
    assert "finite" in check(lambda t: -t.exp().sum().log()).message


def test_functions_that_do_not_run(function):
    def stub(q, p):
        raise NotImplementedError("your code here")

    assert repr(function(stub)) == NO_ANSWER
    assert "ZeroDivisionError" in function(lambda q, p: 1 / 0).message
    assert "TypeError" in function(lambda q: q).message
    assert not function(lambda q, p: None)


def test_a_function_cannot_spoil_the_inputs(function):
    def careless(q, p):
        value = kl(q, p)
        q.zero_()
        return value

    assert function(careless)
    assert function(kl)


def test_a_function_that_draws_gets_one_seed_and_leaves_the_global_one_alone():
    state = torch.random.get_rng_state()
    check = FunctionCheck(lambda n: torch.randn(n), inputs=[(3,), (2,)])
    assert check(lambda n: torch.randn(n))
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_check_that_cannot_tell_wrong_from_right_is_refused():
    with pytest.raises(ValueError, match="cannot be told"):
        NumberCheck(1.0, wrong=[(1.0001, "Nearly.")])
    with pytest.raises(ValueError, match="cannot be told"):
        NumberCheck(1.0, wrong=[(2.0, "One."), (2.0, "The other.")])
    with pytest.raises(ValueError, match="no message"):
        NumberCheck(1.0, wrong=[(2.0, "")])
    symmetric = [(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5]))]
    with pytest.raises(ValueError, match="cannot be told"):
        FunctionCheck(kl, symmetric, wrong=[(kl_reversed, "The other direction.")])
    with pytest.raises(ValueError, match="inputs is empty"):
        FunctionCheck(kl, [])
