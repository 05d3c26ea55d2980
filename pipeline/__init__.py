"""A webhook-driven job pipeline for WaveSpeedAI."""

__version__ = "0.1.0"
