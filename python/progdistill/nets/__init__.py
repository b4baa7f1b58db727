"""Networks: they know nothing of noise schedules, devices or training."""
