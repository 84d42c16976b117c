"""What each verb can be told: one frozen dataclass a verb, torch-free."""
