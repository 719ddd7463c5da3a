"""Types of what this project uses of faiss, which ships none."""

import numpy as np
from numpy.typing import NDArray

METRIC_INNER_PRODUCT: int

class HNSW:
    efConstruction: int
    efSearch: int

class IndexHNSWFlat:
    hnsw: HNSW
    def __init__(self, d: int, M: int, metric: int) -> None: ...
    def add(self, x: NDArray[np.float32]) -> None: ...
    def search(
        self, x: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
