"""The review page as a value: what a reviewer sees before signing, the same for every reader of the same bytes."""
