"""An air-gapped, audit-first training appliance for regulated environments."""

import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # `python -m appliance…`, which Python is still looking for: it has put the working folder before its own library,
    # and an argparse.py that somebody left there would run in place of Python's.
    del sys.path[0]
