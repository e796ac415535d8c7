"""The signer: a process of its own that has the service's keys (docs/operations/signer.md).

The service reaches it through a Unix socket (`client`). Each operation parses what it is given and builds what is
signed itself (`operations`). A record of the last checkpoint makes sure that each size of the log is signed once
(`record`).
"""
