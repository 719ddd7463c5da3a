"""What all models share: backbones, checkpoints, tokenizer, optimiser, packing."""

import os

# In bfloat16, oneDNN keeps the kernels of the last 1,024 shapes that it met. Batches have lengths
# of their own, so nearly all are new: gigabytes for a model of megabytes, and no step faster.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
