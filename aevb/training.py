"""``fit``: the one training loop, for every model."""

from __future__ import annotations

import logging
import math
import os
import pickle
import re
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from itertools import islice
from operator import index
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm  # plain text: a widget leaves nothing on a static page

from aevb import evaluation
from aevb.capture import PAYS, Replayed
from aevb.data import Batches
from aevb.files import replacing
from aevb.model import ElboTerms, LatentVariableModel, check_count, put_back
from aevb.parallel import Processes
from aevb.randomness import (
    WholeBatch,
    batch_dimensions,
    preserved,
    random_state,
    seed_device,
    set_random_state,
)


class History(dict):
    """Columns of numbers, one entry for each evaluation during training.

    ``history["test_elbo"]`` and ``history.test_elbo`` are the same list. Columns:
    ``step``, ``epoch``, ``seconds`` (training and evaluation so far), ``lr``,
    ``train_elbo``, ``train_reconstruction``, ``train_kl`` (means over the examples
    seen since the previous entry, in training mode), the same three with ``test_``
    where a test set was given, and what ``record`` returned. ELBO terms are nats per
    example.

    Example:
        >>> history = History(step=[1, 2], train_elbo=[-3.0, -2.5])
        >>> history.train_elbo
        [-3.0, -2.5]
    """

    def __getattr__(self, name: str) -> list[float]:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"the history has no column {name!r}; it has {list(self)}"
            ) from None

    def append(self, row: dict[str, float]) -> None:
        for name, value in row.items():
            self.setdefault(name, []).append(float(value))


class Diverged(FloatingPointError):
    """Training met a number that is not finite; ``history`` holds what went before."""

    history: History


def constant(progress: float) -> float:
    """The learning rate stays as it is."""
    return 1.0


def cosine(progress: float) -> float:
    """Full learning rate for the first half, then half a cosine down to zero."""
    return 0.5 * (1 + math.cos(math.pi * max(0.0, 2 * progress - 1)))


SCHEDULES = {"constant": constant, "cosine": cosine}
UPDATES = ("both", "inference", "generative")


def choose_device(device: torch.device | str | None = None) -> torch.device:
    """``device``, else ``$AEVB_DEVICE``, else a GPU if there is one, else the CPU.

    Where ``torchrun`` started several processes, each has a GPU of its own: ``"cuda"``
    without a number is that of ``$LOCAL_RANK``.

    Raises:
        ValueError: no such device on this machine; says which there are.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if device is None:
        device = os.environ.get("AEVB_DEVICE") or (
            "cuda" if torch.cuda.is_available() else "cpu"
        )
    there = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    expected = f"expected one of {('cpu', *there)}, which this machine has"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}; {expected}") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {str(chosen)!r}; {expected}")
    if chosen.type == "cuda":
        if chosen.index is None and "LOCAL_RANK" in os.environ:
            chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if (chosen.index or 0) >= len(there):
            raise ValueError(f"device is {str(chosen)!r}; {expected}")
    return chosen


PRECISIONS = (None, "bfloat16")


def choose_precision(precision: str | None, device: torch.device) -> str | None:
    """``precision``, or None where the device has no products in bfloat16.

    It would emulate them, several times as slowly as those in single precision. That it
    takes single precision instead is logged, once.

    Raises:
        ValueError: no such precision.

    Example:
        >>> choose_precision(None, torch.device("cpu")) is None
        True
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; expected one of {PRECISIONS}")
    return precision if precision is None or _has_bfloat16(device) else None


@cache
def _has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies matrices of bfloat16 in hardware, as torch says."""
    if device.type == "cuda":
        has = torch.cuda.get_device_capability(device) >= (8, 0)
    else:  # an older torch does not say: taken for a no
        can = getattr(torch.cpu, "get_capabilities", dict)()
        has = any(can.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    if not has:
        logging.getLogger(__name__).warning(
            "%s has no matrix products in bfloat16: taking those of the parameters'"
            " precision",
            device,
        )
    return has


def fit(
    model: LatentVariableModel,
    train,
    *,
    test=None,
    epochs: int | None = None,
    steps: int | None = None,
    every: int = 1,
    batch_size: int = 100,
    lr: float = 1e-3,
    schedule: str | Callable[[float], float] = "constant",
    kl_warmup: float = 0.0,
    update: str = "both",
    estimator: Callable[..., ElboTerms] | None = None,
    record: Callable[[LatentVariableModel], dict[str, float]] | None = None,
    report: Callable[[History], None] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    precision: str | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike | None = None,
    resume: bool = False,
) -> History:
    """Maximise the mean ELBO over the examples by Adam: the AEVB algorithm.

    The objective is ``eq-aevb-objective``, estimated on one mini-batch a step.
    The model and the data are moved to the device and the model stays there, in
    evaluation mode; no gradient is left in it. The global random state is left as it
    was. If training stops early for whatever reason, the model, its buffers among it,
    is put back to the last evaluation.

    Same seed, device, precision and number of processes give the same history to the
    last digit on a CPU. A GPU may add in another order each time where a model uses
    operations such as ``index_add``; ``torch.use_deterministic_algorithms(True)``, with
    ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` in the environment, makes it choose others.

    On a GPU a step is recorded, and from then on replayed as a whole, several times as
    fast (:mod:`aevb.capture`). It must do the same each time: after each evaluation it
    is compared with the model's and the estimator's own code, which therefore runs a
    few times more often than there are steps. If it cannot be recorded, the log says
    why, and each operation is launched by itself; so it is, too, with several
    processes, and where fewer than five steps lie between evaluations.

    In a program started by ``torchrun --nproc-per-node=N``, N processes share each
    batch (:mod:`aevb.parallel`). The history is that of one process up to rounding:
    order, batches and noise are the same. Only noise whose amount depends on the
    parameters, such as that of :func:`~aevb.estimators.marginalised` with classes left
    out, or of kinds of dropout other than the plain one, is another draw, and layers
    that mix the examples of a batch see a part of it. In bfloat16, rounding is that of
    bfloat16. The first process evaluates, calls ``record`` and ``report``, shows
    progress and writes checkpoints; all return the same history.

    Args:
        model: any :class:`~aevb.model.LatentVariableModel`.
        train: a tensor, a tuple of tensors, :class:`~aevb.data.Examples`, a Dataset or
            a DataLoader; see :class:`~aevb.data.Batches`.
        test: as ``train``; its ELBO is estimated at each evaluation, with one sample
            an example and the same noise each time.
        epochs: passes over ``train``; give either this or ``steps``.
        steps: gradient steps.
        every: epochs (or steps, if ``steps`` is given) from one evaluation to the next.
        batch_size: examples a gradient step, in all processes together.
        lr: learning rate of Adam.
        schedule: ``"constant"``, ``"cosine"`` (constant for the first half, then down
            to zero), or a function from progress in [0, 1] to a factor of ``lr``.
        kl_warmup: share of the training during which the KL term's weight rises from
            0 to 1. It keeps latent coordinates from being switched off before the
            decoder has learned to use them; what is maximised is the ELBO only after
            it (Bowman et al., 2016; Sønderby et al., 2016). The history holds the
            unweighted terms.
        update: ``"both"`` (AEVB, ``eq-aevb-update``), ``"inference"`` (only φ: an
            approximate E-step, ``eq-amortised-objective``) or ``"generative"`` (only θ:
            an approximate M-step, ``eq-m-step-gradient``, on mini-batches,
            ``eq-m-step-mini-batch``).
        estimator: ``estimator(model, *batch)`` gives the :class:`ElboTerms` to
            maximise; ``model.elbo`` if None.
        record: ``record(model)`` gives more numbers to keep at each evaluation.
        report: ``report(history)`` is called after each evaluation, when the
            checkpoint is written: to show the history, or to keep it elsewhere.
        seed: of the order of the examples, the noise, the samples and the dropout.
        device: see :func:`choose_device`.
        precision: of the matrix products of a training step: None, that of the
            parameters, or ``"bfloat16"``, 8 bits of each factor, which is up to twice
            as fast, where the device has such products (AVX512_BF16, AMX, GPUs since
            2020); elsewhere None, see :func:`choose_precision`. Parameters, densities
            and every evaluation keep the precision of the parameters.
        progress: show a progress bar.
        checkpoint: file that receives everything needed to go on, at each evaluation.
        resume: go on from ``checkpoint`` if it exists: the result is the same as
            without the stop, with as many processes.

    Returns:
        :class:`History`.

    Raises:
        ValueError, TypeError: an argument is not what is expected; raised before the
            first step.
        Diverged: a term or a parameter is no longer finite.
        MemoryError: the batch does not fit.
        RuntimeError: a worker of a DataLoader was killed.
        ~aevb.parallel.Disconnected: another process has stopped.

    Example:
        >>> from aevb import data, models
        >>> train, test = data.factor_analysis(n=100)
        >>> history = fit(models.FactorAnalysis(), train, epochs=2, progress=False)
        >>> history.epoch
        [1.0, 2.0]
    """
    device = choose_device(device)
    _check_arguments(epochs, steps, every, lr, schedule, kl_warmup, update)
    epochs, steps, every, seed = (  # NumPy's numbers, say
        None if number is None else index(number)
        for number in (epochs, steps, every, seed)
    )
    precision = choose_precision(precision, device)
    if resume and checkpoint is None:
        raise ValueError("resume is True and checkpoint is None; expected a file")
    schedule = schedule if callable(schedule) else SCHEDULES[schedule]
    estimator = estimator or type(model).elbo
    processes = Processes(device)
    kind = {"inputs": model.inputs, "device": device, "check": model.check}
    shared = {"shuffle": True, "part": processes.part if processes.count > 1 else None}
    batches = Batches(train, batch_size=batch_size, **shared, **kind)
    if test is not None:
        test = Batches(test, batch_size=evaluation.BATCH_SIZE, **kind)
    total = steps if epochs is None else epochs * len(batches)
    stride = every if epochs is None else every * len(batches)
    run = _Run(
        model=model.to(device),
        batches=batches,
        estimator=estimator,
        learning_rate=lambda step: float(lr * schedule(step / total)),
        kl_weight=lambda step: min(1.0, step / (kl_warmup * total)) if kl_warmup else 1,
        update=update,
        processes=processes,
        settings={
            "epochs": epochs,
            "steps": steps,
            "every": every,
            "batch_size": batches.batch_size,
            "lr": float(lr),
            "schedule": _name(schedule),
            "kl_warmup": float(kl_warmup),
            "update": update,
            "estimator": _name(estimator),
            "seed": seed,
            "precision": precision,
            "examples": batches.num_examples,
        },
    )
    first = processes.rank == 0  # the one that shows and writes
    processes.same(model, run.settings)
    with preserved(device), run.only_update(), run.explained(checkpoint):
        seed_device(seed, device)
        if resume:
            run.load(checkpoint)
        progress = progress and first
        bar = tqdm(total=total, initial=run.step, unit="step", disable=not progress)
        with bar:
            while run.step < total:
                terms, seen = run.advance(min(stride, total - run.step), bar)
                row = run.evaluate(terms, seen, test, record)
                bar.set_postfix({k: f"{row[k]:.2f}" for k in row if k.endswith("elbo")})
                if checkpoint is not None and first:
                    run.save(checkpoint)
                if report is not None and first:
                    report(run.history)
    return run.history


def _check_arguments(epochs, steps, every, lr, schedule, kl_warmup, update) -> None:
    if (epochs is None) == (steps is None):
        raise ValueError(
            f"epochs is {epochs} and steps is {steps}; expected one of them"
        )
    for name, number in (("epochs", epochs), ("steps", steps), ("every", every)):
        if number is not None:
            check_count(name, number)
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr is {lr}; expected a positive number")
    if not callable(schedule) and schedule not in SCHEDULES:
        raise ValueError(
            f"schedule is {schedule!r}; expected one of {tuple(SCHEDULES)}, or a"
            " function"
        )
    if not 0 <= kl_warmup <= 1:
        raise ValueError(f"kl_warmup is {kl_warmup}; expected a share between 0 and 1")
    if update not in UPDATES:
        raise ValueError(f"update is {update!r}; expected one of {UPDATES}")


class _Run:
    """The state of one training: what a checkpoint holds, and how it moves on."""

    def __init__(
        self,
        model,
        batches,
        estimator,
        learning_rate,
        kl_weight,
        update,
        processes,
        settings,
    ):
        self.model, self.batches, self.estimator = model, batches, estimator
        self.processes, self.draws = processes, None
        self.learning_rate, self.kl_weight = learning_rate, kl_weight
        self.settings = settings
        halves = {"inference": model.inference, "generative": model.generative}
        moving = halves.values() if update == "both" else [halves[update]]
        self.moving = [p for half in moving for p in half.parameters()]
        self.moving = [p for p in self.moving if p.requires_grad]
        if not self.moving:
            raise ValueError(f"update is {update!r}, but no parameter of it can move")
        options = {"fused": True, "capturable": self.on_gpu}
        self.optimizer = torch.optim.Adam(self.moving, **options)
        alone = self.on_gpu and processes.count == 1
        self.take_step = Replayed(
            self.launch_step, self.trained, batches.device, possible=alone
        )
        self.step, self.seconds, self.history = 0, 0.0, History()
        self.iterator, self.epoch_random = iter(()), None
        self.keep()

    @property
    def on_gpu(self) -> bool:
        return self.batches.device.type == "cuda"

    @contextmanager
    def only_update(self):
        """A context in which only the moving parameters receive gradients.

        Afterwards they have none, and the model is in evaluation mode.
        """
        moving = {id(p) for p in self.moving}
        frozen = [p for p in self.model.parameters() if id(p) not in moving]
        frozen = [p for p in frozen if p.requires_grad]
        for p in frozen:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in frozen:
                p.requires_grad_(True)
            self.optimizer.zero_grad(set_to_none=True)
            self.model.eval()

    def precision(self):
        """A context in which matrix products are computed in the chosen precision."""
        low = self.settings["precision"] is not None
        return torch.autocast(self.batches.device.type, torch.bfloat16, enabled=low)

    def shared_noise(self, batch: tuple[Tensor, ...]):
        """A context in which each process draws what one process would draw."""
        if self.processes.count == 1:
            return nullcontext()
        device, total = self.batches.device, self.batches.total
        if self.draws is None:

            def estimate(count: int) -> None:
                repeated = (part[:1].expand(count, *part.shape[1:]) for part in batch)
                self.estimator(self.model, *repeated)

            self.draws = batch_dimensions(estimate, device)
        key = (self.settings["seed"], self.step, self.processes.rank)
        return WholeBatch(self.draws, self.processes.part(total), total, key, device)

    def random(self) -> dict[str, Tensor]:
        return random_state(self.batches.device, self.batches.generators)

    def set_random(self, state: dict[str, Tensor]) -> None:
        set_random_state(state, self.batches.device, self.batches.generators)

    def same_random(self) -> dict[str, Tensor]:
        """The state of the random numbers: the first process's, from now on in all."""
        state = self.processes.from_first(self.random)
        if self.processes.rank > 0:
            self.set_random(state)
        return state

    def next_key(self) -> tuple[Tensor, ...]:
        if self.step % len(self.batches) == 0:
            self.epoch_random = self.same_random()
            self.iterator = self.batches.keys()
        return next(self.iterator)

    def rates(self, count: int) -> Iterator:
        """Learning rate and weight of the KL term in each of the next steps.

        On a GPU tensors (2,) on the device, where a recorded step can read them.
        """
        steps = range(self.step, self.step + count)
        rates = ((self.learning_rate(step), self.kl_weight(step)) for step in steps)
        if not self.on_gpu:
            yield from rates
            return
        options = {"dtype": torch.float32, "device": self.batches.device}
        while some := list(islice(rates, 1000)):  # one transfer for many
            yield from torch.tensor(some, **options)

    def launch_step(self, rates, *key: Tensor) -> Tensor:
        """One gradient step on the batch of this key; the sums of its terms."""
        lr, kl_weight = rates
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batch = self.batches.take(*key)
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision(), self.shared_noise(batch):
            estimate = self.estimator(self.model, *batch)
        loss = kl_weight * estimate.kl - estimate.reconstruction
        size = self.batches.total  # of the batch, in all processes
        (loss.sum() / size).backward()
        sums = torch.stack([part.detach().sum() for part in estimate])
        sums = self.processes.add_up(self.moving, sums, size)
        self.optimizer.step()
        return sums

    def advance(self, count: int, bar) -> tuple[list[Tensor], int]:
        """``count`` gradient steps: each one's summed terms, and the examples seen."""
        start = time.perf_counter()
        self.same_random()  # ``record`` may have drawn, in the first process
        self.model.train()
        self.take_step.doubt()  # ``record`` may have changed what the model does
        take_step = self.take_step if count >= PAYS else self.launch_step
        terms, seen = [], 0
        for rates in self.rates(count):
            key = self.next_key()
            terms.append(take_step(rates, *key))
            seen += self.batches.total
            self.step += 1
            bar.update()
        self.model.eval()
        self.seconds += time.perf_counter() - start
        return terms, seen

    def evaluate(self, terms: list[Tensor], seen: int, test, record) -> dict:
        """Add a row to the history; raise if anything in it is not finite."""
        start = time.perf_counter()
        table = torch.stack(terms).double().cpu()  # (steps, 2): the one synchronisation
        self.check_finite(table)
        self.keep()

        def measure() -> dict[str, float]:
            row = {
                "step": self.step,
                "epoch": self.step / len(self.batches),
                "lr": self.learning_rate(self.step - 1),
            }
            row |= _columns("train", *(table.sum(0) / seen).tolist())
            if test is not None:
                values = evaluation.terms(self.model, test, seed=0)
                row |= _columns("test", *(part.double().mean() for part in values))
            if record is not None:
                with torch.no_grad():
                    row |= _recorded(record(self.model))
            self.seconds += time.perf_counter() - start
            row["seconds"] = self.seconds
            return {name: float(value) for name, value in row.items()}

        row = self.processes.from_first(measure)
        self.seconds = row["seconds"]
        self.history.append(row)
        return row

    def check_finite(self, table: Tensor) -> None:
        bad = (~table.isfinite()).nonzero()
        if len(bad) == 0 and all(p.isfinite().all() for p in self.moving):
            return
        what, step = "a parameter", self.step
        if len(bad):
            first, term = bad[0].tolist()
            what = f"the {ElboTerms._fields[term]} term"
            step = self.step - len(table) + first + 1
        raise Diverged(
            f"fit: {what} is not finite at step {step}, epoch"
            f" {1 + (step - 1) // len(self.batches)}. The parameters of step"
            f" {self.good_step} were put back. Try a smaller lr than"
            f" {self.settings['lr']:g}, and check the data's scale."
        )

    def changing(self) -> list[Tensor]:
        """What training changes: parameters, and buffers, such as running means."""
        return [*self.moving, *self.model.buffers()]

    def trained(self) -> list[Tensor]:
        """What a step changes: those, and the moments of Adam."""
        moments = [m for of in self.optimizer.state.values() for m in of.values()]
        return [*self.changing(), *moments]

    def keep(self) -> None:
        """Remember the model, in case that training stops before the next time."""
        self.good_step = self.step
        self.good = [tensor.detach().clone() for tensor in self.changing()]

    @contextmanager
    def explained(self, checkpoint: str | os.PathLike | None):
        """Around the training: put back the last good state if it stops early.

        What stopped it gets a message that helps, and the history so far.
        """
        try:
            yield
            return
        except BaseException as error:
            with _undisturbed():
                put_back(self.changing(), self.good)
                clearer = self.clearer(error)
                shown = clearer or error
                shown.history = self.history
                if clearer or isinstance(error, KeyboardInterrupt):
                    shown.add_note(self.where(checkpoint))
                if clearer:  # free what the frames hold, a loader's workers among it
                    traceback.clear_frames(error.__traceback__)
            if clearer is None:
                raise
        raise clearer from None

    def clearer(self, error: BaseException) -> Exception | None:
        """An error to raise in place of one that torch words for its developers."""
        reason = str(error).partition("\n")[0]
        where = f"at step {self.step + 1}"
        if self.worker_was_killed(error):
            return RuntimeError(
                f"fit: a worker of the DataLoader was killed {where} ({reason}). Often"
                " the machine ran out of memory: try fewer workers (num_workers) or"
                " smaller batches, and num_workers=0 to see an error in the data set"
            )
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
            isinstance(error, RuntimeError) and "can't allocate memory" in reason
        ):
            size = self.batches.total or self.settings["batch_size"]
            return MemoryError(
                f"fit: out of memory on {self.batches.device} {where}, with batches of"
                f" {size} examples ({reason}). Try a smaller batch_size, fewer samples"
                ' in the estimator, precision="bfloat16" or a DataLoader, which keeps'
                " the data off the device"
            )
        return None

    def worker_was_killed(self, error: BaseException) -> bool:
        """Whether a worker of the loader has died: its end shows in many errors."""
        workers = getattr(self.batches.loader, "num_workers", 0)
        if not workers or not isinstance(error, Exception):
            return False
        if "DataLoader worker (pid" in str(error):
            return True
        time.sleep(0.1)  # until the system knows
        try:
            torch._C._error_if_any_worker_fails()
        except RuntimeError:
            return True
        return False

    def where(self, checkpoint: str | os.PathLike | None) -> str:
        """What is left of a training that was stopped."""
        text = f"fit: the model is as it was after step {self.good_step}"
        if checkpoint is None or not Path(checkpoint).exists():
            return f"{text}; the error's ``history`` holds what went before."
        return (
            f"{text}. To go on: fit(..., checkpoint={str(checkpoint)!r}, resume=True)"
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write a checkpoint beside the old one, then replace it: never half a file."""
        state = {
            "settings": self.settings,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": dict(self.history),
            "random": self.random(),
            "epoch_random": self.epoch_random,
        }
        try:
            with replacing(path) as beside:
                torch.save(state, beside)
        except (OSError, RuntimeError) as error:
            tqdm.write(
                f"fit: could not write the checkpoint {path} ({error}); training goes"
                " on, and the previous checkpoint, if any, is as it was"
            )

    def load(self, path: str | os.PathLike) -> None:
        """Take over a checkpoint's state if there is one; no code in it is executed."""
        state = self.processes.from_first(
            lambda: _read_checkpoint(path) if Path(path).exists() else None
        )
        if state is None:
            return
        here = self.settings | _shapes(self.model.state_dict())
        there = state["settings"] | _shapes(state["model"])
        for name in here | there:
            if here.get(name) != there.get(name):
                raise ValueError(
                    f"resume: {name} is {here.get(name)!r}, and the checkpoint {path}"
                    f" was made with {there.get(name)!r}; expected the same"
                )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["capturable"] = self.on_gpu  # whatever the checkpoint's device was
        self.step, self.seconds = state["step"], state["seconds"]
        self.history = History(state["history"])
        done = self.step % len(self.batches)
        if done:  # stopped within an epoch: deal its order again, skip what was seen
            self.epoch_random = state["epoch_random"]
            self.set_random(self.epoch_random)
            self.iterator = self.batches.keys()
            for _ in range(done):
                next(self.iterator)
        self.set_random(state["random"])
        self.keep()


@contextmanager
def _undisturbed():
    """A context without the signal by which torch reports the end of a worker.

    It raises an error wherever the program is, which can leave a lock held for ever
    while the other workers are sent home.
    """
    try:
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except (AttributeError, ValueError):  # Windows; not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


def _read_checkpoint(path: str | os.PathLike) -> dict:
    """The state that :meth:`_Run.save` wrote: tensors, numbers and names alone.

    Raises:
        ValueError: the file is broken, or something else than a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than tensors, numbers and names"
        raise ValueError(
            f"resume: {path} cannot be read as a checkpoint ({reason}); expected a file"
            " that fit wrote. Nothing in it was executed."
        ) from error
    if not isinstance(state, dict) or not {"settings", "model"} <= state.keys():
        raise ValueError(
            f"resume: {path} holds no checkpoint; expected a file that fit wrote"
        )
    return state


def _columns(prefix: str, reconstruction, kl) -> dict[str, float]:
    return {
        f"{prefix}_elbo": float(reconstruction - kl),
        f"{prefix}_reconstruction": float(reconstruction),
        f"{prefix}_kl": float(kl),
    }


def _recorded(numbers: dict[str, float]) -> dict[str, float]:
    if not isinstance(numbers, Mapping):
        raise TypeError(
            f"record gives {numbers!r}; expected a dictionary of numbers by their names"
        )
    return numbers


def _shapes(parameters: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {f"the shape of {k}": tuple(p.shape) for k, p in parameters.items()}


def _name(function: Callable) -> str:
    """What tells one function from another in a checkpoint's settings."""
    name = getattr(function, "__qualname__", None)
    if name is None and isinstance(function, partial):
        options = [_option(value) for value in function.args]
        options += [f"{k}={_option(v)}" for k, v in sorted(function.keywords.items())]
        return f"{_name(function.func)}({', '.join(options)})"
    return name or type(function).__qualname__


def _option(value) -> str:
    """The same in another process: without addresses in memory."""
    return (
        _name(value) if callable(value) else re.sub(" at 0x[0-9a-f]+", "", repr(value))
    )
