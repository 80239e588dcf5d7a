"""Checks of readers' answers: right, foreseen wrong, and other wrong ones."""

import math

import pytest
import torch

from aevb.exercises import NO_ANSWER, FunctionCheck, NumberCheck, PropertyCheck


@pytest.fixture
def number():
    return NumberCheck(-2.0, wrong=[(-1.4, "This is the bound."), (3.0, "Too deep.")])


@pytest.fixture
def properties():
    """Two draws from N(0, 4), wherever their numbers come from."""
    return PropertyCheck(
        inputs=[(4000,), (2000,)],
        properties=[
            (lambda a, b: len(a) == 4000 and len(b) == 2000, "As many as asked."),
            (lambda a, b: abs(a.std() - 2) < 0.2, "4 is a variance."),
            (lambda a, b: a.std() != b.std(), "Draw anew."),
        ],
    )


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
def test_no_answer_yet(number, function, properties, answer):
    for check in (number, function, properties):
        assert repr(check(answer)) == NO_ANSWER
        assert not check(answer)


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


def test_properties(properties):
    assert properties(lambda n: 2 * torch.randn(n))
    assert properties(lambda n: 2 * torch.randn(n).flip(0))
    assert repr(properties(lambda n: torch.zeros(7))) == "As many as asked."
    assert repr(properties(lambda n: 4 * torch.randn(n))) == "4 is a variance."
    assert not properties(lambda n: 4 * torch.randn(n))


def test_answers_without_the_right_kind_of_value(properties):
    def stub(n):
        raise NotImplementedError("your code here")

    class Half:
        def __init__(self, n):
            self.n = n

        def __len__(self):
            raise NotImplementedError("your code here")

    assert repr(properties(stub)) == repr(properties(Half)) == NO_ANSWER
    assert "It stops with TypeError" in properties(lambda n: n).message
    assert "ZeroDivisionError" in properties(lambda n: 1 / 0).message


def test_properties_leave_inputs_and_the_global_generator_alone():
    state = torch.random.get_rng_state()
    start = torch.ones(2)
    check = PropertyCheck(
        [(start,)], [(lambda value: value.sum() == 0 * torch.randn(1), "Zero it.")]
    )
    assert check(lambda x: torch.randn(1) * x.zero_())
    assert start.sum() == 2
    assert torch.equal(state, torch.random.get_rng_state())


def test_models_among_the_inputs_are_put_back():
    """A state_dict shares its memory with the model."""
    given = torch.nn.Linear(2, 3)
    old = given.weight.detach().clone()
    check = PropertyCheck(
        [(given,)], [(lambda made: (made.weight == 0).all(), "All weights are zero.")]
    )

    def zeroed(model):
        state = model.state_dict()
        state["weight"].zero_()
        made = torch.nn.Linear(2, 3)
        made.load_state_dict(state)
        return made

    assert check(zeroed) and check(zeroed)
    assert torch.equal(given.weight, old)


def test_a_property_may_look_at_gradients_of_a_given_model():
    given = torch.nn.Linear(2, 3)
    x = torch.ones(4, 2, requires_grad=True)

    def is_felt(value):
        return torch.autograd.grad(value.square().sum(), given.weight)[0].any()

    check = PropertyCheck([(given,)], [(is_felt, "The model has no part in it.")])
    assert check(lambda model: model(x))


def test_a_property_needs_a_message_of_its_own():
    def fine(value):
        return True

    with pytest.raises(ValueError, match="a message of its own"):
        PropertyCheck([(1,)], [(fine, "")])
    with pytest.raises(ValueError, match="a message of its own"):
        PropertyCheck([(1,)], [(fine, "No."), (fine, "No.")])
    with pytest.raises(ValueError, match="properties is empty"):
        PropertyCheck([(1,)], [])
    with pytest.raises(ValueError, match="inputs is empty"):
        PropertyCheck([], [(fine, "No.")])


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


def test_infinite_entries_of_what_is_expected_leave_the_tolerance_finite():
    check = NumberCheck(torch.tensor([1.0, math.inf]))
    assert check(torch.tensor([1.0005, math.inf]))
    assert not check(torch.tensor([7.0, math.inf]))
    assert not check(torch.tensor([1.0, 3.0]))
    assert NumberCheck(-math.inf)(-math.inf) and not NumberCheck(-math.inf)(5.0)
    function = FunctionCheck(torch.log, inputs=[(torch.tensor([0.0, 3.0]),)])
    assert function(torch.log) and not function(torch.exp)


def test_a_tolerance_of_zero():
    assert NumberCheck(1.0, tolerance=0.0)(1.0)
    assert not NumberCheck(1.0, tolerance=0.0)(1.0005)
    function = FunctionCheck(lambda x: x, inputs=[(1.0,)], tolerance=0.0)
    assert function(lambda x: x) and not function(lambda x: x + 5e-4)


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
