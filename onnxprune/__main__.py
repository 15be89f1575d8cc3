"""`python -m onnxprune`: the command line."""

import sys

from onnxprune.cli import main

if __name__ == "__main__":
    sys.exit(main())
