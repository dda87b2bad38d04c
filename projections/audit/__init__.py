"""What the log proves of a build or a digest: every statement names the events (`seqs`) that say so."""
