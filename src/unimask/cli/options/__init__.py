"""The arguments and options of the commands, with their help: `options/X` has those of `cli/X`."""
