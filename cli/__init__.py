"""The command line: flags become a frozen config, a config becomes one call, a call becomes one summary."""
