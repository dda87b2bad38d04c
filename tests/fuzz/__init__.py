"""What reads bytes of others, given true ones that were changed at random."""
