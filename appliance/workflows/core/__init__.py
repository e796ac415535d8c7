"""What every workflow uses: context, records, jobs, workers, effects."""
