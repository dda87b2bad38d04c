"""`refledger browse`: a root or a bundle in the terminal."""
