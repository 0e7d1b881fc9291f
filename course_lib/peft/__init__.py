"""Parameter-efficient fine-tuning: the base stays as it is, a few added weights learn. Begin with `peft.adapters`."""
