"""Processes outside the service: workers in the sandbox, on this machine or on Slurm, and programs. No torch."""
