"""Data sets and their preprocessing: MNIST, the bundled digits, synthetic data.

Grey images are kept as bytes. What a model sees is made from them by one of the
*kinds* below; the random ones are drawn afresh for every batch of training and once,
from a fixed seed, for the test set.

==============  ==============================================  ==================
kind            a pixel of value v in 0..255 becomes            shape of ``x``
==============  ==============================================  ==================
``continuous``  (v + u) / 256, u ~ U[0, 1): dequantised         (N, 784) in (0, 1)
``binary``      1 if (v + u) / 256 > 1/2, that is v >= 128      (N, 784) in {0, 1}
``stochastic``  1 with probability v / 255: dynamic binarising  (N, 784) in {0, 1}
``rows``        as ``binary``, one image row a time step        (N, 28, 28)
``grey``        v / 255                                         (N, 784) in [0, 1]
==============  ==============================================  ==================

:func:`rows` makes sequences, (N, 28, 28), of images of any kind.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from aevb.model import check_count

Redraw = Callable[[Tensor, torch.Generator | None], Tensor]


@dataclass(frozen=True)
class Examples:
    """N examples, with labels and, for images, the bytes that they were made from.

    Attributes:
        x: (N, …) what a model sees: one fixed draw of the preprocessing.
        y: (N,) int64 labels, or None.
        raw: (N, …) uint8 grey values, or None.
        redraw: ``redraw(raw[batch], generator)`` makes a fresh ``x[batch]``; None
            where the preprocessing is not random. :func:`aevb.fit` calls it for
            every training batch, on the device that the bytes lie on, and takes what it
            gives to the precision of ``x``.

    Raises:
        ValueError: if ``y`` or ``raw`` has another length than ``x``, or ``redraw``
            has no ``raw`` to draw from.

    Example:
        >>> train, test = digits("binary")
        >>> train[:3].x.shape, train[:3].y.shape
        (torch.Size([3, 784]), torch.Size([3]))
    """

    x: Tensor
    y: Tensor | None = None
    raw: Tensor | None = None
    redraw: Redraw | None = None

    def __post_init__(self):
        for name in ("y", "raw"):
            part = getattr(self, name)
            if part is not None and len(part) != len(self.x):
                raise ValueError(
                    f"Examples: {name} has {len(part)} entries and x has {len(self.x)};"
                    " expected one for each example"
                )
        if self.redraw is not None and self.raw is None:
            raise ValueError("Examples: redraw is given without raw; expected both")

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int | slice | Tensor) -> Examples:
        """Some of the examples; a whole number gives an ``Examples`` of length 1."""
        if getattr(index, "ndim", None) == 0:  # a number of NumPy's, or a tensor
            index = index.item()
        if isinstance(index, bool):
            raise TypeError(
                f"index is {index}; expected a whole number, a slice or a tensor"
            )
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(
                    f"index is {index}, and there are {len(self)} examples"
                )
            index = slice(index, index + 1 or None)
        pick = lambda part: None if part is None else part[index]  # noqa: E731
        return Examples(pick(self.x), pick(self.y), pick(self.raw), self.redraw)


def split(examples: Examples, count: int) -> tuple[Examples, Examples]:
    """The first ``count`` examples and the rest (a validation set, say).

    Raises:
        ValueError: unless 0 < count < len(examples).

    Example:
        >>> train, valid = split(digits("grey")[0], 1000)
        >>> len(train), len(valid)
        (1000, 437)
    """
    if not 0 < count < len(examples):
        raise ValueError(
            f"split: count is {count}; expected 1 to {len(examples) - 1}, since there"
            f" are {len(examples)} examples"
        )
    return examples[:count], examples[count:]


def rows(examples: Examples, width: int = 28) -> Examples:
    """The same images as sequences, a row a step: x (N, T * width) -> (N, T, width).

    Of any kind; random kinds are redrawn as before. ``rows`` of ``"binary"`` images are
    those of the kind ``"rows"``.

    Raises:
        ValueError: the images are not (N, T * width).

    Example:
        >>> train, test = map(rows, digits("stochastic"))
        >>> train.x.shape
        torch.Size([1437, 28, 28])
    """
    if examples.x.ndim != 2 or examples.x.shape[1] % width:
        raise ValueError(
            f"rows: x has shape {tuple(examples.x.shape)}; expected (N, T * {width})"
        )
    cut = lambda part: None if part is None else part.unflatten(1, (-1, width))  # noqa: E731
    redraw = examples.redraw and partial(_redraw_rows, examples.redraw)
    return Examples(cut(examples.x), examples.y, cut(examples.raw), redraw)


def _redraw_rows(redraw: Redraw, raw: Tensor, generator: torch.Generator | None):
    return redraw(raw.flatten(1), generator).view(raw.shape)


# --- preprocessing ---------------------------------------------------------------


def _uniform(raw: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(raw.shape, device=raw.device, generator=generator)


def dequantise(raw: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(v + u) / 256 with u ~ U[0, 1): bytes to floats in (0, 1), same shape.

    The result is kept off 0 and 1 exactly, which float32 rounding could reach.
    """
    x = _uniform(raw, generator).add_(raw).div_(256)
    return x.clamp_(2.0**-32, 1 - 2.0**-24)


def binarise(raw: Tensor) -> Tensor:
    """1.0 where the dequantised value exceeds 1/2, that is where the byte is >= 128."""
    return (raw >= 128).float()


def binarise_stochastically(
    raw: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """1.0 with probability v / 255: the convention behind published likelihoods.

    Salakhutdinov and Murray (2008), Burda et al. (2016).
    """
    return (_uniform(raw, generator) * 255 < raw).float()


def _preprocess(kind: str, raw: Tensor, seed: int) -> tuple[Tensor, Redraw | None]:
    """One fixed draw of ``kind`` and the function that redraws it, if it is random."""
    generator = torch.Generator().manual_seed(seed)
    flat = raw.flatten(1)  # (N, 28, 28) -> (N, 784)
    match kind:
        case "continuous":
            return dequantise(flat, generator), dequantise
        case "stochastic":
            return binarise_stochastically(flat, generator), binarise_stochastically
        case "binary":
            return binarise(flat), None
        case "rows":
            return binarise(raw), None
        case "grey":
            return flat / 255, None


KINDS = ("continuous", "binary", "stochastic", "rows", "grey")


def _check_kind(function: str, kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"{function}: kind is {kind!r}; expected one of {KINDS}")


def _examples(kind: str, raw: Tensor, labels: Tensor, seed: int) -> Examples:
    x, redraw = _preprocess(kind, raw, seed)
    kept = raw.flatten(1) if redraw else None  # bytes: only a redraw needs them
    return Examples(x, labels.long(), kept, redraw)


# --- images ----------------------------------------------------------------------

MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class DataError(RuntimeError):
    """A data set could not be had, or its files are broken."""


def mnist_root(root: str | os.PathLike | None = None) -> Path:
    """Where MNIST lies: ``root``, else ``$AEVB_DATA``, else the user's cache folder."""
    if root is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = os.environ.get("AEVB_DATA") or Path(cache, "aevb")
    return Path(root).expanduser()


def _verify(folder: Path) -> None:
    """Compare the MD5 sums of the raw files; remove a broken one and report it."""
    for name, expected in MNIST_MD5.items():
        path = folder / name
        found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if found == expected:
            continue
        size = path.stat().st_size
        try:
            path.unlink()
            action = "It was removed: call again to download it anew."
        except OSError as error:
            action = f"It could not be removed ({error.strerror}): replace it."
        raise DataError(
            f"mnist: {path} is broken: {size} bytes with MD5 {found},"
            f" expected MD5 {expected}. {action}"
        )


def mnist(
    kind: str = "continuous", root: str | os.PathLike | None = None, seed: int = 0
) -> tuple[Examples, Examples]:
    """MNIST: 60,000 training and 10,000 test images of 28 x 28 pixels.

    Read through ``torchvision.datasets.MNIST``, downloaded if it is missing, and
    verified: the decompressed files' MD5 sums are compared.

    Args:
        kind: one of :data:`KINDS`; see the table at the top of this module.
        root: folder that holds ``MNIST/raw``; see :func:`mnist_root`.
        seed: of the fixed draws of the random kinds.

    Returns:
        ``train, test``, both :class:`Examples`.

    Raises:
        ValueError: unknown ``kind``.
        DataError: the files are missing and cannot be downloaded, or are broken.
    """
    from torchvision import datasets

    _check_kind("mnist", kind)
    root = mnist_root(root)
    folder = root / "MNIST" / "raw"
    if not all((folder / name).exists() for name in MNIST_MD5):
        _download(datasets.MNIST, root)
    _verify(folder)
    parts = [datasets.MNIST(root, train=train) for train in (True, False)]
    return tuple(
        _examples(kind, part.data, part.targets, seed + i)
        for i, part in enumerate(parts)
    )


def _download(dataset: type, root: Path) -> None:
    """Download into a folder of its own, and move the files once all are there."""
    folder = root / "MNIST" / "raw"
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="download-", dir=root) as scratch:
            dataset(scratch, download=True)
            for name in MNIST_MD5:
                Path(scratch, "MNIST", "raw", name).replace(folder / name)
    except (OSError, RuntimeError, HTTPException) as error:
        for path in absent:  # the folders made here, the innermost first
            with suppress(OSError):
                path.rmdir()
        reason = " ".join(str(error).split())
        raise DataError(
            f"mnist: the files are not in {folder} and could not be downloaded"
            f" ({reason}). Connect to the network, or set AEVB_DATA to a folder that"
            " holds MNIST/raw, or use data.digits(), which needs no download."
        ) from error


def digits(kind: str = "continuous", seed: int = 0) -> tuple[Examples, Examples]:
    """The 1797 digits that ship with scikit-learn, scaled to MNIST's shape.

    Their 8 x 8 pixels of 0..16 become 28 x 28 bytes by bilinear interpolation, so
    that whatever takes MNIST takes them: 1437 for training, 360 for testing.

    Args:
        kind: one of :data:`KINDS`.
        seed: of the fixed draws of the random kinds.

    Raises:
        ValueError: unknown ``kind``.

    Example:
        >>> train, test = digits("rows")
        >>> train.x.shape, test.x.shape
        (torch.Size([1437, 28, 28]), torch.Size([360, 28, 28]))
    """
    from sklearn.datasets import load_digits

    _check_kind("digits", kind)
    bundle = load_digits()
    small = torch.from_numpy(bundle.images).float()[:, None]  # (1797, 1, 8, 8)
    large = torch.nn.functional.interpolate(small, (28, 28), mode="bilinear")
    raw = (large[:, 0] * (255 / 16)).round().byte()  # (1797, 28, 28)
    labels = torch.from_numpy(bundle.target)
    return (
        _examples(kind, raw[:1437], labels[:1437], seed),
        _examples(kind, raw[1437:], labels[1437:], seed + 1),
    )


def as_array(values, dtype: type | None = None) -> np.ndarray:
    """Numbers as a NumPy array, wherever they lie and whatever is recorded of them.

    Example:
        >>> as_array(torch.ones(2, requires_grad=True))
        array([1., 1.], dtype=float32)
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
    return np.asarray(values, dtype=dtype)


# --- synthetic data --------------------------------------------------------------

LOADINGS = ((-0.5, -1.0), (-1.0, -1.0), (2.0, 0.5))
NOISE = (0.4, 0.2, 0.3)


def factor_analysis(
    n: int = 1000,
    seed: int = 42,
    loadings: Tensor | tuple = LOADINGS,
    noise: Tensor | tuple = NOISE,
) -> tuple[Examples, Examples]:
    """x = W z + ε with z ~ N(0, I), ε ~ N(0, diag(noise²)): the tutorial paper's data.

    The defaults are the paper's; its draws are reproduced to the last digit.

    Args:
        n: number of training examples, and again of test examples.
        seed: of NumPy's legacy generator, which the paper used.
        loadings: W, (D, L).
        noise: standard deviations, (D,).

    Returns:
        ``train, test``, each with x of shape (n, D), float32.

    Raises:
        ValueError: n < 1, or shapes that do not fit.

    Example:
        >>> train, test = factor_analysis()
        >>> train.x[0]
        tensor([-0.4555, -0.3647,  0.9297])
    """
    check_count("n", n)
    loadings = as_array(loadings, np.float64)  # (D, L)
    noise = as_array(noise, np.float64)  # (D,)
    if loadings.ndim != 2 or noise.shape != loadings.shape[:1]:
        raise ValueError(
            f"factor_analysis: loadings has shape {loadings.shape} and noise"
            f" {noise.shape}; expected (D, L) and (D,)"
        )
    random = np.random.RandomState(seed)
    z = random.randn(2 * n, loadings.shape[1])  # (2n, L)
    x = z @ loadings.T + random.randn(2 * n, len(noise)) * noise  # (2n, D)
    x = torch.from_numpy(x).float()
    return Examples(x[:n]), Examples(x[n:])


def gaussian_mixture(
    n: int = 500, seed: int = 0, spread: float = 1.0
) -> tuple[Examples, Examples]:
    """Three Gaussian clusters in the plane: two long and slanted, one round.

    Args:
        n: number of training examples, and again of test examples.
        seed: of the draw.
        spread: scale of the distances between the means; smaller overlaps more.

    Returns:
        ``train, test``, each with x (n, 2) float32 and y (n,), the component.

    Raises:
        ValueError: n < 1.

    Example:
        >>> gaussian_mixture(100)[0].x.shape
        torch.Size([100, 2])
    """
    check_count("n", n)
    real = {"dtype": torch.float32}  # the same draws under any default dtype
    weights = torch.tensor([0.5, 0.3, 0.2], **real)
    means = torch.tensor([[-2.0, 0.0], [2.0, 1.0], [0.5, -2.5]], **real)  # (3, 2)
    factors = torch.tensor(  # lower Cholesky factors of the covariances, (3, 2, 2)
        [[[0.6, 0.0], [0.9, 0.5]], [[1.0, 0.0], [-0.7, 0.4]], [[0.5, 0.0], [0.0, 0.5]]],
        **real,
    )
    g = torch.Generator().manual_seed(seed)
    y = torch.multinomial(weights, 2 * n, replacement=True, generator=g)  # (2n,)
    noise = torch.randn(2 * n, 2, 1, generator=g, **real)
    x = spread * means[y] + (factors[y] @ noise).squeeze(-1)  # (2n, 2)
    return Examples(x[:n], y[:n]), Examples(x[n:], y[n:])


# --- batches ---------------------------------------------------------------------


class Batches:
    """A data source as an iterable of batches: tuples of tensors on one device.

    Tensors are moved to the device once and batched there by index; bytes with a
    ``redraw`` are moved as bytes and drawn afresh for each batch. A ``DataLoader``
    keeps its own batching, and its batches are moved one at a time; to a GPU through
    pinned memory, while it still computes with the one before. No gradients arrive at
    the data.

    Args:
        source: a tensor, a tuple of tensors of one length, :class:`Examples`, a
            ``torch.utils.data.Dataset``, or a ``DataLoader``.
        inputs: the names of a batch's tensors: the fields to take from
            :class:`Examples`, and as many as the other sources must give.
        batch_size: examples a batch (a DataLoader has its own).
        device: where the batches go.
        shuffle: a new random order in each pass, and fresh draws of random kinds;
            otherwise the order and the draw of the source.
        check: called with the tensors before anything is moved (with the first
            example of a Dataset or DataLoader); raises if they do not suit the model.
        part: where several processes share a batch, ``part(n)`` says which of its n
            examples this one takes. The order, the batches and the noise are those of
            one process. A DataLoader then loads these examples only.

    Attributes:
        total: examples of the batch given last, in all processes.

    Raises:
        TypeError: another kind of source, or no tensors in it.
        ValueError: an empty source, tensors of unequal length or of another number
            than ``inputs``, batch_size < 1, or labels that are missing.
        MemoryError: the device has no room for the tensors.

    Example:
        >>> [len(x) for (x,) in Batches(torch.zeros(5, 2), batch_size=2)]
        [2, 2, 1]
    """

    def __init__(
        self,
        source,
        inputs: tuple[str, ...] = ("x",),
        batch_size: int = 100,
        device: torch.device | str = "cpu",
        shuffle: bool = False,
        check: Callable[..., None] | None = None,
        part: Callable[[int], slice] | None = None,
    ):
        check_count("batch_size", batch_size)
        self.batch_size, self.shuffle = int(batch_size), shuffle
        self.device, self.inputs, self.part = torch.device(device), inputs, part
        self.total = 0
        self.parts = self.loader = self.shared = self.redraw = self.dtype = None
        if isinstance(source, Examples):
            parts = [getattr(source, name, None) for name in inputs]
            missing = [n for n, part in zip(inputs, parts, strict=True) if part is None]
            if missing:
                raise ValueError(
                    f"the examples have no {missing[0]}; the model expects {inputs}"
                )
        elif isinstance(source, Tensor):
            parts = [source]
        elif isinstance(source, tuple | list):
            parts = list(source)
        else:
            self._load(source, check)
            return
        self._check_parts(parts)
        self._check_count(parts)
        if check is not None:
            check(*parts)
        if shuffle and isinstance(source, Examples) and source.redraw is not None:
            self.redraw, self.dtype = source.redraw, source.x.dtype
            parts[0] = source.raw
        try:
            self.parts = [part.detach().to(self.device) for part in parts]
        except torch.OutOfMemoryError as error:
            size = sum(part.nbytes for part in parts) / 2**30
            raise MemoryError(
                f"the data are {size:.1f} GiB, for which {self.device} has no room; a"
                " DataLoader's batches are moved there one at a time"
            ) from error
        self.num_examples = len(parts[0])

    def _check_parts(self, parts: list) -> None:
        for part in parts:
            if not isinstance(part, Tensor):
                raise TypeError(
                    f"data holds a {type(part).__name__}; expected tensors, Examples, a"
                    " Dataset or a DataLoader"
                )
        lengths = [len(part) if part.ndim else 0 for part in parts]
        if not parts or lengths[0] == 0:
            raise ValueError("the data is empty; expected at least one example")
        if len(set(lengths)) > 1:
            raise ValueError(
                f"the data's tensors have lengths {lengths}; expected one length, since"
                " entry i of each belongs to example i"
            )

    def _check_count(self, parts: tuple | list) -> None:
        if len(parts) != len(self.inputs):
            raise ValueError(
                f"the data gives {len(parts)} tensors for each batch; expected"
                f" {len(self.inputs)}, since the model takes ({', '.join(self.inputs)})"
            )

    def _load(self, source, check: Callable[..., None] | None) -> None:
        from torch.utils.data import (
            DataLoader,
            Dataset,
            DistributedSampler,
            IterableDataset,
        )

        if not isinstance(source, DataLoader | Dataset):
            raise TypeError(
                f"data is a {type(source).__name__}; expected a tensor, a tuple of"
                " tensors, Examples, a Dataset or a DataLoader"
            )
        dataset = source.dataset if isinstance(source, DataLoader) else source
        if isinstance(dataset, IterableDataset):
            raise TypeError(
                f"data is a {type(dataset).__name__}, an IterableDataset; expected one"
                " with a length, since fit counts epochs"
            )
        if len(dataset) == 0:
            raise ValueError("the data is empty; expected at least one example")
        if len(source) == 0:
            raise ValueError(
                f"the DataLoader has no batch of its {len(dataset)} examples; expected"
                " a smaller batch_size, or drop_last=False"
            )
        if source is dataset:
            source = DataLoader(dataset, self.batch_size, shuffle=self.shuffle)
        if any(isinstance(o, DistributedSampler) for o in _owners(source)):
            raise ValueError(
                "the DataLoader has a DistributedSampler; expected one without, as for"
                " a single process: its batches are shared out here"
            )
        self.loader = source
        if self.part is not None and source.batch_sampler is not None:
            self.shared = _PartOfEach(source.batch_sampler, self.part)
            self.loader = copy.copy(source)
            vars(self.loader).update(batch_sampler=self.shared, _iterator=None)
        self.num_examples = len(dataset)
        first = dataset[0] if source.batch_sampler is None else [dataset[0]]
        first = self._tuple(source.collate_fn(first))
        self._check_count(first)
        if check is not None:
            check(*first)

    @staticmethod
    def _tuple(batch) -> tuple:
        return tuple(batch) if isinstance(batch, tuple | list) else (batch,)

    def __len__(self) -> int:
        """Batches in one pass."""
        if self.loader is not None:
            return len(self.loader)
        return -(-self.num_examples // self.batch_size)

    @property
    def generators(self) -> list[torch.Generator]:
        """Those that a DataLoader or its samplers were given."""
        found = [getattr(owner, "generator", None) for owner in _owners(self.loader)]
        return list(dict.fromkeys(g for g in found if g is not None))

    def __iter__(self):
        return (self.take(*key) for key in self.keys())

    def keys(self):
        """For each batch of a pass, the tensors that :meth:`take` makes it from.

        With ``shuffle``, the examples' numbers, (B,) int64; else the batch itself.
        """
        if self.loader is not None:
            yield from map(self._copier(), self._loaded())
            return
        if self.shuffle:
            sources = [torch.randperm(self.num_examples, device=self.device)]
        else:
            sources = self.parts
        for key in zip(*(s.split(self.batch_size) for s in sources), strict=True):
            self.total = len(key[0])
            yield key

    def take(self, *key: Tensor) -> tuple[Tensor, ...]:
        """The batch that belongs to a key of the current pass, with fresh draws."""
        if self.loader is not None:
            return key
        batch = key
        if self.shuffle:
            batch = [part.index_select(0, *key) for part in self.parts]
            if self.redraw is not None:
                batch[0] = self.redraw(batch[0], None).to(self.dtype)
        return self._mine(batch)

    def _mine(self, batch: list | tuple) -> tuple[Tensor, ...]:
        """This process's part of a batch."""
        if self.part is None:
            return tuple(batch)
        mine = self.part(len(batch[0]))
        return tuple(part[mine] for part in batch)

    def _loaded(self):
        for batch in map(self._tuple, self.loader):
            if self.shared is None:
                self.total = len(batch[0])
                yield self._mine(batch)
            else:  # this process's part alone was loaded
                self.total = self.shared.totals.popleft()
                yield batch

    def _copier(self) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
        """A function that copies a batch to the device."""
        if self.device.type != "cuda":
            return lambda batch: tuple(p.detach().to(self.device) for p in batch)
        copies = torch.cuda.Stream(self.device)  # beside that of the computation

        def move(batch):
            with torch.cuda.stream(copies):
                parts = [part.detach() for part in batch]
                pinned = [p if p.is_cuda else p.pin_memory() for p in parts]
                moved = [part.to(self.device, non_blocking=True) for part in pinned]
            computation = torch.cuda.current_stream(self.device)
            computation.wait_stream(copies)
            for part in moved:
                part.record_stream(computation)
            return tuple(moved)

        return move


def _owners(loader) -> list:
    """A DataLoader and its samplers, of which each may have a generator."""
    batches = getattr(loader, "batch_sampler", None)
    inner = getattr(batches, "sampler", None)
    return [loader, getattr(loader, "sampler", None), batches, inner]


class _PartOfEach:
    """A batch sampler that gives a part of each of another's batches of indices.

    ``totals`` holds how many examples the whole of each one had, for those given and
    not yet loaded: workers are ahead.
    """

    def __init__(self, sampler, part: Callable[[int], slice]):
        self.sampler, self.part, self.totals = sampler, part, deque()

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self):
        self.totals.clear()
        for indices in self.sampler:
            self.totals.append(len(indices))
            yield indices[self.part(len(indices))]
