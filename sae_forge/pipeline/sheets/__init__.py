"""Tables that stand beside a report: what a paper published, and each latent by itself."""
