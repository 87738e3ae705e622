"""Paper notes that run: one room for each paper, with its implementation, its kernels and the code behind its note."""
