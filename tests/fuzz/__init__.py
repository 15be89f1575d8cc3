"""Fuzzers that stay: mutated models through the whole prune, and targets for files, samples and JSON.

python -m tests.fuzz.whole --count 20000          # mutated real graphs, each pruned and written
python -m tests.fuzz.targets plan --runs 1000000  # one of the targets, under atheris where it is installed
"""
