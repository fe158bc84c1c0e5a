"""Native kernels of convscan: addresses, sizes and strides in; nothing checked twice."""

from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from types import ModuleType
from typing import Any, overload

from torch import Tensor

Triple = tuple[int, int, int]
Pair = tuple[int, int]
Quadruple = tuple[int, int, int, int]

class NativeCall: ...

class ConvCall(NativeCall):
    def __init__(
        self,
        kernel: str,
        dtype: str,
        batch: int,
        length: int,
        channels: int,
        taps: int,
        x_strides: Triple,
        h_strides: Triple,
        y_strides: Triple,
        bias_strides: Pair = ...,
        state_strides: Quadruple = ...,
        pre_gate_strides: Triple = ...,
        post_gate_strides: Triple = ...,
        filter_group: int = 1,
        origin: int = 0,
        activation: str = "identity",
        transform_length: int = 0,
        bfloat16_spectra: bool = False,
        pattern_offset: int = 0,
    ) -> None: ...
    @overload
    def __call__(
        self,
        x: int,
        h: int,
        bias: int,
        state: int,
        pre_gate: int,
        post_gate: int,
        y: int,
        threads: int = 0,
        boundaries: int = 0,
        sequences: int = 0,
    ) -> None: ...
    @overload
    def __call__(
        self,
        x: Tensor,
        h: Tensor,
        bias: Tensor | None,
        state: Tensor | None,
        pre_gate: Tensor | None,
        post_gate: Tensor | None,
        y: Tensor,
    ) -> None: ...

class FilterGradientCall:
    def __init__(
        self,
        kernel: str,
        dtype: str,
        batch: int,
        length: int,
        channels: int,
        taps: int,
        x_strides: Triple,
        dz_strides: Triple,
        state_strides: Quadruple,
        dh_strides: Triple,
        x_gate_strides: Triple = ...,
        dz_gate_strides: Triple = ...,
        origin: int = 0,
        transform_length: int = 0,
    ) -> None: ...
    def __call__(
        self,
        x: int,
        dz: int,
        state: int,
        x_gate: int,
        dz_gate: int,
        dh: int,
        threads: int = 0,
        boundaries: int = 0,
        sequences: int = 0,
    ) -> None: ...

class ConvGradientCall:
    def __init__(
        self,
        filter: FilterGradientCall,
        h_strides: Pair,
        dx_strides: Triple,
        has_spectra: bool = False,
        bfloat16_spectra: bool = False,
        filter_group: int = 1,
        bias_stride: int = 1,
        activation: str = "identity",
        dpre_gate_strides: Triple = (0, 0, 0),
        dpost_gate_strides: Triple = (0, 0, 0),
        dstate_strides: Quadruple = (0, 0, 0, 0),
    ) -> None: ...
    def __call__(
        self,
        x: int,
        h: int,
        dy: int,
        dx: int,
        dh: int,
        state: int = 0,
        pre_gate: int = 0,
        post_gate: int = 0,
        bias: int = 0,
        dstate: int = 0,
        dpre_gate: int = 0,
        dpost_gate: int = 0,
        dbias: int = 0,
        threads: int = 0,
        boundaries: int = 0,
        sequences: int = 0,
    ) -> None: ...

class AllpoleCall(NativeCall):
    def __init__(
        self,
        dtype: str,
        batch: int,
        length: int,
        channels: int,
        order: int,
        transposed: bool,
        x_strides: Triple,
        a_strides: Triple,
        a_order_stride: int,
        state_strides: Triple,
        y_strides: Triple,
    ) -> None: ...
    @overload
    def __call__(self, x: int, a: int, state: int, y: int, threads: int = 0) -> None: ...
    @overload
    def __call__(self, x: Tensor, a: Tensor, state: Tensor | None, y: Tensor) -> None: ...

class ScanCall(NativeCall):
    def __init__(
        self,
        kernel: str,
        dtype: str,
        batch: int,
        length: int,
        channels: int,
        reverse: bool,
        x_strides: Triple,
        a_strides: Triple,
        y_init_strides: Triple,
        y_strides: Triple,
        sequences: int = 0,
    ) -> None: ...
    @overload
    def __call__(self, x: int, a: int, y_init: int, boundaries: int, y: int, threads: int = 0) -> None: ...
    @overload
    def __call__(self, x: Tensor, y_init: Tensor | None, a: Tensor, boundaries: Tensor | None, y: Tensor) -> None: ...

class ScanGradientCall:
    def __init__(
        self, forward: ScanCall, dy_strides: Triple, dx_strides: Triple, da_strides: Triple, dy_init_strides: Triple
    ) -> None: ...
    def __call__(
        self,
        a: int,
        y_init: int,
        boundaries: int,
        y: int,
        dy: int,
        dx: int,
        da: int,
        dy_init: int,
        threads: int = 0,
    ) -> None: ...

class OnlineCall(NativeCall):
    def __init__(
        self,
        schedule: str,
        dtype: str,
        batch: int,
        length: int,
        channels: int,
        taps: int,
        shares_filter: bool,
        block: int,
        max_rewind: int,
        x_strides: Triple = ...,
        y_strides: Triple = ...,
    ) -> None: ...
    def bind(self, filter: Tensor, state: Tensor | None, clock: Tensor | None) -> None: ...
    def __call__(self, x: Tensor, y: Tensor | None) -> None: ...
    def rewind(self, steps: int) -> None: ...
    def prepare(self, h: Tensor, tap_stride: int, channel_stride: int) -> None: ...
    def sizes(self) -> tuple[int, int, int, int, int]: ...

class SelectiveCall(NativeCall):
    def __init__(
        self,
        kernel: str,
        dtype: str,
        sizes: tuple[int, int, int, int, int, int],
        is_complex: bool,
        softplus: bool,
        u: Triple,
        delta: Triple,
        a: Pair,
        b: Quadruple,
        b_is_constant: bool,
        c: Quadruple,
        c_is_constant: bool,
        d: int,
        z: Triple,
        delta_bias: int,
        initial_state: Quadruple,
        y: Triple,
        final_state: Quadruple,
        in_place: bool,
    ) -> None: ...
    def __call__(self, *tensors: Tensor | None) -> None: ...
    def run_at(self, addresses: Sequence[int]) -> None: ...

class SelectiveGradientCall:
    def __init__(
        self,
        forward: SelectiveCall,
        dy: Triple,
        dfinal_state: Quadruple,
        du: Triple,
        ddelta: Triple,
        dz: Triple,
        shard_channels: int,
    ) -> None: ...
    def __call__(self, *tensors: Tensor | None) -> None: ...

def use_torch(
    tensor: type,
    parameter: type,
    watchers: tuple[Callable[[], Any], ...],
    is_grad_enabled: Callable[[], bool],
    forward_ad: ModuleType,
    settings: ContextVar[Any],
    exchange: object,
) -> None: ...
def is_plain(*tensors: Tensor | None) -> bool: ...
def call_key(variant: Hashable, *tensors: Tensor | None) -> Hashable | None: ...
def run_prepared(calls: dict[Any, Any], variant: object, *tensors: object) -> Tensor | None: ...
def vandermonde(
    dtype: str,
    a_dtype: str,
    rows: int,
    terms: int,
    length: int,
    order: int,
    c_strides: Pair,
    a_strides: Pair,
    y_row_stride: int,
    c: int,
    a: int,
    y: int,
    threads: int = 0,
) -> None: ...
def vandermonde_adjoint(
    dtype: str,
    a_dtype: str,
    rows: int,
    terms: int,
    length: int,
    order: int,
    g_strides: Pair,
    a_strides: Pair,
    w_row_stride: int,
    g: int,
    a: int,
    w: int,
    threads: int = 0,
) -> None: ...
def cauchy(
    dtype: str,
    sides: int,
    rows: int,
    terms: int,
    points: int,
    power: int,
    v_strides: Triple,
    lambda_strides: Pair,
    z_strides: Pair,
    k_strides: Pair,
    v: int,
    lambda_: int,
    z: int,
    k: int,
    threads: int = 0,
) -> None: ...
def filter_spectrum(
    dtype: str,
    filters: int,
    taps: int,
    transform_length: int,
    h_strides: Pair,
    bfloat16_spectra: bool,
    h: int,
    spectra: int,
    keep: int = 0,
    pattern: int = 0,
    threads: int = 0,
) -> None: ...
def pattern_bytes(transform_length: int, dtype: str) -> int: ...
def spectrum_bytes(transform_length: int, dtype: str, bfloat16_spectra: bool) -> int: ...
def attention(
    dtype: str,
    sizes: tuple[int, ...],
    boundaries: int,
    scale: float,
    per_key: bool,
    inputs: tuple[tuple[int, tuple[int, ...]] | None, ...],
    outputs: tuple[tuple[int, tuple[int, ...]] | None, ...],
    threads: int = 0,
) -> None: ...
def attention_gradient(
    dtype: str,
    sizes: tuple[int, ...],
    boundaries: int,
    scale: float,
    per_key: bool,
    inputs: tuple[tuple[int, tuple[int, ...]] | None, ...],
    block: int,
    has_sums: bool,
    gradients: tuple[tuple[int, tuple[int, ...]] | None, ...],
    outputs: tuple[tuple[int, tuple[int, ...]] | None, ...],
    threads: int = 0,
) -> None: ...

class AttentionStepCall(NativeCall):
    def __init__(
        self,
        gates: str,
        dtype: str,
        sizes: tuple[int, ...],
        per_key: bool,
        softplus: bool,
        scale: float,
        eps: float,
        strides: tuple[tuple[int, ...], ...],
    ) -> None: ...
    def __call__(self, *tensors: Tensor | None) -> None: ...

def delta_rule(
    dtype: str,
    sizes: tuple[int, ...],
    boundaries: int,
    scale: float,
    per_key: bool,
    inputs: tuple[tuple[int, tuple[int, ...]] | None, ...],
    outputs: tuple[tuple[int, tuple[int, ...]] | None, ...],
) -> None: ...
def delta_rule_gradient(
    dtype: str,
    sizes: tuple[int, ...],
    boundaries: int,
    scale: float,
    per_key: bool,
    inputs: tuple[tuple[int, tuple[int, ...]] | None, ...],
    gradients: tuple[tuple[int, tuple[int, ...]] | None, ...],
    outputs: tuple[tuple[int, tuple[int, ...]] | None, ...],
) -> None: ...
def fft_length(points: int, dtype: str) -> int: ...
def isa() -> str: ...
def isa_names() -> list[str]: ...
def set_isa(name: str) -> bool: ...
def multiply_adds(rounds: int, threads: int) -> int: ...
def thread_count() -> int: ...
def configuration() -> int: ...
def workspace_current() -> int: ...
def workspace_peak() -> int: ...
def tables_current() -> int: ...
def reset_workspace_peak() -> None: ...
def advise_huge_pages(address: int, bytes: int) -> None: ...
