"""From pretrained weights to a classifier of somebody's own images."""
