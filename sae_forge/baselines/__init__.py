"""The room of the rivals: methods that forget without editing latents, to be measured beside those that do."""
