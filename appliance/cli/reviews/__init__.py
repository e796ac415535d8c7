"""What reviewers decide on: evidence, release requests, findings, delegations."""
