"""One file per command: what it takes, and what it prints. The work is done elsewhere; nothing heavy is imported here."""
