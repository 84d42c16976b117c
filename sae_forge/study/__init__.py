"""Tasks asked of subjects: plans, controls, sweeps, estimates, a report."""
