"""What every stage needs, prepare too: params, errors, files of results."""
