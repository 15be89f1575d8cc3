"""Work that does not depend on where it is done: sent to other processes and machines, its results kept by content."""
