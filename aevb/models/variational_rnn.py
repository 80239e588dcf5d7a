"""The variational RNN of chapter 10."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Independent, kl_divergence
from torch.nn import functional as F

from aevb.distributions import diagonal_normal, rsample
from aevb.model import (
    ElboTerms,
    LatentVariableModel,
    check_batch,
    check_count,
    is_count,
)
from aevb.networks import MLP, GaussianHead, Linear, likelihood_head, positive

POSTERIORS = ("filtering", "smoothing")
_AT_ONCE = 1000  # sequences that log_weights walks through at a time

# --- products and gates inside a loop ---------------------------------------------


class _Calls(list):
    """Inputs and gradients of the calls, of one backward pass and no other."""

    backward_pass = None

    def current(self) -> _Calls:
        """Empty, if the pass that filled it ended without asking for the weights."""
        now = torch._C._current_graph_task_id()
        if self.backward_pass != now:
            self.clear()
            self.backward_pass = now
        return self


class _Collect(torch.autograd.Function):
    """Weights and bias in the precision of the products; their gradient in one."""

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor | None, dtype, calls: _Calls):
        ctx.set_materialize_grads(False)
        ctx.calls, ctx.dtype, ctx.biased = calls, weight.dtype, bias is not None
        copy = {"dtype": dtype, "copy": True}
        return weight.to(**copy), None if bias is None else bias.to(**copy)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *_):
        if not ctx.calls.current():
            return None, None, None, None
        x, grad = (torch.cat(part) for part in zip(*ctx.calls, strict=True))
        ctx.calls.clear()
        of_weight = (grad.T @ x).to(ctx.dtype)
        return (
            of_weight,
            grad.sum(0, dtype=ctx.dtype) if ctx.biased else None,
            None,
            None,
        )


class _Call(torch.autograd.Function):
    """x Wᵀ + b; backwards, the gradient of x now, that of W and b left to _Collect."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, calls: _Calls):
        ctx.dtype, x = x.dtype, x.to(weight.dtype)
        ctx.calls = calls
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias).to(ctx.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad = grad.to(weight.dtype)
        if ctx.needs_input_grad[1]:
            ctx.calls.current().append((x.flatten(0, -2), grad.flatten(0, -2)))
        of_x = (grad @ weight).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return of_x, None, None, None


class LoopLinear:
    """x ↦ W x + b, for a loop that takes many x through the same layer.

    The same values and gradients as ``F.linear``, with two things done once in place
    of once a step: the weights are cast to the precision of the products (``fit`` may
    ask for ``bfloat16``), and their gradient is computed, in one product of all inputs
    and all gradients, when the backward pass has gone through every step.

    Args:
        weight: W, (outputs, inputs).
        bias: b, (outputs,), or None.

    Example:
        >>> weight, x = torch.randn(3, 2, requires_grad=True), torch.randn(5, 2)
        >>> layer = LoopLinear(weight)
        >>> (layer(x) + layer(2 * x)).sum().backward()
        >>> torch.allclose(weight.grad, 3 * x.sum(0).expand(3, 2), atol=1e-5)
        True
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.weight, self.bias, self.calls = weight, bias, None
        mapped = torch._C._are_functorch_transforms_active()  # torch.func: no tricks
        if torch.is_grad_enabled() and not mapped:
            kind, dtype = weight.device.type, weight.dtype
            if torch.is_autocast_enabled(kind):
                dtype = torch.get_autocast_dtype(kind)
            self.calls = _Calls()
            self.weight, self.bias = _Collect.apply(weight, bias, dtype, self.calls)

    def __call__(self, x: Tensor) -> Tensor:
        if self.calls is None:
            return F.linear(x, self.weight, self.bias).to(x.dtype)
        return _Call.apply(x, self.weight, self.bias, self.calls)


class _Gates(torch.autograd.Function):
    """(a, c) ↦ (h', c'): the part of an LSTM cell that follows the products."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, cell: Tensor):
        i, f, g, o = a.chunk(4, -1)
        i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()
        g = (2 * g).sigmoid_().mul_(2).sub_(1)  # tanh, several times as fast
        new = torch.addcmul(i * g, f, cell)
        squashed = (2 * new).sigmoid_().mul_(2).sub_(1)
        return o * squashed, new, i, f, g, o, squashed

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, cell = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(cell, *output[2:])

    @staticmethod
    def backward(ctx, d_h, d_new, *_):
        cell, i, f, g, o, squashed = ctx.saved_tensors
        d_h = torch.zeros_like(o) if d_h is None else d_h
        through_h = d_h * o * (1 - squashed * squashed)
        d = through_h if d_new is None else d_new + through_h
        parts = (
            d * g * i * (1 - i),
            d * cell * f * (1 - f),
            d * i * (1 - g * g),
            d_h * squashed * o * (1 - o),
        )
        return torch.cat(parts, -1), d * f


# --- the two halves -----------------------------------------------------------------

State = list[tuple[Tensor, Tensor]]  # (h, c) of each LSTM layer


class Recurrence(nn.Module):
    """h_{t+1} = LSTM(x_t, z_t): LSTM layers, each reading the one below."""

    def __init__(self, data_dim: int, latent_dim: int, widths: Sequence[int]):
        super().__init__()
        below = [(data_dim, latent_dim), *((w,) for w in widths[:-1])]
        self.layers = nn.ModuleList(
            Linear((*inputs, width), 4 * width)
            for inputs, width in zip(below, widths, strict=True)
        )
        self.widths = tuple(widths)
        with torch.no_grad():
            for layer, w in zip(self.layers, widths, strict=True):
                layer.bias[w : 2 * w] = 1  # of the forget gates: remember at first

    def start(self, *batch: int) -> State:
        """All zeros, so h_1 = 0."""
        zeros = self.layers[0].weight.new_zeros
        return [(zeros(*batch, w), zeros(*batch, w)) for w in self.widths]

    def unrolled(self, x: Tensor) -> Callable[[int, Tensor, State], State]:
        """x (T, B, D) ↦ the step (t, z_t, state) ↦ next state.

        The part of the first layer that reads x is one product for all t.
        """
        first, *others = self.layers
        of_x, of_rest = first.weight.tensor_split([x.shape[-1]], 1)
        from_x = F.linear(x, of_x, first.bias).to(first.weight.dtype).unbind(0)
        bottom = LoopLinear(of_rest)
        upper = [LoopLinear(layer.weight, layer.bias) for layer in others]

        def step(t: int, z: Tensor, state: State) -> State:
            (h, c), *rest = state
            a = bottom(torch.cat([z, h], -1)) + from_x[t]
            new = [_Gates.apply(a, c)[:2]]
            for layer, (h, c) in zip(upper, rest, strict=True):
                a = layer(torch.cat([new[-1][0], h], -1))
                new.append(_Gates.apply(a, c)[:2])
            return new

        return step

    def forward(self, x: Tensor, z: Tensor, state: State) -> State:
        """One step: x (…, D), z (…, L)."""
        return self.unrolled(x[None])(0, z, state)


class Posterior(nn.Module):
    """φ, filtering: q(z_t | x_t, h_t) = N(μ, diag(σ²)), both by one network."""

    def __init__(self, data_dim, latent_dim, width, hidden):
        super().__init__()
        self.body = MLP((data_dim, width), hidden)
        self.head = GaussianHead(self.body.features, latent_dim)

    def read(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """x (T, B, D) ↦ what the network sees of it at each step, (T, B, ·)."""
        return x

    def forward(self, seen: Tensor, h: Tensor) -> Independent:
        return self.head(self.body(seen, h))

    def unrolled(self, seen: Tensor) -> Callable[[int, Tensor], tuple[Tensor, Tensor]]:
        """seen (T, B, ·) ↦ the step (t, h_t) ↦ (μ, σ), the same as ``forward``.

        The part of the first layer that reads x is one product for all t.
        """
        first, *others = [m for m in self.body if isinstance(m, Linear)]
        of_x, of_h = first.weight.split(first.sizes, 1)
        from_x = F.linear(seen, of_x, first.bias).to(first.weight.dtype).unbind(0)
        from_h = LoopLinear(of_h)
        layers = [LoopLinear(layer.weight, layer.bias) for layer in others]
        heads = self.head.mean, self.head.std
        weight, bias = (
            torch.cat([getattr(head, name) for head in heads])
            for name in ("weight", "bias")
        )
        both = LoopLinear(weight, bias)

        def step(t: int, h: Tensor) -> tuple[Tensor, Tensor]:
            f = F.relu(from_h(h) + from_x[t])
            for layer in layers:
                f = F.relu(layer(f))
            mean, std = both(f).chunk(2, -1)
            return mean, positive(std)

        return step


class SmoothingPosterior(Posterior):
    """φ, smoothing: q(z_t | x_{1:T}, z_{<t}), by a backward LSTM over x.

    Its state at t has read x_T, …, x_t; h_t knows x_{<t} and z_{<t}. The network sees
    both.
    """

    def __init__(self, data_dim, latent_dim, width, hidden):
        super().__init__(width, latent_dim, width, hidden)
        self.backwards = nn.LSTM(data_dim, width)

    def read(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is None:
            return self.backwards(x.flip(0))[0].flip(0)
        order = _reversal(len(x), lengths)[..., None]  # (T, B, 1)
        states, _ = self.backwards(x.gather(0, order.expand_as(x)))
        return states.gather(0, order.expand_as(states))


def _reversal(steps: int, lengths: Tensor) -> Tensor:
    """(T, B) indices that reverse the first ``lengths`` steps and keep the others."""
    t = torch.arange(steps, device=lengths.device)[:, None]
    return torch.where(t < lengths, lengths - 1 - t, t)


# --- the model ----------------------------------------------------------------------


class Path(NamedTuple):
    """A walk through sequences: T steps, K draws for each of B sequences.

    Attributes:
        h: (T, K, B, H) what the recurrence hands to each step; h_1 = 0.
        z: (T, K, B, L) the draws.
        mean, std: (T, K, B, L) of the Gaussians that they were drawn from.
        state: of the recurrence after the last step.
    """

    h: Tensor
    z: Tensor
    mean: Tensor
    std: Tensor
    state: State


class VariationalRNN(LatentVariableModel):
    """z_t ~ N(μ(h_t), σ(h_t)²);  x_t ~ likelihood(h_t, z_t);  h_{t+1} = LSTM(x_t, z_t).

    Each step is a conditional VAE whose condition is the past
    (``eq-vrnn-generative``), kept in the state h_t of an LSTM; h_1 = 0. The posterior
    is q(z_t | x_t, h_t) (filtering) or q(z_t | x_{1:T}, z_{<t}) (smoothing). The
    defaults are the tutorial paper's (Yang, 2022); Chung et al. (2015). The recurrence
    serves both halves and belongs to θ.

    x is (B, T, D), for any T. Sequences of unequal length: pad them, and give
    ``lengths`` (B,) as the second input; what lies behind a sequence's end changes
    nothing. With ``lengths=True`` batches consist of both:
    ``fit(model, (x, lengths))``.

    Args:
        data_dim: D, coordinates of one step (pixels of a row).
        latent_dim: L, latent coordinates of one step.
        recurrent: widths of the LSTM layers.
        hidden: widths of the hidden layers of the prior's, the likelihood's and the
            posterior's network.
        likelihood: as for :class:`~aevb.models.VAE`.
        posterior: ``"filtering"`` or ``"smoothing"``.
        lengths: whether a batch is (x, lengths), not x alone.

    Raises:
        ValueError: unknown ``likelihood`` or ``posterior``; a size < 1.

    Example:
        >>> model = VariationalRNN(recurrent=(32,), hidden=(16,))
        >>> model.elbo(torch.zeros(5, 28, 28)).elbo.shape
        torch.Size([5])
        >>> model.sample(3).shape
        torch.Size([3, 28, 28])
    """

    def __init__(
        self,
        *,
        data_dim: int = 28,
        latent_dim: int = 2,
        recurrent: Sequence[int] = (256, 256),
        hidden: Sequence[int] = (500, 500),
        likelihood: str = "bernoulli",
        posterior: str = "filtering",
        lengths: bool = False,
    ):
        super().__init__()
        if posterior not in POSTERIORS:
            raise ValueError(
                f"posterior is {posterior!r}; expected one of {POSTERIORS}"
            )
        check_count("data_dim", data_dim)
        check_count("latent_dim", latent_dim)
        for name, widths in (("recurrent", recurrent), ("hidden", hidden)):
            good = isinstance(widths, Sequence) and len(widths) > 0
            if not good or not all(map(is_count, widths)):
                raise ValueError(
                    f"{name} is {widths!r}; expected at least one width, as in (256,)"
                )
        self.data_dim, self.latent_dim = data_dim, latent_dim
        self.inputs = ("x", "lengths") if lengths else ("x",)
        width = recurrent[-1]
        prior = MLP(width, hidden)
        decoder = MLP((latent_dim, width), hidden)
        self.generative = nn.ModuleDict(
            {
                "recurrence": Recurrence(data_dim, latent_dim, recurrent),
                "prior": nn.Sequential(prior, GaussianHead(hidden[-1], latent_dim)),
                "decoder": decoder,
                "head": likelihood_head(likelihood, hidden[-1], data_dim),
            }
        )
        kind = SmoothingPosterior if posterior == "smoothing" else Posterior
        self.inference = kind(data_dim, latent_dim, width, hidden)

    def prior(self, h: Tensor) -> Independent:
        """p(z_t | h_t): h (…, H) gives batch shape (…), event shape (L,)."""
        return self.generative["prior"](h)

    def likelihood(self, z: Tensor, h: Tensor) -> Independent:
        """p(x_t | z_t, h_t): batch shape (…), event shape (D,)."""
        return self.generative["head"](self.generative["decoder"](z, h))

    def posterior(self, seen: Tensor, h: Tensor) -> Independent:
        """q(z_t | x, z_{<t}): batch shape (…), event shape (L,).

        Args:
            seen: (…, D), x_t itself, for the filtering posterior; for the smoothing
                one (…, H), the state of its LSTM that has read x_T, …, x_t.
            h: (…, H), h_t.
        """
        return self.inference(seen, h)

    def draw(self, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """z_t = μ + σ ε, reparameterised (``eq-vrnn-reparameterisation``)."""
        return mean + std * noise

    def walk(self, x: Tensor, noise: Tensor, lengths: Tensor | None = None) -> Path:
        """Draw z_1, …, z_T, one after the other: the part that cannot be batched.

        :meth:`draw` with the μ, σ of q(z_t | …), then h_{t+1} from x_t and z_t.

        Args:
            x: (B, T, D).
            noise: (T, K, B, L), ε ~ N(0, I); zeros for a path along the means.
            lengths: (B,) int64, or None if all sequences have T steps.
        """
        if x.ndim != 3:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (B, T, D)")
        x = x.transpose(0, 1)  # (T, B, D)
        infer = self.inference.unrolled(self.inference.read(x, lengths))
        recur = self.generative["recurrence"].unrolled(x)
        state = self.generative["recurrence"].start(*noise.shape[1:3])
        steps = []
        for t in range(len(x)):
            h = state[-1][0]  # (K, B, H), the top layer's
            mean, std = infer(t, h)  # (K, B, L)
            z = self.draw(mean, std, noise[t])
            steps.append((h, z, mean, std))
            state = recur(t, z, state)
        return Path(*map(torch.stack, zip(*steps, strict=True)), state)

    def _noise(self, x: Tensor, count: int, generator) -> Tensor:
        shape = (x.shape[1], count, x.shape[0], self.latent_dim)
        return torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)

    def step_terms(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> ElboTerms:
        """The two terms of each step, along K drawn paths: (T, K, B) each."""
        check_count("num_samples", num_samples)
        path = self.walk(x, self._noise(x, num_samples, generator), lengths)
        rows = x.transpose(0, 1)[:, None]  # (T, 1, B, D)
        log_p = self.likelihood(path.z, path.h).log_prob(rows)  # all T in one product
        q_z = diagonal_normal(path.mean, path.std)
        kl = kl_divergence(q_z, self.prior(path.h))
        return ElboTerms(*(self._inside(part, lengths) for part in (log_p, kl)))

    @staticmethod
    def _inside(part: Tensor, lengths: Tensor | None) -> Tensor:
        """(T, K, B), zero behind the end of a sequence."""
        if lengths is None:
            return part
        t = torch.arange(len(part), device=part.device)[:, None, None]
        return torch.where(t < lengths, part, torch.zeros_like(part))

    def elbo(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> ElboTerms:
        """Σ_t E[log p(x_t | z_t, h_t) - KL(q(z_t | …) ‖ p(z_t | h_t))], estimated.

        Both terms are averages over ``num_samples`` reparameterised paths z_{1:T}
        (``eq-vrnn-estimator``); the divergence of each step is in closed form.

        Args:
            x: (B, T, D).
            lengths: (B,) int64, or None if all sequences have T steps.
        """
        terms = self.step_terms(
            x, lengths, num_samples=num_samples, generator=generator
        )
        return ElboTerms(*(part.sum(0).mean(0) for part in terms))

    def log_weights(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """log p(x_{1:T}, z_{1:T}) - log q(z_{1:T} | x_{1:T}), z ~ q: (K, B).

        (``eq-vrnn-log-weight``.)
        """
        check_count("num_samples", num_samples)
        rows = x.transpose(0, 1)[:, None]
        parts, left = [], num_samples
        while left:
            count = min(left, max(1, _AT_ONCE // len(x)))
            path = self.walk(x, self._noise(x, count, generator), lengths)
            log_w = (
                self.likelihood(path.z, path.h).log_prob(rows)
                + self.prior(path.h).log_prob(path.z)
                - diagonal_normal(path.mean, path.std).log_prob(path.z)
            )  # (T, count, B)
            parts.append(self._inside(log_w, lengths).sum(0))
            left -= count
        return torch.cat(parts)

    @torch.no_grad()
    def latent_paths(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The means of q(z_t | …) along the path of the means: (B, T, L)."""
        path = self.walk(x, torch.zeros_like(self._noise(x, 1, None)), lengths)
        return path.mean[:, 0].transpose(0, 1)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        steps: int = 28,
        *,
        mean: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n sequences from the model, z_t and x_t by turns: (n, steps, D).

        Args:
            steps: T.
            mean: return E[x_t | z_t, h_t] in place of the draws of x_t. It is the draws
                that the recurrence reads in any case: a mean is no possible past.
            generator: on the model's device; the global one if None.

        Raises:
            ValueError: n < 1 or steps < 1.
        """
        check_count("n", n)
        check_count("steps", steps)
        state = self.generative["recurrence"].start(n)
        return torch.stack(list(self._go_on(state, steps, mean, generator)), 1)

    def _go_on(self, state: State, steps: int, mean: bool, generator):
        for _ in range(steps):
            h = state[-1][0]
            z = rsample(self.prior(h), (), generator)
            p_x = self.likelihood(z, h)
            x = rsample(p_x, (), generator)
            yield p_x.mean if mean else x
            state = self.generative["recurrence"](x, z, state)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        n: int = 1,
        steps: int = 28,
        *,
        mean: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n continuations of each given beginning, (n, B, steps, D).

        z_1, …, z_S are drawn from the posterior, given the S steps of the beginning;
        what follows is drawn from the model (``eq-vrnn-completion``).

        Args:
            x: (B, S, D) the beginning, 1 <= S < steps; returned as it is in front.
            n: continuations of each.
            steps: T, of the completed sequences.
            mean: as for :meth:`sample`.

        Raises:
            ValueError: there is nothing to continue, or nothing left to add.
        """
        check_count("n", n)
        if x.ndim != 3 or not 1 <= x.shape[1] < steps:
            raise ValueError(
                f"x has shape {tuple(x.shape)} and steps is {steps}; expected (B, S, D)"
                " with 1 <= S < steps"
            )
        path = self.walk(x, self._noise(x, n, generator))
        rest = self._go_on(path.state, steps - x.shape[1], mean, generator)
        return torch.cat([x.expand(n, *x.shape), torch.stack(list(rest), 2)], 2)

    def check(self, x: Tensor, lengths: Tensor | None = None) -> None:
        given = isinstance(x, Tensor)
        if given and not (x.ndim == 3 and x.shape[2] == self.data_dim and x.numel()):
            raise ValueError(
                f"x has shape {tuple(x.shape)}; expected (N, T, {self.data_dim}) with"
                " N, T >= 1"
            )
        dtype = next(self.parameters()).dtype
        flat = x.flatten(0, 1) if isinstance(x, Tensor) else x
        check_batch(flat, self.data_dim, self.generative["head"], dtype)
        if lengths is None:
            return
        if lengths.shape != x.shape[:1] or lengths.dtype != torch.int64:
            raise ValueError(
                f"lengths is {lengths.dtype} of shape {tuple(lengths.shape)}; expected"
                f" torch.int64 of shape ({len(x)},)"
            )
        if lengths.min() < 1 or lengths.max() > x.shape[1]:
            raise ValueError(
                f"lengths holds {lengths.min()} to {lengths.max()}; expected 1 to"
                f" {x.shape[1]}"
            )
