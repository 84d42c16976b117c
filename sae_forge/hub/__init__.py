"""Publishing: SAE, selection, report and model card become one commit on the Hugging Face Hub, or none."""
