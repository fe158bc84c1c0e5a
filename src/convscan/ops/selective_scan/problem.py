"""What selection and kernels know of a selective scan: sizes, strides, dtypes; no addresses and no data."""

from __future__ import annotations

from typing import NamedTuple

from ..._layout import Triple, order

Pair = tuple[int, int]
Quadruple = tuple[int, int, int, int]


class Projection(NamedTuple):
    """B or C: strides of (batch, time, group, state), or where constant of (0, 0, channel, state)."""

    strides: Quadruple
    is_constant: bool


class SelectiveProblem(NamedTuple):
    """h[t,n] = exp(dt[t] A[n]) h[t-1,n] + dt[t] B[t,n] u[t], y[t] = sum_n C[t,n] h[t,n] in every channel.

    ``dtype`` is that of u, ``complex`` says whether A, B, C and the states are. Strides count elements, in the order
    (batch, time, channel) of signals, (channel, state) of A and (batch, channel, state, sequence) of states; None is an
    argument that is not there. ``sequences`` are those packed along time, None where nothing is packed; ``in_place``:
    the initial state becomes the final one. ``offsets`` are those of the tensors in the order in which kernels take
    them, for every turn of a loop over leading axes that do not merge into the batch.
    """

    device: str
    dtype: str
    complex: bool
    softplus: bool
    batch: int
    length: int
    channels: int
    states: int
    groups: int
    sequences: int | None
    u: Triple
    delta: Triple
    a: Pair
    b: Projection
    c: Projection
    d: int | None
    z: Triple | None
    delta_bias: int | None
    initial_state: Quadruple | None
    final_state: Quadruple | None
    in_place: bool
    checkpoints: bool
    y: Triple
    offsets: tuple[tuple[int, ...], ...] | None
    threads: int
    isa: str

    @property
    def turns(self) -> int:
        """How many kernel calls the leading axes take."""
        return 1 if self.offsets is None else len(self.offsets)

    def __str__(self) -> str:
        parts = [f"B={self.batch} L={self.length} D={self.channels} N={self.states} {self.dtype}"]
        parts += ["complex states"] if self.complex else []
        parts += [f"{self.groups} groups"] if self.groups > 1 else []
        parts += [] if self.sequences is None else [f"{self.sequences} sequences"]
        parts += [f"{order(self.u)} contiguous"] if order(self.u) != "strided" else ["strided"]
        parts += [f"{self.turns} calls"] if self.turns > 1 else []
        return ", ".join([*parts, f"{self.threads} threads", self.isa])


class SelectiveGradientProblem(NamedTuple):
    """The gradients of a selective scan, whose leading axes are one batch axis.

    Triples are strides of (batch, time, channel), dfinal_state has those of states. ``shard_channels`` is how many
    channels of a group add what B and C get of them to one sum.
    """

    forward: SelectiveProblem
    dy: Triple
    dfinal_state: Quadruple | None
    du: Triple
    ddelta: Triple
    dz: Triple | None
    shard_channels: int

    @property
    def shards(self) -> int:
        """Sums for each group of B and C."""
        return -(-self.forward.channels // self.forward.groups // self.shard_channels)

    def __str__(self) -> str:
        return f"gradient of {self.forward}"
