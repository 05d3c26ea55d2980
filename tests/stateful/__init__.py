"""Any interleaving of what can happen to jobs: a machine that tries them, and what must be true after every step."""
