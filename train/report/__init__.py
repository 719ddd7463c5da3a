"""The report of a trained run: what each step of training adds, by the truth of simulated logs."""
