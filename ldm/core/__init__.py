"""What every stage needs, `prepare` included: params, errors, files of results."""
