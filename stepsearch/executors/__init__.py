"""Executors: where schedules are scored. All give the same results on a CPU."""
