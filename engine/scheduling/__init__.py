"""Who runs when, and what fits the time: deadlines, plans, batches, costs. Knows no model."""
