"""Entry points of the processes that hold torch. Nobody imports them: runners start them by argv."""
