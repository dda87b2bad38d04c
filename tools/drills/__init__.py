"""What is tried at full size, by hand: each module's command is beside it."""
