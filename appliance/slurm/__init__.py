"""Workers as Slurm jobs, which exchange files with the service in a shared folder. No torch."""
