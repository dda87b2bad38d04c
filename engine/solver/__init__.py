"""Cache keys, the pure plan and the scheduler."""
