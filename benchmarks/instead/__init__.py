"""What one could use instead of this product, and how that is measured (`benchmarks/cases/instead.py`)."""
