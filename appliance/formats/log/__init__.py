"""The log's notes, checkpoints, cosignatures, proofs and exports."""
