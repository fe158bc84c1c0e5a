"""Native kernels of convscan: addresses, sizes and strides in; nothing checked twice."""

Triple = tuple[int, int, int]
Pair = tuple[int, int]

class ConvCall:
    def __init__(
        self,
        kernel: str,
        dtype: str,
        batch: int,
        length: int,
        channels: int,
        taps: int,
        x_strides: Triple,
        h_strides: Pair,
        y_strides: Triple,
        bias_stride: int = 1,
        state_strides: Triple = ...,
        origin: int = 0,
        activation: str = "identity",
        transform_length: int = 0,
    ) -> None: ...
    def __call__(self, x: int, h: int, bias: int, state: int, y: int, threads: int = 0) -> None: ...

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
        state_strides: Triple,
        dh_strides: Pair,
        transform_length: int = 0,
    ) -> None: ...
    def __call__(self, x: int, dz: int, state: int, dh: int, threads: int = 0) -> None: ...

class ScanCall:
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
        y_init_strides: Pair,
        y_strides: Triple,
    ) -> None: ...
    def __call__(self, x: int, a: int, y_init: int, y: int, threads: int = 0) -> None: ...

class ScanGradientCall:
    def __init__(
        self, forward: ScanCall, dy_strides: Triple, dx_strides: Triple, da_strides: Triple, dy_init_strides: Pair
    ) -> None: ...
    def __call__(
        self, a: int, y_init: int, y: int, dy: int, dx: int, da: int, dy_init: int, threads: int = 0
    ) -> None: ...

def fft_length(points: int, dtype: str) -> int: ...
def isa() -> str: ...
def isa_names() -> list[str]: ...
def set_isa(name: str) -> bool: ...
def thread_count() -> int: ...
def configuration() -> int: ...
def workspace_current() -> int: ...
def workspace_peak() -> int: ...
def tables_current() -> int: ...
def reset_workspace_peak() -> None: ...
def advise_huge_pages(address: int, bytes: int) -> None: ...
