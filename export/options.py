"""What can be asked of an export, at no cost to import. Knows nothing of how it is done."""

from typing import Literal

Mode = Literal["slots", "list", "beam"]  # how the generator decodes
Precision = Literal["int8", "fp32", "fp16"]
Backend = Literal["onnxruntime", "python"]  # of Triton
MAX_BATCH_SIZE = 8  # requests that Triton runs together
