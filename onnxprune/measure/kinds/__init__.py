"""What outputs are for: one kind of part a file or less, and one table of them all."""
