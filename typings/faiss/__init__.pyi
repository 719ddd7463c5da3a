"""Types of what this project uses of faiss, which ships none."""

import numpy as np
from numpy.typing import NDArray

METRIC_INNER_PRODUCT: int
IO_FLAG_MMAP_IFC: int

class HNSW:
    efConstruction: int
    efSearch: int

class ScalarQuantizer:
    QT_fp16: int

class IndexHNSW:
    d: int
    ntotal: int
    hnsw: HNSW
    def add(self, x: NDArray[np.float32]) -> None: ...
    def search(
        self, x: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
    def reconstruct_batch(self, key: NDArray[np.int64]) -> NDArray[np.float32]: ...

class IndexHNSWFlat(IndexHNSW):
    def __init__(self, d: int, M: int, metric: int) -> None: ...

class IndexHNSWSQ(IndexHNSW):
    def __init__(self, d: int, qtype: int, M: int, metric: int) -> None: ...

def read_index(fname: str, io_flags: int = 0) -> IndexHNSW: ...
def write_index(index: IndexHNSW, fname: str) -> None: ...
def omp_set_num_threads(num_threads: int) -> None: ...
