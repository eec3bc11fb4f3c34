"""One contender of recurrent.py in a process of its own: reads a step count a line, trains so many steps, prints
seconds. And what recurrent.py measures of pcls alone.

Every contender trains on one batch that lies in memory, with Adam and the softmax cross-entropy of ten classes.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from _worker import answer

CLASSES, RATE = 10, 1e-3
Trainer = Callable[[int], None]


@dataclass(frozen=True)
class Sequences:
    """A case: recurrent layers, and a head on their last states.

    Attributes:
      cell: `rnn` (tanh), `lstm` or `gru` (reset after the product).
      batch, steps, features: of the input.
      hidden: states of a layer in each direction.
      layers, bidirectional: of the network.
      shortest: lengths are drawn from here to `steps`; 0: all sequences are whole.
      gpu: bfloat16 on a GPU; else float32 on CPU.
    """

    cell: str
    batch: int
    steps: int
    features: int
    hidden: int
    layers: int = 1
    bidirectional: bool = False
    shortest: int = 0
    gpu: bool = False

    @property
    def width(self) -> int:
        """Of the last states."""
        return self.hidden * (2 if self.bidirectional else 1)


@dataclass(frozen=True)
class Block:
    """A case: one block of Sequencer2D-S, its mean over places, and a head.

    Attributes:
      batch, side, width: of the input, [batch, side, side, width].
    """

    batch: int
    side: int
    width: int


Case = Sequences | Block

CASES: dict[str, Case] = {
    "SimpleRNN B128 T28 D28 H32": Sequences("rnn", 128, 28, 28, 32),
    "LSTM B64 T128 D128 H256": Sequences("lstm", 64, 128, 128, 256),
    "LSTM B64 T784 D1 H128": Sequences("lstm", 64, 784, 1, 128),
    "GRU B64 T128 D128 H256": Sequences("gru", 64, 128, 128, 256),
    "bidirectional 2-layer LSTM B64 T16-128 D64 H128": Sequences("lstm", 64, 128, 64, 128, 2, True, 16),
    "Sequencer2D-S block, 32 x 32 x 192, B8": Block(8, 32, 192),
    "Sequencer2D-S block, 16 x 16 x 384, B8": Block(8, 16, 384),
    "LSTM B16 T1024 D768 H768 bfloat16, GPU": Sequences("lstm", 16, 1024, 768, 768, gpu=True),
}

LONG, CHUNK = Sequences("lstm", 64, 4096, 1, 128), 64
LINEAR_BATCH, LINEAR_STATES = 8, 128


def examples(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Of a case the inputs, float32, zero in the padding; labels [batch] int64; lengths [batch] int32 or None."""
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=case.batch)
    if isinstance(case, Block):
        return rng.standard_normal((case.batch, case.side, case.side, case.width), np.float32), labels, None
    x = rng.standard_normal((case.batch, case.steps, case.features), np.float32)
    if not case.shortest:
        return x, labels, None
    lengths = rng.integers(case.shortest, case.steps + 1, case.batch).astype(np.int32)
    lengths[0] = case.steps
    return np.where(np.arange(case.steps)[:, None] < lengths[:, None, None], x, 0), labels, lengths


def jax_trainer(loss_of: Callable[..., Any], params: Any, inputs: tuple[Any, ...], options: Any = None) -> Trainer:
    """Trains a function of parameters and inputs with a compiled step, the state donated."""
    import jax

    optimizer, step = adam_step(loss_of)
    compiled = jax.jit(step, donate_argnums=0, compiler_options=options)
    state = params, jax.jit(optimizer.init)(params)
    inputs = jax.device_put(inputs)

    def train(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, loss = compiled(state, inputs)
        float(loss)

    return train


def adam_step(loss_of: Callable[..., Any]) -> tuple[Any, Callable[..., Any]]:
    """Adam, and the step `((params, moments), inputs) -> (the same after it, loss)`."""
    import jax
    import optax

    optimizer = optax.adam(RATE)

    def step(state: Any, inputs: tuple[Any, ...]) -> tuple[Any, Any]:
        params, moments = state
        loss, grads = jax.value_and_grad(loss_of)(params, *inputs)
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    return optimizer, step


def cross_entropy(logits: Any, labels: Any) -> Any:
    import jax.numpy as jnp
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean()


def pcls_network(case: Case, chunk: int = 0) -> Any:
    """A case as `pcls.nn.module.ModelDef`."""
    import jax.numpy as jnp
    from flax import nnx

    from pcls.models.sequencer import Block as SequencerBlock
    from pcls.nn.dropout import Dropout
    from pcls.nn.module import ModelDef
    from pcls.nn.pooling import global_mean_pool
    from pcls.nn.recurrent import Recurrent

    class OnLastStates(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            shape = {"layers": case.layers, "bidirectional": case.bidirectional, "chunk": chunk}
            dtype = jnp.bfloat16 if case.gpu else jnp.float32
            self.recurrent = Recurrent(case.cell, case.features, case.hidden, **shape, dtype=dtype, rngs=rngs)
            self.head = nnx.Linear(case.width, CLASSES, dtype=dtype, rngs=rngs)

        def __call__(self, x: Any, training: Any = None, lengths: Any = None) -> Any:
            return self.head(self.recurrent(x, training, lengths)[1])

    class OnBlock(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.block = SequencerBlock(case.width, drops=[Dropout(0.0, 0)] * 2, dtype=jnp.float32, rngs=rngs)
            self.head = nnx.Linear(case.width, CLASSES, rngs=rngs)

        def __call__(self, x: Any, training: Any = None) -> Any:
            return self.head(global_mean_pool(self.block(x, training)))

    sequences = isinstance(case, Sequences)
    return ModelDef.of(OnLastStates if sequences else OnBlock, takes_lengths=sequences)


def pcls_options(case: Case) -> Any:
    """The options with which pcls compiles a case; a block's are those of the model that it is part of."""
    import jax

    from pcls.models.registry import customary_model
    from pcls.training.program import _compiler_options

    model = customary_model("sequencer2d_s") if isinstance(case, Block) else pcls_network(case)
    return _compiler_options(jax.default_backend(), model)


def pcls_loss(network: Any) -> Callable[..., Any]:
    """`(params, x, labels, lengths) -> loss` of a `ModelDef`."""
    from pcls.nn.training import TrainingPass

    def loss_of(params: Any, x: Any, labels: Any, lengths: Any) -> Any:
        return cross_entropy(network.apply(params, {}, x, TrainingPass(), lengths)[0], labels)

    return loss_of


def pcls_trainer(case: Case) -> Trainer:
    """pcls's layers, compiled as pcls compiles a training step, in a process that is set up as pcls does it."""
    import jax

    from pcls.parallel.tuning import tune_process

    tune_process()
    network = pcls_network(case)
    params, _ = jax.jit(network.init)(jax.random.key(0))
    return jax_trainer(pcls_loss(network), params, examples(case), pcls_options(case))


def nnx_trainer(case: Sequences) -> Trainer:
    """flax's own layers, compiled; of its two LSTM cells the faster."""
    import jax
    from flax import nnx

    cell = {"rnn": nnx.SimpleCell, "lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}[case.cell]

    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            def rnn(inputs: int) -> nnx.RNN:
                return nnx.RNN(cell(inputs, case.hidden, rngs=rngs), rngs=False)

            def layer(inputs: int) -> nnx.Module:
                return nnx.Bidirectional(rnn(inputs), rnn(inputs), rngs=False) if case.bidirectional else rnn(inputs)

            inputs = [case.features] + [case.width] * (case.layers - 1)
            self.layers = nnx.List([layer(features) for features in inputs])
            self.head = nnx.Linear(case.width, CLASSES, rngs=rngs)

        def __call__(self, x: Any, lengths: Any) -> Any:
            for layer in self.layers:
                carry, x = layer(x, seq_lengths=lengths, return_carry=True, rngs=nnx.Rngs(0))
            carries = carry if case.bidirectional else (carry,)
            # An LSTM's carry is the cell state and the hidden one.
            states = [one[1] if isinstance(one, tuple) else one for one in carries]
            return self.head(jax.numpy.concatenate(states, -1))

    graph, params = nnx.split(Network(nnx.Rngs(0)), nnx.Param)

    def loss_of(params: Any, x: Any, labels: Any, lengths: Any) -> Any:
        return cross_entropy(nnx.merge(graph, params)(x, lengths), labels)

    return jax_trainer(loss_of, params, examples(case))


def torch_trainer(case: Sequences) -> Trainer:
    """torch.nn, sequences of several lengths packed; on a GPU cuDNN under autocast."""
    import torch
    from torch import nn
    from torch.nn.utils.rnn import pack_padded_sequence

    make = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[case.cell]
    shape = {"num_layers": case.layers, "bidirectional": case.bidirectional, "batch_first": True}

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = make(case.features, case.hidden, **shape)
            self.head = nn.Linear(case.width, CLASSES)

        def forward(self, x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
            if lengths is not None:
                x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            _, last = self.recurrent(x)
            hidden = last[0] if case.cell == "lstm" else last
            return self.head(torch.cat(list(hidden[-2:] if case.bidirectional else hidden[-1:]), -1))

    return torch_steps(Network(), case)


def timm_trainer(case: Block) -> Trainer:
    """timm's block."""
    import _timm  # noqa: F401
    from timm.models.sequencer import Sequencer2dBlock
    from torch import Tensor, nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Sequencer2dBlock(case.width, case.width // 4)
            self.head = nn.Linear(case.width, CLASSES)

        def forward(self, x: Tensor, lengths: None) -> Tensor:
            return self.head(self.block(x).mean((1, 2)))

    return torch_steps(Network(), case)


def torch_steps(network: Any, case: Case) -> Trainer:
    """Trains a module that maps inputs and lengths to logits."""
    import torch

    gpu = isinstance(case, Sequences) and case.gpu
    device = "cuda" if gpu else "cpu"
    network = network.to(device)
    optimizer = torch.optim.Adam(network.parameters(), RATE, fused=True)
    x, labels, lengths = examples(case)
    x, labels = torch.from_numpy(x).to(device), torch.from_numpy(labels).to(device)
    lengths = None if lengths is None else torch.from_numpy(lengths)

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=gpu):
                loss = torch.nn.functional.cross_entropy(network(x, lengths), labels)
            loss.backward()
            optimizer.step()
        loss.item()

    return train


def keras_trainer(case: Sequences, *, jit: bool) -> Trainer:
    """Keras on TensorFlow: `fit`, shorter sequences masked."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow as tf

    layers = keras.layers
    make = {"rnn": layers.SimpleRNN, "lstm": layers.LSTM, "gru": layers.GRU}[case.cell]
    network = keras.Sequential([keras.Input((case.steps, case.features))])
    if case.shortest:
        network.add(layers.Masking())
    for index in range(case.layers):
        layer = make(case.hidden, return_sequences=index < case.layers - 1)
        network.add(layers.Bidirectional(layer) if case.bidirectional else layer)
    network.add(layers.Dense(CLASSES))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(RATE), loss, jit_compile=jit)
    batches = tf.data.Dataset.from_tensors(examples(case)[:2]).repeat()

    def train(steps: int) -> None:
        network.fit(batches, steps_per_epoch=steps, epochs=1, verbose=0)

    return train


CONTENDERS: dict[str, Callable[[Any], Trainer]] = {
    "pcls": pcls_trainer,
    "torch.nn": torch_trainer,
    "timm": timm_trainer,
    "keras fit": lambda case: keras_trainer(case, jit=False),
    "keras fit jit_compile": lambda case: keras_trainer(case, jit=True),
    "flax nnx.RNN": nnx_trainer,
}


def temporary_bytes(chunk: int) -> int:
    """What a compiled training step of pcls over `LONG` sequences needs beside its arguments and results; not run.

    Args:
      chunk: steps of a block, of which only the start is kept for the backward pass; 0: every step is kept.
    """
    import jax

    network = pcls_network(LONG, chunk)
    optimizer, step = adam_step(pcls_loss(network))
    params = dict(network.params)
    state = params, jax.eval_shape(optimizer.init, params)
    compiled = jax.jit(step, donate_argnums=0, compiler_options=pcls_options(LONG))
    return compiled.lower(state, examples(LONG)).compile().memory_analysis().temp_size_in_bytes


def linear_seconds(lengths: Sequence[int], rounds: int) -> dict[tuple[str, int], list[float]]:
    """Seconds of each round by form and number of steps, for a linear recurrence of pcls, forward and back.

    The decays are those of a gated cell, one a step, sequence and state.
    """
    import jax

    from pcls.nn.recurrent.linear import linear_scan

    def both_ways(form: str) -> Callable[..., Any]:
        def run(decay: Any, inputs: Any, grads: Any) -> Any:
            outputs, back = jax.vjp(lambda *arrays: linear_scan(*arrays, form=form), decay, inputs)
            return outputs, back(grads)

        return jax.jit(run)

    def seconds(run: Callable[..., Any], steps: int) -> float:
        """Of one call, on average over as many as make up two of the longest; one before them gets the memory."""
        arrays, count = data[steps], 2 * max(lengths) // steps
        jax.block_until_ready(run(*arrays))
        start = time.perf_counter()
        for _ in range(count):
            found = run(*arrays)
        jax.block_until_ready(found)
        return (time.perf_counter() - start) / count

    runs = {form: both_ways(form) for form in ("sequential", "parallel")}
    data = {steps: linear_data(steps) for steps in lengths}
    cases = list(product(lengths, runs))
    for steps, form in cases:
        seconds(runs[form], steps)
    found: dict[tuple[str, int], list[float]] = {(form, steps): [] for steps, form in cases}
    for _ in range(rounds):
        for steps, form in cases:
            found[form, steps].append(seconds(runs[form], steps))
    return found


def linear_data(steps: int) -> tuple[Any, Any, Any]:
    """Decays, inputs and gradients of the outputs, [steps, LINEAR_BATCH, LINEAR_STATES] float32 on the device."""
    import jax

    rng = np.random.default_rng(0)
    shape = (steps, LINEAR_BATCH, LINEAR_STATES)
    decay = rng.uniform(0.9, 0.999, shape).astype(np.float32)
    return jax.device_put((decay, *(rng.standard_normal(shape, np.float32) for _ in range(2))))


def choose_devices(*, gpu: bool) -> None:
    """Before jax is imported: a GPU, with memory left for the process beside this one, or CPUs alone."""
    if gpu:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    else:
        os.environ["JAX_PLATFORMS"] = "cpu"


def prepare_process() -> None:
    """As pcls does it, before the first array: after it, the linear recurrence takes twice as long."""
    from pcls.parallel.tuning import tune_process

    choose_devices(gpu=False)
    tune_process()


if __name__ == "__main__":
    chosen = CASES[sys.argv[2]]
    choose_devices(gpu=isinstance(chosen, Sequences) and chosen.gpu)
    answer(CONTENDERS[sys.argv[1]](chosen), warm_up=1)
