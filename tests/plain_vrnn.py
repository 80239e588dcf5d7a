"""The variational RNN as one writes it down: torch's own parts, one step at a time.

Nothing is computed before or after the loop, and nothing is shared with the package.
The oracle of the package's version, and what the benchmark races it against.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn import functional as F


def network(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    layers, size = [], inputs
    for width in hidden:
        layers += [nn.Linear(size, width), nn.ReLU()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, outputs))


class PlainVRNN(nn.Module):
    def __init__(
        self,
        data_dim: int = 28,
        latent_dim: int = 2,
        recurrent: tuple[int, ...] = (256, 256),
        hidden: tuple[int, ...] = (500, 500),
        smoothing: bool = False,
    ):
        super().__init__()
        below = (data_dim + latent_dim, *recurrent[:-1])
        self.cells = nn.ModuleList(map(nn.LSTMCell, below, recurrent))
        top = recurrent[-1]
        seen = top if smoothing else data_dim
        self.prior = network(top, hidden, 2 * latent_dim)
        self.posterior = network(seen + top, hidden, 2 * latent_dim)
        self.decoder = network(latent_dim + top, hidden, data_dim)
        self.backwards = nn.LSTMCell(data_dim, top) if smoothing else None

    @staticmethod
    def gaussian(output: Tensor) -> Normal:
        mean, std = output.chunk(2, -1)
        return Normal(mean, F.softplus(std) + 1e-6)

    def read(self, x: Tensor) -> list[Tensor]:
        if self.backwards is None:
            return list(x.unbind(1))
        state, states = None, []
        for t in reversed(range(x.shape[1])):
            state = self.backwards(x[:, t], state)
            states.append(state[0])
        return states[::-1]

    def forward(self, x: Tensor, noise: Tensor | None = None, weigh: bool = False):
        """x (B, T, D), noise (T, B, L): reconstruction, KL and, if asked for, the
        log-weight, (B,) each."""
        states = [(x.new_zeros(len(x), c.hidden_size),) * 2 for c in self.cells]
        seen = self.read(x)
        reconstruction = kl = log_weight = 0.0
        for t in range(x.shape[1]):
            h = states[-1][0]
            p_z = self.gaussian(self.prior(h))
            q_z = self.gaussian(self.posterior(torch.cat([seen[t], h], -1)))
            z = q_z.rsample() if noise is None else q_z.loc + q_z.scale * noise[t]
            p_x = Bernoulli(logits=self.decoder(torch.cat([z, h], -1)))
            log_p = p_x.log_prob(x[:, t]).sum(-1)
            reconstruction = reconstruction + log_p
            kl = kl + kl_divergence(q_z, p_z).sum(-1)
            if weigh:
                log_z = (p_z.log_prob(z) - q_z.log_prob(z)).sum(-1)
                log_weight = log_weight + log_p + log_z
            value = torch.cat([x[:, t], z], -1)
            for layer, cell in enumerate(self.cells):
                states[layer] = cell(value, states[layer])
                value = states[layer][0]
        return reconstruction, kl, log_weight


def pairs(model, plain: PlainVRNN):
    """(plain parameter, how the package's tensors become it) for every parameter.

    The second entries take a function from a parameter of the package to a tensor:
    the identity gives the weights, ``lambda p: p.grad`` the gradients.
    """
    found = []
    for layer, cell in zip(
        model.generative["recurrence"].layers, plain.cells, strict=True
    ):
        inputs = cell.input_size
        found += [
            (cell.weight_ih, lambda f, w=layer.weight, n=inputs: f(w)[:, :n]),
            (cell.weight_hh, lambda f, w=layer.weight, n=inputs: f(w)[:, n:]),
            (cell.bias_ih, lambda f, b=layer.bias: f(b)),
        ]
    heads = {
        plain.prior: model.generative["prior"],
        plain.posterior: nn.Sequential(model.inference.body, model.inference.head),
    }
    for network_, (body, head) in heads.items():
        found += _layers(network_[:-1], body)
        last = network_[-1]
        for name in ("weight", "bias"):
            both = [getattr(head.mean, name), getattr(head.std, name)]
            joined = lambda f, p=both: torch.cat([*map(f, p)])  # noqa: E731
            found.append((getattr(last, name), joined))
    found += _layers(plain.decoder[:-1], model.generative["decoder"])
    found += _layers(plain.decoder[-1:], nn.Sequential(model.generative["head"].logits))
    if plain.backwards is not None:
        lstm = model.inference.backwards
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            ours = getattr(lstm, f"{name}_l0")
            found.append((getattr(plain.backwards, name), lambda f, p=ours: f(p)))
    return found


def _layers(plain, ours):
    theirs = [m for m in plain if isinstance(m, nn.Linear)]
    own = [m for m in ours if isinstance(m, nn.Linear)]
    found = []
    for a, b in zip(theirs, own, strict=True):
        found.append((a.weight, lambda f, p=b.weight: f(p)))
        found.append((a.bias, lambda f, p=b.bias: f(p)))
    return found


@torch.no_grad()
def copy_of(model, **sizes) -> PlainVRNN:
    """A plain model with the weights of a ``models.VariationalRNN``."""
    plain = PlainVRNN(**sizes)
    for cell in plain.cells:
        cell.bias_hh.zero_()
    for parameter, ours in pairs(model, plain):
        parameter.copy_(ours(lambda p: p))
    return plain
