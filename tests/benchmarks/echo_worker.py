"""A worker for tests: it writes the tokens it is asked for, fails, or dies, as its options say."""

import os
from typing import Any

from benchmarks.peers.protocol import Lists, Task, serve


class Echo:
    def __init__(self, task: Task) -> None:
        self._how = task.options["how"]
        self.settings = {"echo": "1"}
        if self._how == "refuses":
            raise ValueError("no such model")

    def generate(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        print("libraries print to stdout")
        if self._how == "dies":
            os.write(2, b"illegal instruction\n")
            os._exit(7)
        if self._how == "stops early":
            num_new -= 1
        return [[[start] * num_new for start in starts] for _ in prompts]

    greedy: Any = generate


if __name__ == "__main__":
    serve(Echo, lambda task: None)
