"""What a pretrained model can be taught: one class a kind of task, driven by `finetune`."""
