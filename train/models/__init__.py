"""What all models share: backbones, checkpoints, tokenizer, optimiser, packing."""
