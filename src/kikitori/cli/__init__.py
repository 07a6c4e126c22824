"""The commands: one file per sub-command. Imports nothing heavy at the top."""
