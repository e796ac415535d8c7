"""Parts that every workflow uses: context, ledger records, job queues, workers and effects."""
