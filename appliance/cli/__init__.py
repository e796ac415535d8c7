"""The command line: parse, one client call, print. One file per audience."""
