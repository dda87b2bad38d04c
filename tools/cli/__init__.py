"""The refledger command."""
