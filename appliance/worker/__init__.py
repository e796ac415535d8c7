"""Entry points of the processes that hold torch. They are never imported: runners start them by argv."""
