"""The report: all that is known of a run, as one HTML page that needs nothing else."""
