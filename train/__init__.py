"""From query logs to checkpoints: mining, encoder, generator, click model, index, evaluation."""
