"""What makes a run seen while it works: its log files, outside loggers and the console. Reports are in evaluation."""
