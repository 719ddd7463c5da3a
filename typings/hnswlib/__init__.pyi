"""Types of what this project uses of hnswlib 0.8, which ships none."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

class Index:
    dim: int
    space: str
    def __init__(self, space: str, dim: int) -> None: ...
    def init_index(
        self,
        max_elements: int,
        M: int = 16,
        ef_construction: int = 200,
        random_seed: int = 100,
        allow_replace_deleted: bool = False,
    ) -> None: ...
    def add_items(
        self,
        data: NDArray[Any],
        ids: NDArray[Any] | None = None,
        num_threads: int = -1,
        replace_deleted: bool = False,
    ) -> None: ...
    def knn_query(
        self, data: NDArray[Any], k: int = 1, num_threads: int = -1
    ) -> tuple[NDArray[np.uint64], NDArray[np.float32]]: ...
    def get_items(self, ids: NDArray[Any]) -> NDArray[np.float32]: ...
    def set_ef(self, ef: int) -> None: ...
    def set_num_threads(self, num_threads: int) -> None: ...
    def save_index(self, path_to_index: str) -> None: ...
    def load_index(
        self, path_to_index: str, max_elements: int = 0, allow_replace_deleted: bool = False
    ) -> None: ...
    def get_current_count(self) -> int: ...
    def get_max_elements(self) -> int: ...
