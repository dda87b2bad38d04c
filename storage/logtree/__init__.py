"""The Merkle tree over the log: its leaves, proofs of what it holds, and the check of what was vouched for."""
