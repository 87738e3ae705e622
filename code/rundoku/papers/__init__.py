"""One room for each paper: all that the paper introduced, and nothing else."""
