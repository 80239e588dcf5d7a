"""Exercises that check themselves: an answer is compared with what is right.

A check is made from the right answer and from the wrong answers that people really
give, each with a message of its own. Called with a reader's answer it returns a
:class:`Verdict`, which prints its message and is true where the answer is right::

    check = NumberCheck(expected=-1.99, wrong=[(-1.38, "This is the bound.")])
    check(answer)

:class:`FunctionCheck` compares a function's values in the same way. Where right answers
differ, because they draw or start elsewhere, :class:`PropertyCheck` asks for what they
have in common.

While there is no answer (``...``, ``None``, or a function that raises
``NotImplementedError``) the verdict says so, and a notebook runs on. A check that
could not tell one of its wrong answers from the right one is refused when it is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aevb.model import restored
from aevb.randomness import preserved, seed_device

__all__ = ["FunctionCheck", "NumberCheck", "PropertyCheck", "Verdict"]

NO_ANSWER = "No answer yet: replace the line that says 'your code here', and run again."
RIGHT = "Right."
CPU = torch.device("cpu")  # where the inputs of checks lie


@dataclass(frozen=True)
class Verdict:
    """What a check says: true if the answer is right, with a message."""

    right: bool
    message: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return self.message


class NumberCheck:
    """Compares a number, or a tensor of numbers, with the expected one.

    Args:
        expected: the right answer.
        wrong: pairs of a wrong answer and the message for it.
        tolerance: largest accepted distance in any entry; a thousandth of the largest
            finite entry of ``expected`` if None.

    Raises:
        ValueError: a wrong answer has no message, or lies within the tolerance of the
            right one or of another wrong one.

    Example:
        >>> check = NumberCheck(0.5, wrong=[(2.0, "This is the precision.")])
        >>> check(0.5)
        Right.
        >>> check(2.0)
        This is the precision.
        >>> check(-0.5)
        The size is right and the sign is wrong: -0.5.
        >>> bool(check(0.5)), bool(check(...))
        (True, False)
    """

    def __init__(
        self,
        expected: float | Tensor,
        wrong: Sequence[tuple[float | Tensor, str]] = (),
        tolerance: float | None = None,
    ):
        self.expected = _tensor(expected)
        self.tolerance = _tolerance(tolerance, self.expected)
        self.wrong = [(_tensor(value), message) for value, message in wrong]
        _check_distinct(
            [self.expected, *(value for value, _ in self.wrong)],
            [message for _, message in self.wrong],
            lambda a, b: _close(a, b, self.tolerance),
        )

    def __call__(self, answer: Any) -> Verdict:
        if answer is None or answer is ...:
            return Verdict(False, NO_ANSWER)
        try:
            answer = _tensor(answer)
        except (TypeError, ValueError, RuntimeError):
            kind = type(answer).__name__
            return Verdict(False, f"Of type {kind}; a number or a tensor is expected.")
        if _close(answer, self.expected, self.tolerance):
            return Verdict(True, RIGHT)
        for value, message in self.wrong:
            if _close(answer, value, self.tolerance):
                return Verdict(False, message)
        return Verdict(False, _diagnosis(answer, self.expected, self.tolerance))


class FunctionCheck:
    """Calls a function on some inputs and compares it with the reference.

    Each call gets copies of the inputs and a freshly seeded generator behind
    ``torch``'s functions, so that a function may draw.

    Args:
        reference: the right function.
        inputs: tuples of arguments, one for each call.
        wrong: pairs of a wrong function and the message for it.
        tolerance: largest accepted distance in any entry; a thousandth of the largest
            finite entry of the reference's value if None.

    Raises:
        ValueError: no inputs, a wrong answer without a message, or one that the inputs
            cannot tell from the right one or from another wrong one.

    Example:
        >>> check = FunctionCheck(
        ...     lambda q, p: (q * (q / p).log()).sum(),
        ...     inputs=[(torch.tensor([0.5, 0.5]), torch.tensor([0.2, 0.8]))],
        ...     wrong=[(lambda q, p: (q * (q / p)).sum(), "The logarithm is missing.")],
        ... )
        >>> check(lambda q, p: (q * q / p).sum())
        The logarithm is missing.
        >>> check(lambda q, p: (q * (q.log() - p.log())).sum())
        Right.
    """

    def __init__(
        self,
        reference: Callable,
        inputs: Sequence[tuple],
        wrong: Sequence[tuple[Callable, str]] = (),
        tolerance: float | None = None,
    ):
        if not inputs:
            raise ValueError("inputs is empty; expected at least one tuple")
        self.inputs, self.wrong = list(inputs), list(wrong)
        self.expected = self._values(reference)
        self.tolerances = [_tolerance(tolerance, value) for value in self.expected]
        self.wrong_values = [self._values(function) for function, _ in self.wrong]
        _check_distinct(
            [self.expected, *self.wrong_values],
            [message for _, message in self.wrong],
            self._same,
        )

    def _values(self, function: Callable) -> list[Tensor]:
        return [_tensor(value) for value in _call(function, self.inputs)]

    def _same(self, first: list[Tensor], second: list[Tensor]) -> bool:
        triples = zip(first, second, self.tolerances, strict=True)
        return all(_close(a, b, tolerance) for a, b, tolerance in triples)

    def __call__(self, function: Any) -> Verdict:
        values = _attempt(self._values, function)
        if isinstance(values, Verdict):
            return values
        if self._same(values, self.expected):
            return Verdict(True, RIGHT)
        for wrong, (_, message) in zip(self.wrong_values, self.wrong, strict=True):
            if self._same(values, wrong):
                return Verdict(False, message)
        for k, (value, expected) in enumerate(zip(values, self.expected, strict=True)):
            if not _close(value, expected, self.tolerances[k]):
                message = _diagnosis(value, expected, self.tolerances[k])
                return Verdict(False, f"Call {k + 1} of {len(values)}: {message}")
        raise AssertionError("unreachable: one of the values differs")


class PropertyCheck:
    """Calls a function, or a class, and asks for what every right answer has.

    For answers that may differ: in what they draw, where they start, which order they
    keep. The calls are those of :class:`FunctionCheck`, and the first property that is
    missing says what is wrong. Properties may draw as well.

    Args:
        inputs: tuples of arguments, one for each call.
        properties: pairs of a property and the message for an answer that lacks it. A
            property is a function of the values of all calls, in their order.

    Raises:
        ValueError: no inputs, no properties, or a property without a message of its
            own.

    Example:
        >>> check = PropertyCheck(
        ...     inputs=[(1000,), (2000,)],
        ...     properties=[
        ...         (lambda a, b: (len(a), len(b)) == (1000, 2000), "Draw n numbers."),
        ...         (lambda a, b: abs(b.std() - 2) < 0.2, "4 is a variance: root it."),
        ...     ],
        ... )
        >>> check(lambda n: 4 * torch.randn(n))
        4 is a variance: root it.
        >>> check(lambda n: torch.randn(n) + 3**0.5 * torch.randn(n))
        Right.
    """

    def __init__(
        self,
        inputs: Sequence[tuple],
        properties: Sequence[tuple[Callable, str]],
    ):
        if not inputs:
            raise ValueError("inputs is empty; expected at least one tuple")
        if not properties:
            raise ValueError("properties is empty; expected at least one pair")
        messages = [message for _, message in properties]
        if not all(messages) or len({*messages}) < len(messages):
            raise ValueError("each property needs a message of its own")
        self.inputs, self.properties = list(inputs), list(properties)

    def __call__(self, function: Any) -> Verdict:
        return _attempt(self._judge, function)

    def _judge(self, function: Callable) -> Verdict:
        values = _call(function, self.inputs)
        for has, message in self.properties:
            if not _seeded(has, *values):
                return Verdict(False, message)
        return Verdict(True, RIGHT)


def _call(function: Callable, inputs: Sequence[tuple]) -> list[Any]:
    """The function's values for copies of tensors, and for models that are put back."""
    values = []
    for arguments in inputs:
        with _kept(arguments):
            values.append(_seeded(function, *map(_copy, arguments)))
    return values


def _kept(arguments: tuple):
    """A context after which the weights of the models among them are what they were."""
    models = [value for value in arguments if isinstance(value, torch.nn.Module)]
    return restored([part for model in models for part in model.state_dict().values()])


def _seeded(function: Callable, *arguments: Any) -> Any:
    """One call, with a freshly seeded generator, which is then put back."""
    with preserved(CPU):
        seed_device(0, CPU)
        return function(*arguments)


def _attempt(compute: Callable, function: Any) -> Any:
    """``compute(function)``, or the verdict where there is nothing to be judged."""
    if function is None or function is ...:
        return Verdict(False, NO_ANSWER)
    try:
        return compute(function)
    except NotImplementedError:
        return Verdict(False, NO_ANSWER)
    except Exception as error:
        kind = type(error).__name__
        return Verdict(False, f"It stops with {kind}: {error}")


def _tensor(value: Any) -> Tensor:
    if isinstance(value, bool | str) or value is None:
        raise TypeError(f"{value!r} is not a number")
    return torch.as_tensor(value).detach().cpu().double()


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _tolerance(given: float | None, expected: Tensor) -> float:
    """Of a check: what it was given, or what suits the size of the finite entries."""
    if given is not None:
        return given
    finite = expected[expected.isfinite()]
    return 1e-3 * max(finite.abs().tolist(), default=0.0) or 1e-6


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if a.shape != b.shape:
        return False
    return bool(((a == b) | ((a - b).abs() <= tolerance)).all())  # also of infinities


def _check_distinct(answers: list, messages: list[str], same: Callable) -> None:
    if not all(messages):
        raise ValueError("a wrong answer has no message")
    for k, answer in enumerate(answers):
        for earlier in answers[:k]:
            if same(answer, earlier):
                raise ValueError(
                    f"wrong answer {k} ({messages[k - 1]!r}) cannot be told from the"
                    " right one or from another wrong one"
                )


def _diagnosis(answer: Tensor, expected: Tensor, tolerance: float) -> str:
    """What is wrong with an answer that nobody foresaw."""
    if answer.shape != expected.shape:
        return (
            f"The shape is {tuple(answer.shape)}; {tuple(expected.shape)} is expected."
        )
    if not answer.isfinite().all():
        return "Not all entries are finite numbers."
    shown = f"{answer.item():.6g}" if answer.numel() == 1 else "see the signs"
    if _close(-answer, expected, tolerance):
        return f"The size is right and the sign is wrong: {shown}."
    if _close(answer * math.log(2), expected, tolerance):
        return "This is in bits; nats are expected: multiply by log 2."
    if bool((expected > 0).all()) and _close(answer, expected.log(), tolerance):
        return "This is the logarithm of what is expected."
    if bool((expected < 50).all()) and _close(answer, expected.exp(), tolerance):
        return "This is the exponential of what is expected."
    if answer.numel() == 1:
        side = "small" if answer.item() < expected.item() else "large"
        return f"Not right: {shown} is too {side}."
    far = (answer - expected).abs().max().item()
    return f"Not right: the largest error of an entry is {far:.3g}."
