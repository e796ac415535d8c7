"""A worker as a job of Slurm: submitted by sbatch, joined to the service by files in a shared folder. No torch."""
