"""`python -m onnxprune`: the command line."""

import os
import sys

from onnxprune.cli import main

if __name__ == "__main__":
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # One of `torchrun`'s processes: while it unloads, gloo's threads abort one in thirty, and `torchrun` then stops
        # the process that still writes. Nothing is left to do here but to go.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
