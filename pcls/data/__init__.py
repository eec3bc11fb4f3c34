"""The way of an image: source -> order -> decode -> host batch -> device augmentation."""
