"""The converter's commands, one module each: options to arguments, progress to standard error, figures to standard output."""
