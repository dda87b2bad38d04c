"""The audit trail: who signs the log, what was signed, and whether it still holds."""
