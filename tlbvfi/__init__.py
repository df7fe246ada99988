"""Interpolation methods and the job that runs them, without a user interface."""
